"""Streams that their client finds by the public id of the response, and other identities do not."""

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, current_stream, resume_endpoint, streaming
from sse_middleware.protocol.event_ids import new_secret, stream_id
from tests.support.asgi import Exchange, handle, http_scope, running
from tests.support.resuming import memory, opened, read, resumable, texts

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")
BOB = (b"authorization", b"Bearer bob")
LIVE = "/streams"
NAMED = "/chats/7/live"
WHOLE = b"".join(b"data: %d\n\n" % number for number in range(1, 6))


async def numbers(request: Request) -> Response:
    """Count to five, one number a second; `?name=` names the stream."""
    if name := request.query_params.get("name"):
        current_stream().name(name)

    async def events() -> Any:
        for number in range(1, 6):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(1)

    return StreamingResponse(events(), media_type="text/event-stream")


def streams(**options: Any) -> SSEMiddleware:
    """Return an app whose streams are kept, for clients of all kinds, and its two endpoints."""
    app = Starlette(
        routes=[
            Route("/answer", numbers, methods=["GET", "POST"]),
            Route("/chats/{chat}/live", resume_endpoint("chat:{chat}")),
            Route(LIVE, resume_endpoint(finished="replay")),
        ]
    )
    return resumable(app, **{"keep": True, **options})


def posted(app: SSEMiddleware, *headers: tuple[bytes, bytes]) -> Any:
    scope = http_scope(method="POST", headers=[*headers], path="/answer")
    return running(app, Exchange(scope))


async def ask(
    app: SSEMiddleware,
    public_id: bytes,
    *headers: tuple[bytes, bytes],
    method: str = "GET",
    path: str = LIVE,
    **scope: Any,
) -> Exchange:
    found = [*headers, (b"x-stream-id", public_id)]
    return await handle(app, headers=found, method=method, path=path, **scope)


async def id_of(exchange: Exchange) -> bytes:
    await exchange._until(lambda: bool(exchange.messages), "a response start")
    found: bytes = exchange.headers[b"x-stream-id"]
    return found


def answer_of(exchange: Exchange) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    headers = [pair for pair in exchange.start["headers"] if pair[0] != b"x-trace-id"]
    return exchange.status, exchange.body, headers


async def test_a_plain_stream_is_read_by_its_public_id_while_it_runs_and_after_its_end() -> None:
    app = streams()
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        await asyncio.sleep(1.5)
        again = await ask(app, public_id, ANN)
        await first.until_end()
        rest = await ask(app, public_id, ANN, query_string=b"after=3")
        over = await ask(app, public_id, ANN, path=NAMED)  # sends no finished stream
    assert again.body == first.body == WHOLE
    assert again.headers[b"x-stream-id"] == public_id
    assert rest.body == WHOLE[WHOLE.index(b"data: 4") :]
    assert answer_of(over)[:2] == (204, b"")


async def test_a_plain_stream_continues_without_its_client_if_keep_is_set() -> None:
    app = streams()
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        first.disconnect()
        await asyncio.sleep(1.5)
        assert (await ask(app, public_id, ANN)).body == WHOLE


@pytest.mark.parametrize("options", [{"keep": False}, {"replay_max_events": 0}], ids=str)
async def test_a_stream_that_is_not_kept_is_not_found(options: dict[str, Any]) -> None:
    app = streams(**options)
    async with posted(app, ANN) as first:
        assert (await ask(app, await id_of(first), ANN)).status == 204


async def test_a_plain_stream_without_a_name_is_not_kept_by_default() -> None:
    app = resumable(streams().app)
    async with posted(app, ANN) as first:
        assert (await ask(app, await id_of(first), ANN)).status == 204


async def test_a_mark_can_keep_the_streams_of_its_endpoint() -> None:
    routes = [
        Route("/answer", streaming(keep=True)(numbers), methods=["POST"]),
        Route(LIVE, resume_endpoint()),
    ]
    app = SSEMiddleware(Starlette(routes=routes), store=memory())
    async with posted(app, ANN) as first:
        again = await ask(app, await id_of(first), ANN)
    assert again.body == WHOLE


async def test_an_eventsource_reads_its_stream_by_the_id_in_its_start() -> None:
    app = streams()
    async with opened(app, ANN, path="/answer") as first:
        await first.until_count(2, "message")
        public_id = first.headers[b"x-stream-id"]
        cursor = (b"last-event-id", first.last_event_id.encode())
        other = await read(app, ANN, (b"x-stream-id", public_id), path=LIVE)
        rest = await read(app, ANN, cursor, (b"x-stream-id", public_id), path=LIVE)
    assert texts(other) == ["1", "2", "3", "4", "5"]
    assert texts(rest) == ["3", "4", "5"]
    assert other.events[0].event == rest.events[0].event == "start"


