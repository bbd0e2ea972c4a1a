"""Streams that clients other than an `EventSource` resume by name, byte for byte, or stop."""

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sse_middleware import (
    ConfigurationError,
    SSEMiddleware,
    StoreError,
    current_stream,
    resume_endpoint,
    streaming,
)
from sse_middleware.protocol.parser import EventParser
from sse_middleware.stores.base import LogSnapshot
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stream.producer import Producer
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_of,
    stream_start,
)
from tests.support.resuming import living, memory, resumable, texts

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")
BOB = (b"authorization", b"Bearer bob")
CHUNKS = [
    b": hello\n\n",
    b"data: 1\n\n",
    b"event: token\r\ndata: 2\r\n\r\n",
    b"data: 3\n\ndata: 4\n\n",
    b": ping\n\n",
    b"retry: 10\ndata: 5\n\n",
]
WHOLE = b"".join(CHUNKS)
CHAT = "/chats/7"


class Chats:
    """An app with one answer for each chat, which is sent to a POST.

    Attributes:
        runs: the number of answers.
        ends: how they have ended.
    """

    def __init__(self, *chunks: bytes, names_at: str = "start", **endpoint: Any) -> None:
        self.chunks = chunks or tuple(CHUNKS)
        self.runs = 0
        self.ends: list[str] = []
        self._names_at = names_at
        live = resume_endpoint("chat:{chat}", **endpoint)
        self.app = Starlette(
            routes=[
                Route("/chats/{chat}", self.answer, methods=["POST", "GET"]),
                Route("/chats/{chat}/live", live, methods=["GET", "POST", "DELETE"]),
            ]
        )

    async def answer(self, request: Request) -> Response:
        self.runs += 1
        name = f"chat:{request.path_params['chat']}"
        if self._names_at == "start":
            current_stream().name(name)
        return StreamingResponse(self._events(name), media_type="text/event-stream")

    async def _events(self, name: str) -> Any:
        if self._names_at == "first event":
            await asyncio.sleep(1)
            current_stream().name(name)
        try:
            for chunk in self.chunks:
                yield chunk
                await asyncio.sleep(1)
                if self._names_at == "later":
                    current_stream().name(name)
        except BaseException:
            self.ends.append("cancelled")
            raise
        self.ends.append("finished")


def posted(app: Any, *headers: tuple[bytes, bytes], path: str = CHAT) -> Any:
    return running(app, Exchange(http_scope(method="POST", headers=[*headers], path=path)))


async def get(app: Any, *headers: tuple[bytes, bytes], query: bytes = b"") -> Exchange:
    return await handle(app, headers=[*headers], path=f"{CHAT}/live", query_string=query)


async def cut(app: Any, *headers: tuple[bytes, bytes], seconds: float) -> bytes:
    """Make a POST, whose client disconnects after some time; return what it has received."""
    async with posted(app, *headers) as exchange:
        await asyncio.sleep(seconds)
        exchange.disconnect()
        await asyncio.sleep(0.01)
        received: bytes = exchange.body
        await asyncio.sleep(30)
    return received


def assert_nothing(exchange: Exchange) -> None:
    assert (exchange.status, exchange.body, exchange.ended) == (204, b"", True)


@pytest.mark.parametrize("names_at", ["start", "first event"])
async def test_a_plain_client_gets_exactly_the_bytes_of_the_app(names_at: str) -> None:
    chats = Chats(names_at=names_at)
    app = resumable(chats.app)
    async with posted(app, ANN) as first:
        await asyncio.sleep(3.5)
        again = await get(app, ANN)
        assert again.body == WHOLE
        assert again.ended
        await first.until_end()
        assert first.body == WHOLE
    assert again.headers[b"x-stream-id"] == first.headers[b"x-stream-id"]
    assert chats.runs == 1


@pytest.mark.parametrize("seconds", [1.5, 2.5, 3.5, 5.5])
async def test_the_app_continues_and_the_rest_is_exact_after_a_cut(seconds: float) -> None:
    chats = Chats()
    app = resumable(chats.app)
    async with posted(app, ANN) as first:
        await asyncio.sleep(seconds)
        first.disconnect()
        await asyncio.sleep(0.1)
        received = first.body
        events = len(EventParser().feed(received))
        again = await get(app, ANN, query=b"after=%d" % events)
        sent = b"".join(CHUNKS[: int(seconds) + 1])
        loose = b": ping\n\n" if sent.endswith(b": ping\n\n") else b""  # precedes the next event
        assert received == sent
        assert received.removesuffix(loose) + again.body == WHOLE
    assert chats.ends == ["finished"]


