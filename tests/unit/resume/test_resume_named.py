"""Streams that are followed by name: after a reload, from another device, without an event id."""

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from sse_middleware import (
    SSEMiddleware,
    StoreError,
    current_stream,
    resume_endpoint,
    streaming,
)
from sse_middleware.stores.base import LogSnapshot
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import EVENTSOURCE, Exchange, body, handle, stream_start
from tests.support.middleware import marking
from tests.support.resuming import (
    TTL,
    Counting,
    back,
    counted,
    id_of,
    left,
    memory,
    opened,
    read,
    resumable,
    resume,
    returning,
    texts,
)

pytestmark = pytest.mark.anyio

ANN = (b"x-user", b"ann")
BOB = (b"x-user", b"bob")


def user(scope: Scope) -> str | None:
    """Return the user of a request."""
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None


def chats(counting: Counting) -> Starlette:
    """Return an app with one stream for each chat, and the endpoint that follows it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().name(f"chat:{scope['path_params']['chat']}")
        await counting(scope, receive, send)

    class Answer:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await answer(scope, receive, send)

    return Starlette(
        routes=[
            Route("/chats/{chat}/answer", Answer()),
            Route("/chats/{chat}/live", resume_endpoint("chat:{chat}")),
        ]
    )


def named(counting: Counting, **options: Any) -> SSEMiddleware:
    return resumable(chats(counting), **{"identify": user, **options})


ANSWER = "/chats/7/answer"
LIVE = "/chats/7/live"


def assert_no_content(exchange: Exchange) -> None:
    assert (exchange.status, exchange.body, exchange.ended) == (204, b"", True)
    assert exchange.headers[b"cache-control"] == b"no-store"
    assert exchange.headers[b"vary"] == b"Last-Event-ID"


async def test_a_named_stream_is_followed_from_its_beginning_without_an_event_id() -> None:
    counting = Counting(6)
    app = named(counting)
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_count(3, "message")
        async with opened(app, ANN, path=LIVE) as other:
            await other.until_end()
        await first.until_end()
    assert texts(other) == texts(first) == counted(1, 6)
    start = other.events[0]
    assert start.event == "start"
    assert json.loads(start.data)["resumed"] is True
    assert other.headers[b"x-stream-id"] == first.headers[b"x-stream-id"]
    assert [event.id for event in other.events[1:7]] == [id_of(first, n) for n in range(1, 7)]
    assert len(counting.scopes) == 1


async def test_the_events_of_a_named_stream_have_its_secret_so_it_can_be_resumed() -> None:
    app = named(Counting(9))
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_count(1, "message")
        async with opened(app, ANN, path=LIVE) as cut:
            await cut.until_count(3, "message")
        async with returning(app, cut.last_event_id, ANN, path=LIVE) as again:
            await again.until_end()
    assert texts(cut) + texts(again) == counted(1, 9)
    assert again.events[0].event == "start"
    assert again.events[0].id == cut.last_event_id


async def test_a_named_reader_of_a_stream_without_events_has_an_event_id() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().name("x")
        await send(stream_start())
        await asyncio.sleep(20)
        await send(body(b"data: 1\n\n", more=False))

    routes = [Route("/answer", _Endpoint(answer)), Route("/live", resume_endpoint("x"))]
    app = resumable(Starlette(routes=routes), identify=user)
    async with opened(app, ANN, path="/answer") as first:
        await first.until("start")
        async with opened(app, ANN, path="/live") as cut:
            await cut.until("heartbeat")
            assert cut.last_event_id == first.last_event_id
            assert cut.retry == 2000
        assert texts(await read(app, ANN, path="/live")) == ["1"]


async def test_a_named_stream_continues_without_its_first_client() -> None:
    counting = Counting(6)
    app = named(counting)
    async with left(app, 2, ANN, path=ANSWER):
        await asyncio.sleep(1)
        again = await read(app, ANN, path=LIVE)
    assert texts(again) == counted(1, 6)
    assert counting.ends == ["finished"]


@pytest.mark.parametrize("headers", [[BOB], [], [(b"x-user", b"")]], ids=["other", "none", "empty"])
async def test_for_any_other_identity_there_is_no_named_stream(
    headers: list[tuple[bytes, bytes]],
) -> None:
    app = named(Counting(6))
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_count(1, "message")
        assert_no_content(await read(app, *headers, path=LIVE))
        stolen = await resume(app, first.last_event_id, *headers, path=LIVE)
        assert_no_content(stolen)


async def test_a_stream_without_a_name_is_not_followed() -> None:
    app = named(Counting(6))
    async with opened(app, path=ANSWER) as first:
        await first.until_count(1, "message")
        assert_no_content(await read(app, path=LIVE))
        assert_no_content(await read(app, ANN, path=LIVE))


async def test_an_eventsource_is_stopped_if_there_is_no_named_stream() -> None:
    app = named(Counting(2))
    assert_no_content(await read(app, ANN, path=LIVE))
    await read(app, ANN, path=ANSWER)
    assert_no_content(await read(app, ANN, path=LIVE))
    assert_no_content(await read(app, ANN, path="/chats/8/live"))


async def test_a_named_stream_is_gone_after_its_end() -> None:
    app = named(Counting(4))
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_count(1, "message")
        async with opened(app, ANN, path=LIVE) as other:
            await other.until_end()
    assert other.names[-1] == "complete"
    assert other.last_event_id == f"{id_of(first, 4)}.end"
    assert_no_content(await resume(app, other.last_event_id, ANN, path=LIVE))


async def test_a_named_stream_is_gone_after_its_failure() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().name("chat:7")
        await Counting(2)(scope, receive, _failing(send))

    kept = resumable(
        Starlette(
            routes=[
                Route("/answer", _Endpoint(app)),
                Route("/live", resume_endpoint("chat:7")),
            ]
        ),
        identify=user,
    )
    async with opened(kept, ANN, path="/answer") as first:
        await first.until_count(1, "message")
        async with opened(kept, ANN, path="/live") as other:
            await other.until("error")
            await other.until_end()
    assert other.last_event_id.endswith(".cut")
    assert_no_content(await resume(kept, other.last_event_id, ANN, path="/live"))


async def test_a_client_cut_off_before_the_end_of_a_named_stream_gets_the_rest() -> None:
    app = named(Counting(4))
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_count(2, "message")
        async with opened(app, ANN, path=LIVE) as cut:
            await cut.until_count(2, "message")
        await first.until_end()
    again = await resume(app, cut.last_event_id, ANN, path=LIVE)
    assert texts(again) == ["3", "4"]
    assert again.names[-1] == "complete"


async def test_a_client_cut_off_before_the_end_event_of_a_named_stream_gets_it() -> None:
    app = named(Counting(2))
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_end()
    again = await resume(app, id_of(first, 2), ANN, path=LIVE)
    assert again.names == ["start", "complete"]
    assert_no_content(await resume(app, again.last_event_id, ANN, path=LIVE))


async def test_the_latest_stream_of_a_name_counts() -> None:
    app = named(Counting(3))
    async with opened(app, ANN, path=ANSWER) as one:
        await one.until_count(1, "message")
        async with opened(app, ANN, path=ANSWER) as other:
            await other.until("start")
            again = await read(app, ANN, path=LIVE)
            assert again.headers[b"x-stream-id"] == other.headers[b"x-stream-id"]


async def test_a_client_within_an_earlier_stream_of_the_name_gets_a_reset_and_the_new_one() -> None:
    app = named(Counting(5))
    async with opened(app, ANN, path=ANSWER) as one:
        await one.until_count(1, "message")
        async with opened(app, ANN, path=LIVE) as cut:
            await cut.until_count(2, "message")
    async with opened(app, ANN, path=ANSWER) as other:
        await other.until("start")
        again = await resume(app, cut.last_event_id, ANN, path=LIVE)
    assert again.names[0] == "reset"
    assert texts(again) == counted(1, 5)
    assert again.headers[b"x-stream-id"] == other.headers[b"x-stream-id"]


@pytest.mark.parametrize("query", [b"", b"after=1"])
@pytest.mark.parametrize("finished", ["replay", None])
async def test_a_client_that_has_the_end_of_a_stream_does_not_get_it_again_by_name(
    finished: Any, query: bytes
) -> None:
    """An `EventSource` that is not closed reconnects after each end."""
    routes = [
        Route("/answer", _Endpoint(Counting(9))),
        Route("/live", resume_endpoint("x", finished=finished)),
    ]
    marks = {"/answer": streaming(stream_name="x")}
    app = resumable(Starlette(routes=routes), identify=user, marks=marks, stream_max_seconds=4.5)
    async with opened(app, ANN, path="/answer") as first:
        await first.until("message")
        reader = await read(app, ANN, path="/live", query_string=query)
        await first.until_end()
    assert reader.last_event_id == f"{id_of(first, 5)}.cut"
    headers = back(reader.last_event_id, ANN)
    again = await handle(app, headers=headers, path="/live", query_string=query)
    assert_no_content(again)
    async with opened(app, ANN, path="/answer") as second:  # a new stream of the name
        await second.until("message")
        again = await handle(app, headers=headers, path="/live")
        assert again.names[0] == "reset"
        assert texts(again) == counted(1, 5)


async def test_a_client_whose_credentials_have_expired_continues_with_new_ones() -> None:
    app = named(Counting(9), expires_at=_expiry)
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until("message")
        short = await read(app, ANN, (b"x-seconds", b"3.5"), path=LIVE)
        assert short.last_event_id.endswith(".cut")
        again = await resume(app, short.last_event_id, ANN, path=LIVE)
        assert again.names[0] == "start"
        assert texts(short) + texts(again) == counted(1, 9)


def _expiry(scope: Scope) -> float | None:
    seconds = dict(scope["headers"]).get(b"x-seconds")
    return None if seconds is None else time.time() + float(seconds)


async def test_a_named_stream_without_its_first_events_begins_with_a_reset() -> None:
    app = named(Counting(30, pause=0.1), store=memory(max_events=5))
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_count(20, "message")
        again = await read(app, ANN, path=LIVE)
    assert again.names[0] == "reset"
    assert json.loads(again.events[0].data)["reason"] == "truncated"
    assert texts(again)[-1] == "30"


async def test_a_name_may_be_set_after_the_start_and_changed() -> None:
    async def events() -> Any:
        yield b"data: 1\n\n"
        current_stream().name("a")
        await asyncio.sleep(1)
        current_stream().name("b")
        yield b"data: 2\n\n"
        await asyncio.sleep(1)

    async def answer(request: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    routes = [
        Route("/answer", answer),
        Route("/live", resume_endpoint(lambda scope: scope["query_string"].decode())),
    ]
    app = resumable(Starlette(routes=routes), identify=user)
    async with opened(app, ANN, path="/answer") as first:
        await first.until_count(1, "message")
        await asyncio.sleep(0.5)
        async with opened(app, ANN, path="/live", query_string=b"a") as other:
            await other.until_end()
        assert texts(other) == ["1", "2"]
        assert_no_content(await read(app, ANN, path="/live", query_string=b"a"))


async def test_a_name_with_braces_and_slashes_is_a_text_like_any_other() -> None:
    async def answer(request: Request) -> Response:
        current_stream().name("{x}/\n:" + request.path_params["rest"])
        response: Response = StreamingResponse(events(), media_type="text/event-stream")
        return response

    async def events() -> Any:
        yield b"data: 1\n\n"
        await asyncio.sleep(5)

    inner = Starlette(
        routes=[
            Route("/answer/{rest:path}", answer),
            Route("/live/{rest:path}", resume_endpoint("{{x}}/\n:{rest}")),
        ]
    )
    app = resumable(Starlette(routes=[Mount("/v1", inner)]), identify=user)
    async with opened(app, ANN, path="/v1/answer/a/b") as first:
        await first.until_count(1, "message")
        assert texts(await read(app, ANN, path="/v1/live/a/b")) == ["1"]
        assert_no_content(await read(app, ANN, path="/v1/live/a"))


async def test_a_client_that_authorize_rejects_does_not_follow_a_named_stream() -> None:
    asked: list[str] = []

    async def authorize(scope: Scope, info: Any) -> bool:
        asked.append(info.path)
        return False

    app = named(Counting(6), authorize_resume=authorize)
    async with opened(app, ANN, path=ANSWER) as first:
        await first.until_count(1, "message")
        assert_no_content(await read(app, ANN, path=LIVE))
    assert asked == [ANSWER]


async def test_the_client_of_a_name_reconnects_if_the_store_is_unreachable() -> None:
    class Failing(MemoryStore):
        async def find_named(self, name: str) -> LogSnapshot | None:
            raise StoreError(f"{name} cannot be looked up")

    app = named(Counting(6), store=Failing())
    for exchange in (
        await read(app, ANN, path=LIVE),
        await resume(app, "B" * 22 + "-5", ANN, path=LIVE),
    ):
        assert (exchange.status, exchange.names) == (200, ["start"])
        assert exchange.retry is not None
        assert 1000 <= exchange.retry <= 2000
        assert exchange.ended
    assert exchange.last_event_id == "B" * 22 + "-5"


async def test_a_request_without_an_identity_finds_no_stream_and_a_warning_says_what_to_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = resumable(Starlette(routes=[Route("/live", resume_endpoint("x"))]))
    for _ in range(2):
        assert_no_content(await read(app, path="/live"))
    (line,) = [r.getMessage() for r in caplog.records if "no identity" in r.getMessage()]
    assert "identify" in line


async def test_a_resume_endpoint_needs_the_middleware() -> None:
    app = Starlette(routes=[Route("/live", resume_endpoint("x"))])
    with pytest.raises(RuntimeError, match="SSEMiddleware"):
        await read(app, path="/live")
    switched_off = marking(app, enabled=False)
    with pytest.raises(RuntimeError, match="SSEMiddleware"):
        await read(switched_off, path="/live")


async def test_a_resume_endpoint_accepts_a_get_and_the_methods_of_a_stop() -> None:
    app = resumable(resume_endpoint("x"), identify=user)
    for method, status in (("PUT", 405), ("TRACE", 405), ("OPTIONS", 204)):
        exchange = await handle(app, method=method, headers=EVENTSOURCE)
        assert (exchange.status, exchange.body) == (status, b"")
        assert exchange.headers[b"allow"] == b"GET, HEAD, POST, DELETE, OPTIONS"
    with pytest.raises(RuntimeError, match="websocket"):
        await resume_endpoint("x")({"type": "websocket"}, exchange.receive, exchange.send)


async def test_nothing_of_a_name_is_left_when_its_time_is_over() -> None:
    store = memory()
    app = named(Counting(3), store=store)
    await read(app, ANN, path=ANSWER)
    await asyncio.sleep(TTL + 1)
    assert (len(store), store.total_bytes, store._names) == (0, 0, {})


async def test_a_name_has_no_effect_if_nothing_is_kept() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().name("x")
        await PlainTextResponse("ok")(scope, receive, send)

    assert (await read(resumable(app))).body == b"ok"
    whole = await read(named(Counting(2), replay_max_events=0), ANN, path=ANSWER)
    assert whole.names == ["start", "message", "message", "complete"]


class _Endpoint:
    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _failing(send: Send) -> Send:
    sent: list[Any] = []

    async def failing(message: Any) -> None:
        sent.append(message)
        if len(sent) > 2:
            raise ValueError
        await send(message)

    return failing