async def test_the_public_id_has_precedence_over_the_name_of_the_endpoint() -> None:
    app = streams()
    async with (
        opened(app, ANN, path="/answer", query_string=b"name=chat:7"),
        posted(app, ANN) as second,
    ):
        public_id = await id_of(second)
        found = await ask(app, public_id, ANN, path=NAMED)
        assert found.headers[b"x-stream-id"] == public_id


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_stream_is_stopped_by_its_public_id(method: str) -> None:
    app = streams()
    async with opened(app, ANN, path="/answer") as first:
        await first.until("start")
        for _ in range(2):
            stopped = await ask(app, first.headers[b"x-stream-id"], ANN, method=method)
            assert answer_of(stopped)[:2] == (204, b"")
        await first.until_end()
    assert '"reason": "cancelled"' in first.events[-1].data.replace('":"', '": "')


UNKNOWN = stream_id(new_secret()).encode()
MALFORMED = (b"", b"x", UNKNOWN.upper(), UNKNOWN + b"0", b"\xff" * 32, UNKNOWN + b"\n", b"*" * 9999)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("path", [LIVE, NAMED])
async def test_another_identity_gets_the_response_of_an_unknown_id(method: str, path: str) -> None:
    app = streams()
    async with posted(app, ANN) as first, opened(app, path="/answer") as anonymous:
        public_id = await id_of(first)
        unknown = answer_of(await ask(app, UNKNOWN, ANN, method=method, path=path))
        assert unknown[:2] == (204, b"")
        asked = [
            (public_id, (BOB,)),
            (public_id, ()),
            (public_id, ((b"authorization", b"Bearer undefined"),)),
            (public_id.upper(), (ANN,)),
            (await id_of(anonymous), (ANN,)),
            (await id_of(anonymous), ()),
            *((public_id, (ANN,)) for public_id in MALFORMED),
        ]
        for sent, headers in asked:
            got = await ask(app, sent, *headers, method=method, path=path)
            assert answer_of(got) == unknown
        await first.until_end()
    assert first.body == WHOLE


async def test_two_public_ids_are_none() -> None:
    app = streams()
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        assert (await ask(app, public_id, ANN, (b"x-stream-id", public_id))).status == 204


async def test_the_public_id_in_the_address_selects_nothing() -> None:
    app = streams()
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        query = b"x-stream-id=%b&stream_id=%b" % (public_id, public_id)
        got = await handle(app, headers=[ANN], path=LIVE, query_string=query)
    assert got.status == 204


async def test_authorize_resume_can_deny_a_public_id() -> None:
    allowed = [True]
    app = streams(authorize_resume=lambda *_: allowed[0])
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        assert (await ask(app, public_id, ANN)).status == 200
        allowed[0] = False
        assert (await ask(app, public_id, ANN)).status == 204


async def test_a_cross_site_page_stops_nothing_by_a_public_id() -> None:
    app = streams()
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        site = (b"sec-fetch-site", b"cross-site")
        stop = await ask(
            app, public_id, ANN, site, (b"origin", b"https://evil.example"), method="POST"
        )
        assert stop.status == 204
        await first.until_end()
    assert first.body == WHOLE


# HEAD


@pytest.mark.parametrize("query", [b"", b"after=3", b"after=5", b"after=99"])
async def test_a_head_gets_the_status_and_the_headers_of_a_get(query: bytes) -> None:
    app = streams()
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        await asyncio.sleep(2.5)
        for _ in range(2):  # while it runs, and after its end
            head = await ask(app, public_id, ANN, method="HEAD", query_string=query)
            get = await ask(app, public_id, ANN, query_string=query)
            assert answer_of(head)[::2] == answer_of(get)[::2]
            assert (head.body, head.ended) == (b"", True)
            await first.until_end()


@pytest.mark.parametrize("is_ended", [False, True])
async def test_a_head_of_an_eventsource_is_like_its_get(is_ended: bool) -> None:  # noqa: FBT001
    app = streams()
    async with opened(app, ANN, path="/answer") as first:
        await first.until_count(2, "message")
        cursor = (b"last-event-id", first.last_event_id.encode())
        if is_ended:
            await first.until_end()
        given = (ANN, cursor, (b"x-stream-id", first.headers[b"x-stream-id"]))
        head = await read(app, *given, path=LIVE, method="HEAD")
        get = await read(app, *given, path=LIVE)
    assert answer_of(head)[::2] == answer_of(get)[::2]
    assert (head.status, head.body) == (200, b"")


async def test_a_head_follows_no_stream_and_is_no_reader() -> None:
    app = streams(max_readers=1)
    async with posted(app, ANN) as first:
        public_id = await id_of(first)
        first.disconnect()
        await asyncio.sleep(1)
        follows: list[str] = []
        store: Any = app._context.store
        store.follow = lambda *followed: follows.append(str(followed))
        for _ in range(3):
            assert (await ask(app, public_id, ANN, method="HEAD")).status == 200
        assert (follows, len(app._context.readers)) == ([], 0)
        del store.follow
        assert (await ask(app, public_id, ANN)).body == WHOLE