@pytest.mark.parametrize("query", [b"after=2", b"starting_after=2", b"x=1&after=2"])
async def test_after_counts_the_events_of_the_app(query: bytes) -> None:
    app = resumable(Chats().app)
    async with posted(app, ANN):
        await asyncio.sleep(1)
        again = await get(app, ANN, query=query)
    assert again.body == b"".join(CHUNKS[3:])


@pytest.mark.parametrize("value", [b"", b"-1", b"x", b"%EF%BC%91", b"1" * 400, b"1.0"])
async def test_an_odd_position_is_the_beginning(value: bytes) -> None:
    app = resumable(Chats().app)
    async with posted(app, ANN):
        await asyncio.sleep(1)
        assert (await get(app, ANN, query=b"after=" + value)).body == WHOLE


async def test_an_eventsource_gets_ids_and_control_events_of_a_plain_stream() -> None:
    app = resumable(Chats().app, heartbeat_interval=60)
    async with posted(app, ANN):
        await asyncio.sleep(1)
        live = await get(app, *EVENTSOURCE, ANN)
    assert live.names == ["start", "message", "token", "message", "message", "message", "complete"]
    assert all(event.id for event in live.events)


async def test_a_plain_client_gets_the_bytes_of_the_stream_of_an_eventsource() -> None:
    chats = Chats()
    app = resumable(chats.app)
    exchange = Exchange(http_scope(headers=[*EVENTSOURCE, ANN], path=CHAT))
    async with running(app, exchange):
        await asyncio.sleep(2.5)
        assert (await get(app, ANN)).body == WHOLE
        await exchange.until_end()
    assert texts(exchange) == ["1", "3", "4", "5"]


@pytest.mark.parametrize("who", [[BOB], []], ids=["another", "none"])
async def test_another_identity_finds_stops_and_takes_over_nothing(who: Any) -> None:
    chats = Chats()
    app = resumable(chats.app)
    async with posted(app, ANN) as first, posted(app, *who):  # the same name
        await asyncio.sleep(1.5)
        for method in ("POST", "DELETE"):
            path = f"{CHAT}/live"
            assert_nothing(await handle(app, method=method, headers=[*who], path=path))
        await asyncio.sleep(0.5)
        mine = await get(app, ANN)
        assert mine.headers[b"x-stream-id"] == first.headers[b"x-stream-id"]
        assert mine.body == WHOLE


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_stop_ends_the_app_and_is_idempotent(method: str) -> None:
    chats = Chats()
    app = resumable(chats.app)
    async with posted(app, ANN) as first:
        await asyncio.sleep(1.5)
        for _ in range(2):
            stop = await handle(app, method=method, headers=[ANN], path=f"{CHAT}/live")
            assert_nothing(stop)
            await asyncio.sleep(2)
        assert chats.ends == ["cancelled"]
        assert first.body == b"".join(CHUNKS[:2])
    assert_nothing(await get(app, ANN))


async def test_a_page_of_another_site_stops_nothing() -> None:
    chats = Chats()
    app = resumable(chats.app)
    foreign = [ANN, (b"sec-fetch-site", b"cross-site"), (b"origin", b"https://evil.example")]
    async with posted(app, ANN) as first:
        await asyncio.sleep(1.5)
        assert_nothing(await handle(app, method="POST", headers=foreign, path=f"{CHAT}/live"))
        await first.until_end()
    assert first.body == WHOLE


async def test_an_ended_stream_is_replayed_only_if_the_endpoint_says_so() -> None:
    for finished, expected in ((None, b""), ("replay", WHOLE)):
        app = resumable(Chats(finished=finished).app)
        async with posted(app, ANN) as first:
            await first.until_end()
        again = await get(app, ANN)
        assert (again.status, again.body) == (200 if expected else 204, expected)
        rest = await get(app, ANN, query=b"after=4")
        assert rest.body == b"".join(CHUNKS[4:])
        assert_nothing(await get(app, ANN, query=b"after=6"))
    with pytest.raises(ConfigurationError, match="replay"):
        resume_endpoint("x", finished="always")  # type: ignore[arg-type]


async def test_a_client_that_would_miss_events_gets_none() -> None:
    chats = Chats(*[b"data: %d\n\n" % number for number in range(20)])
    app = resumable(chats.app, store=memory(max_events=8))
    async with posted(app, ANN):
        await asyncio.sleep(15)
        assert_nothing(await get(app, ANN))
        late = await get(app, ANN, query=b"after=12")
        assert late.body == b"".join(chats.chunks[12:])


