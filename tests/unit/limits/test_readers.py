"""The readers of streams are limited, for each stream and for the process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route

from sse_middleware import SSEMiddleware, resume_endpoint, streaming
from sse_middleware.stream.readers import ReaderPool, reader_limit
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running, stream_of
from tests.support.limiting import ANY, PLAIN, answer, asked, tab
from tests.support.resuming import Counting, opened, resumable, returning, texts, value

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")
LIVE = "/live"


def limited(count: int = 9, **options: Any) -> SSEMiddleware:
    """Return an app with a counter and an endpoint that follows it."""
    routes = [
        Route("/", Counting(count), methods=["GET"]),
        Route(LIVE, resume_endpoint()),
    ]
    options = {"keep": True, "stream_max_seconds": None, **options}
    return resumable(Starlette(routes=routes), **options)


async def started(exchange: Exchange) -> tuple[bytes, bytes]:
    """Wait for the response start, and return the header that selects the stream."""
    await exchange._until(lambda: bool(exchange.messages), "a response start")
    return b"x-stream-id", exchange.headers[b"x-stream-id"]


def test_a_pool_counts_the_readers_of_each_stream_and_of_all() -> None:
    pool = ReaderPool(2, 3)
    assert [pool.take("a") for _ in range(3)] == ["", "", "readers"]
    assert (pool.limit_for("a"), pool.limit_for("b"), pool.is_full) == ("readers", "", False)
    assert [pool.take("b"), pool.take("b"), pool.take("c")] == ["", "process", "process"]
    pool.release("a")
    assert (len(pool), pool.is_full, pool.take("c")) == (2, False, "")
    for name in "abc":
        pool.release(name)
    assert (len(pool), pool._readers) == (0, {})


def test_a_pool_is_exact_if_several_threads_use_it() -> None:
    pool = ReaderPool(50, 70)

    def take(number: int) -> str:
        return pool.take("a" if number % 2 else "b")

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(take, range(200)))
    assert taken.count("") == len(pool) == 70


@pytest.mark.parametrize(
    ("max_streams", "max_readers", "limit"), [(None, 5, None), (1, 100, 100), (2000, 100, 2000)]
)
def test_the_readers_of_a_process_are_as_many_as_its_streams_or_those_of_one_stream(
    max_streams: int | None, max_readers: int, limit: int | None
) -> None:
    assert reader_limit(max_streams, max_readers) == limit


async def test_a_plain_reader_over_the_limit_gets_429_until_another_leaves() -> None:
    registry = CollectorRegistry()
    app = limited(max_readers=2, registry=registry)
    async with asked(app, ANY, ANN) as first, AsyncExitStack() as stack:
        selected = await started(first)
        readers = [
            await stack.enter_async_context(asked(app, ANY, ANN, selected, path=LIVE))
            for _ in range(2)
        ]
        for reader in readers:
            assert await answer(reader) == (200, "")
        for _ in range(3):
            async with asked(app, ANY, ANN, selected, path=LIVE) as rejected:
                assert await answer(rejected) == (429, "too_many_readers")
                assert rejected.headers[b"retry-after"] == b"5"
        head = await handle(app, headers=[ANN, selected], path=LIVE, method="HEAD")
        assert (head.status, head.body) == (429, b"")
        assert int(head.headers[b"content-length"]) > 0
        eager = await handle(app, headers=[ANN, *EVENTSOURCE, selected], path=LIVE, method="HEAD")
        assert (eager.status, eager.body) == (200, b"")
        readers[0].disconnect()
        await asyncio.sleep(0.01)
        async with asked(app, ANY, ANN, selected, path=LIVE) as admitted:
            assert await answer(admitted) == (200, "")
            await first.until_end()
            await admitted.until_end()
        assert admitted.body == first.body
    assert len(app._context.readers) == 0
    labels = {"route": "/", "reason": "readers"}
    assert value(registry, "sse_rejected_total", **labels) == 5


@pytest.mark.parametrize("by", ["event id", "public id"])
async def test_an_eventsource_over_the_limit_comes_back_with_its_id(by: str) -> None:
    app = limited(max_readers=1)
    async with tab(app, ANN) as first:
        await first.until_count(2, "message")
        cursor = first.last_event_id
        more = [ANN] if by == "event id" else [ANN, await started(first)]
        path = "/" if by == "event id" else LIVE
        async with returning(app, cursor, *more, path=path) as reader:
            await reader.until("message")
            put_off = await _resumed(app, cursor, *more, path=path)
            assert (put_off.status, put_off.names) == (200, ["start"])
            assert put_off.last_event_id == cursor
            assert put_off.retry is not None
            assert 5000 <= put_off.retry <= 10_000
        rest = await _resumed(app, put_off.last_event_id, *more, path=path)
    assert texts(rest) == [str(number) for number in range(3, 10)]


async def _resumed(app: SSEMiddleware, cursor: str, *headers: Any, path: str) -> Exchange:
    given = [*EVENTSOURCE, (b"last-event-id", cursor.encode()), *headers]
    return await handle(app, headers=given, path=path)


@pytest.mark.parametrize(
    ("headers", "outcome"), [(EVENTSOURCE, (200, "")), (PLAIN, (429, "too_many_readers"))]
)
async def test_a_client_that_resumes_by_an_id_of_the_app_gets_what_it_understands(
    headers: Any, outcome: tuple[int, str]
) -> None:
    numbers = stream_of(*(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(1, 9)), pause=1)
    marks = {"*": streaming(ids="app", stream_key=lambda _: "k")}
    app = resumable(numbers, marks=marks, max_readers=1)
    async with tab(app, ANN) as first:
        await first.until_count(2, "message")
        cursor = (b"last-event-id", b"1")
        async with asked(app, headers, ANN, cursor) as reader:
            assert await answer(reader) == (200, "")
            async with asked(app, headers, ANN, cursor) as second:
                assert await answer(second) == outcome
                await second.until_end()
    assert second.names == (["start"] if headers is EVENTSOURCE else [])


@pytest.mark.parametrize("action", ["reject", "evict_oldest"])
async def test_an_eventsource_is_put_off_whatever_the_limit_action_is(action: str) -> None:
    app = limited(max_readers=1, limit_action=action, max_streams=9)
    async with tab(app, ANN) as first:
        await first.until("message")
        cursor = first.last_event_id
        async with returning(app, cursor, ANN) as reader:
            await reader.until("start")
            assert (await _resumed(app, cursor, ANN, path="/")).status == 200


async def test_one_stream_cannot_have_two_thousand_connections() -> None:
    app = limited(60, max_streams=1)
    async with tab(app, ANN) as first, AsyncExitStack() as stack:
        await first.until("message")
        selected = await started(first)
        cursor = first.last_event_id
        for _ in range(70):
            await stack.enter_async_context(asked(app, ANY, ANN, selected, path=LIVE))
            await stack.enter_async_context(returning(app, cursor, ANN))
        await asyncio.sleep(1)
        assert len(app._context.readers) == 100
    assert len(app._context.readers) == 0


async def test_the_readers_of_many_streams_are_limited_by_those_of_the_process() -> None:
    app = limited(60, max_streams=3, max_readers=2)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(asked(app, ANY, ANN)) for _ in range(3)]
        outcomes = []
        for stream in (streams[0], *streams):
            selected = await started(stream)
            reader = await stack.enter_async_context(asked(app, ANY, ANN, selected, path=LIVE))
            outcomes.append(await answer(reader))
        assert outcomes == [(200, "")] * 3 + [(503, "server_full")]


async def test_a_lingering_stream_is_resumed_although_all_streams_are_open() -> None:
    """Readers and streams count apart: a client that is cut returns, and is not rejected."""
    app = limited(9, max_streams=1, max_readers=1)
    async with tab(app, ANN) as first:
        await first.until_count(2, "message")
        first.disconnect()
        await asyncio.sleep(0.1)
        async with tab(app, (b"authorization", b"Bearer bob"), path="/") as second:
            await second.until("message")
            rest = await _resumed(app, first.last_event_id, ANN, path="/")
    assert texts(rest)[0] == "3"


async def test_requests_that_wait_for_the_stream_of_an_equal_one_are_readers() -> None:
    marks = {"*": streaming(attach="running")}
    thinking = stream_of(b"data: 1\n\n", pause=3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(5)
        await thinking(scope, receive, send)

    attaching = resumable(app, marks=marks, max_streams=1, max_readers=2)
    async with asked(attaching, ANY, ANN) as first, AsyncExitStack() as stack:
        await asyncio.sleep(0.1)
        waiting = [await stack.enter_async_context(asked(attaching, ANY, ANN)) for _ in range(2)]
        await asyncio.sleep(0.1)
        for _ in range(3):
            rejected = await handle(attaching, headers=[*ANY, ANN])
            assert (rejected.status, bool(first.messages)) == (503, False)
        for exchange in (first, *waiting):
            await exchange.until_end()
            assert exchange.body == b"data: 1\n\n"
    assert len(attaching._context.readers) == 0


async def test_a_reader_that_is_cancelled_or_fails_counts_no_longer() -> None:
    app = limited(60, max_readers=1)
    async with opened(app, ANN) as first:
        await first.until("message")
        selected = await started(first)
        scope = http_scope(path=LIVE, headers=[ANN, selected])
        async with running(app, Exchange(scope)) as cancelled:
            await started(cancelled)
        broken = Exchange({**scope})
        broken.refusal = OSError("gone")
        async with running(app, broken):
            await asyncio.sleep(1)
        assert len(app._context.readers) == 0


async def test_no_limit_of_streams_is_no_limit_of_the_process() -> None:
    app = limited(60, max_readers=1)
    async with AsyncExitStack() as stack:
        for _ in range(5):
            stream = await stack.enter_async_context(asked(app, ANY, ANN))
            selected = await started(stream)
            reader = await stack.enter_async_context(asked(app, ANY, ANN, selected, path=LIVE))
            assert await answer(reader) == (200, "")
        assert len(app._context.readers) == 5