@pytest.mark.parametrize("seconds", [0.5, 20])
async def test_a_name_that_comes_after_the_end_keeps_nothing(seconds: float) -> None:
    """Its client has left, or has blocked a write for too long, before the first event."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/live":
            await live(scope, receive, send)
            return
        await receive()
        listening = asyncio.ensure_future(receive())
        await send(stream_start())
        if seconds > 1:
            await send(body(b": ping\n\n"))
        await listening
        current_stream().name("late")
        await send(body(b"data: 1\n\n"))
        await send(body(b"", more=False))

    live = resume_endpoint("late", finished="replay")
    store = memory()
    kept = resumable(app, store=store, send_timeout=5)
    exchange = Exchange(http_scope(method="POST", headers=[ANN]))
    async with running(kept, exchange):
        await asyncio.sleep(0.1)
        if seconds > 1:
            exchange.block()
        await asyncio.sleep(seconds)
        exchange.disconnect()
        assert exchange.task is not None
        await asyncio.wait([exchange.task], timeout=30)
        assert exchange.task.done()
    assert len(store) == 0
    assert (await handle(kept, path="/live", headers=[ANN])).status == 204


async def test_a_name_that_comes_too_late_keeps_nothing() -> None:
    chats = Chats(names_at="later")
    app = resumable(chats.app)
    async with posted(app, ANN) as first:
        await asyncio.sleep(2.5)
        assert_nothing(await get(app, ANN))
        first.disconnect()
        await asyncio.sleep(2)
    assert chats.ends == ["cancelled"]


async def test_without_a_name_a_plain_client_that_leaves_ends_its_app() -> None:
    chats = Chats(names_at="never")
    app = resumable(chats.app)
    assert await cut(app, ANN, seconds=1.5) == b"".join(CHUNKS[:2])
    assert chats.ends == ["cancelled"]


async def test_a_mark_can_opt_out() -> None:
    chats = Chats()
    app = SSEMiddleware(chats.app, marks={"/chats/*": streaming(keep=False)}, store=memory())
    async with posted(app, ANN) as first:
        await asyncio.sleep(1.5)
        assert_nothing(await get(app, ANN))
        first.disconnect()
        await asyncio.sleep(2)
    assert chats.ends == ["cancelled"]


@pytest.mark.parametrize(
    "name", ["chat:{chat}", lambda scope: f"chat:{scope['path_params']['chat']}"], ids=["text", "f"]
)
async def test_a_mark_can_name_the_streams_of_its_endpoint(name: Any) -> None:
    chats = Chats(names_at="never")
    app = SSEMiddleware(chats.app, marks={"/chats/*": streaming(stream_name=name)}, store=memory())
    async with posted(app, ANN):
        await asyncio.sleep(1.5)
        assert (await get(app, ANN)).body == WHOLE


@pytest.mark.parametrize("name", ["{unknown}", lambda _: 1 / 0, lambda _: "", lambda _: "x" * 201])
async def test_a_name_that_fails_is_logged_and_the_stream_has_none(
    name: Any, caplog: pytest.LogCaptureFixture
) -> None:
    chats = Chats(names_at="never")
    app = SSEMiddleware(chats.app, marks={"/chats/*": streaming(stream_name=name)}, store=memory())
    async with posted(app, ANN) as first:
        await asyncio.sleep(1.5)
        assert_nothing(await get(app, ANN))
        await first.until_end()
    assert first.body == WHOLE
    assert "stream_name has failed" in caplog.text


async def test_a_stream_of_openai_ends_in_its_form_for_a_client_that_resumes() -> None:
    chunk = {"object": "chat.completion.chunk", "id": "c", "created": 1, "model": "m"}
    data = b"data: %b\n\n" % json.dumps(chunk).encode()
    app = resumable(Chats(*[data] * 10).app, stream_max_seconds=4)
    async with posted(app, ANN):
        await asyncio.sleep(1.5)
        again = await get(app, ANN)
    assert again.body.startswith(data * 4)
    assert again.body.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"length"' in again.body.replace(b" ", b"")


async def test_a_plain_client_gets_503_if_the_store_is_unreachable() -> None:
    class Failing(MemoryStore):
        async def find_named(self, name: str) -> LogSnapshot | None:
            raise StoreError(f"{name} cannot be looked up")

    app = resumable(Chats().app, store=Failing())
    assert (await get(app, ANN)).status == 503
    stop = await handle(app, method="DELETE", headers=[ANN], path=f"{CHAT}/live")
    assert stop.status == 503


async def test_nothing_is_left_of_streams_with_names() -> None:
    before = {id(other) for other in living(Producer)}  # of tests that have failed tasks

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().name("x")
        await stream_of(*CHUNKS)(scope, receive, send)

    app = resumable(answer)
    for headers in ([ANN], []):
        first = await handle(app, method="POST", headers=headers)
        assert first.body == WHOLE
    await asyncio.sleep(1)  # the tick
    assert {id(one) for one in living(Producer)} <= before
