"""The event stream of an upstream service, over real sockets and with both clients."""

import asyncio
import gzip
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sse_middleware import ConfigurationError, Event, SSEMiddleware, streaming
from sse_middleware.sources import Source, UpstreamError, fallback, started, upstream
from tests.support.asgi import Exchange, handle, http_scope, running
from tests.support.upstreams import Answer, Upstream, Visit, upstream_service
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

BODY = (
    b"\xef\xbb\xbf: hi\n\nid: 1\nevent: a\ndata: 1\n\nretry: 5\r\n\r\n"
    b"data: \xf0\x9f\x8e\x88\rdata\r\r"
)
EVENTS = [Event("1", event="a", id="1"), Event("\N{BALLOON}\n")]


@pytest.fixture
def anyio_backend() -> str:
    """Use real time, because the upstream has real sockets."""
    return "asyncio"


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    library: Any = request.param
    async with library.AsyncClient(timeout=HANG_SECONDS) as client:
        yield client


async def whole(visit: Visit) -> None:
    await visit.start()
    await visit.chunk(BODY)
    await visit.end()


def ask(client: Any, service: Upstream) -> Any:
    return client.build_request("POST", f"{service.url}/v1/chat?key=secret", json={"stream": True})


def read_from(client: Any, service: Upstream, **options: Any) -> AsyncGenerator[Any, None]:
    events: AsyncGenerator[Any, None] = upstream(client, ask(client, service), **options)
    return events


async def read(client: Any, answer: Answer, **options: Any) -> list[Any]:
    async with upstream_service(answer) as service:
        return [item async for item in read_from(client, service, **options)]


@pytest.mark.parametrize("size", [1, 7, len(BODY)])
async def test_the_bytes_are_those_of_the_upstream_in_any_chunking(client: Any, size: int) -> None:
    async def in_parts(visit: Visit) -> None:
        await visit.start()
        for start in range(0, len(BODY), size):
            await visit.chunk(BODY[start : start + size])
        await visit.chunk(b"data: incomplete")
        await visit.end()

    items = await read(client, in_parts)
    assert b"".join(items) == BODY + b"data: incomplete"
    assert await read(client, in_parts, parse=True) == EVENTS


async def test_each_item_ends_between_two_events(client: Any) -> None:
    async with (
        upstream_service(_in_halves) as service,
        aclosing(upstream(client, ask(client, service))) as items,
    ):
        assert await anext(items) == b"data: 1\n\n"
        assert await anext(items) == b"data: 2\n\n"


async def _in_halves(visit: Visit) -> None:
    await visit.start()
    for part in (b"data", b": 1\n\ndata: ", b"2\n", b"\nda"):
        await visit.chunk(part)
    await visit.is_closed.wait()


async def test_a_compressed_stream_is_decompressed(client: Any) -> None:
    async def compressed(visit: Visit) -> None:
        await visit.start(b"content-encoding: gzip\r\n")
        await visit.chunk(gzip.compress(BODY))
        await visit.end()

    assert b"".join(await read(client, compressed)) == BODY


@pytest.mark.parametrize(
    ("head", "status", "upstream_status"),
    [
        (b"HTTP/1.1 500 Oops\r\n", 502, 500),
        (b"HTTP/1.1 401 No\r\nretry-after: 5\r\n", 502, 401),
        (b"HTTP/1.1 302 Away\r\nlocation: /\r\n", 502, 302),
        (b"HTTP/1.1 204 Nothing\r\n", 502, 204),
        (b"HTTP/1.1 400 Bad\r\n", 400, 400),
        (b"HTTP/1.1 429 Slow\r\nretry-after: 20\r\n", 429, 429),
        (b"HTTP/1.1 503 Down\r\nretry-after: tomorrow\r\n", 503, 503),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", 502, 200),
    ],
)
async def test_an_answer_that_is_no_event_stream_is_a_status(
    client: Any, head: bytes, status: int, upstream_status: int
) -> None:
    async def refuse(visit: Visit) -> None:
        await visit.send(head + b"connection: close\r\n")
        await visit.send(b"content-length: 9000\r\n\r\n" + b'{"e": 1}\n' * 1000)

    if upstream_status == 204:
        head += b"content-type: text/html\r\n"
    with pytest.raises(UpstreamError) as caught:
        await read(client, refuse)
    exc = caught.value
    assert (exc.status_code, exc.upstream_status) == (status, upstream_status)
    assert (exc.headers or {}) == ({"Retry-After": "20"} if status == 429 else {})
    assert exc.body == (b"" if upstream_status == 204 else (b'{"e": 1}\n' * 1000)[:4096])
    assert "127.0.0.1" in str(exc)
    assert "secret" not in str(exc)


async def test_a_body_of_an_error_that_never_ends_is_not_awaited(client: Any) -> None:
    async def refuse(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nstart")
        await visit.is_closed.wait()

    with pytest.raises(UpstreamError) as caught:
        await read(client, refuse)
    assert caught.value.body == b"start"


async def test_an_upstream_that_cannot_be_reached_is_a_status(client: Any) -> None:
    async with upstream_service(whole) as service:
        request = ask(client, service)
    with pytest.raises(UpstreamError, match="ConnectError") as caught:
        [item async for item in upstream(client, request)]
    assert caught.value.status_code == 502


@pytest.mark.parametrize("starts", [False, True])
async def test_a_time_out_of_the_client_is_504(client: Any, starts: bool) -> None:  # noqa: FBT001 - a parameter
    async def silent(visit: Visit) -> None:
        if starts:
            await visit.start()
        await visit.is_closed.wait()

    client.timeout = 0.2
    with pytest.raises(UpstreamError, match="ReadTimeout") as caught:
        await read(client, silent)
    assert caught.value.status_code == 504


@pytest.mark.parametrize("parse", [False, True])
async def test_a_stream_that_is_cut_ends_in_an_error_without_half_an_event(
    client: Any,
    parse: bool,  # noqa: FBT001 - a parameter
) -> None:
    async def cut(visit: Visit) -> None:
        await visit.start()
        await visit.chunk(b"data: 1\n\ndata: ha")
        visit.cut()

    items = []
    async with upstream_service(cut) as service:
        with pytest.raises(UpstreamError, match="RemoteProtocolError"):
            async for item in read_from(client, service, parse=parse):
                items.append(item)  # noqa: PERF401 - the items before the failure
    assert items == [Event("1") if parse else b"data: 1\n\n"]


async def test_an_event_over_the_limit_is_passed_on_in_parts_or_cannot_be_parsed(
    client: Any,
) -> None:
    long = b"data: " + b"x" * 5000 + b"\n\n"

    async def flood(visit: Visit) -> None:
        await visit.start()
        for start in range(0, len(long), 100):
            await visit.chunk(long[start : start + 100])
        await visit.end()

    assert b"".join(await read(client, flood, max_event_bytes=1024)) == long
    with pytest.raises(UpstreamError, match="an event of over 1024 bytes"):
        await read(client, flood, parse=True, max_event_bytes=1024)


@pytest.mark.parametrize("parse", [False, True])
@pytest.mark.parametrize("is_reading", [False, True])
async def test_the_upstream_is_closed_with_the_iterator(
    client: Any,
    parse: bool,  # noqa: FBT001 - a parameter
    is_reading: bool,  # noqa: FBT001 - a parameter
) -> None:
    async with upstream_service(_in_halves) as service:
        events = read_from(client, service, parse=parse)
        await anext(events)
        (visit,) = service.visits
        if is_reading:
            await anext(events)
            task = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            await events.aclose()
        await asyncio.wait_for(visit.is_closed.wait(), HANG_SECONDS)


async def test_a_slow_consumer_slows_the_upstream_down(client: Any) -> None:
    sent = 0

    async def flood(visit: Visit) -> None:
        nonlocal sent
        await visit.start()
        while True:
            await visit.chunk(b"data: %b\n\n" % (b"x" * 65536))
            sent += 1

    async with (
        upstream_service(flood) as service,
        aclosing(upstream(client, ask(client, service))) as items,
    ):
        await anext(items)
        before = -1
        while sent != before:  # until all buffers are full
            before = sent
            await asyncio.sleep(0.2)
        assert sent * 65536 < 64 << 20
        read_bytes = 0
        while sent == before:  # the upstream continues
            read_bytes += len(await anext(items))
        assert read_bytes


def test_another_client_is_an_error_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"client is .*, allowed is an httpx.AsyncClient"):
        upstream(httpx.Client(), None)  # type: ignore[call-overload]


def test_a_subclass_is_a_client() -> None:
    class Client(httpx2.AsyncClient):
        pass

    upstream(Client(), None)


def chat_app(client: Any, *services: Upstream, mark: Any = streaming) -> SSEMiddleware:
    async def request(service: Upstream) -> AsyncIterator[bytes]:
        return upstream(client, ask(client, service))

    ladder = [Source(f"model {n}", request) for n, _ in enumerate(services)]

    async def chat(_: Request) -> StreamingResponse:
        calls = [source(service) for source, service in zip(ladder, services, strict=True)]
        answer = fallback(*calls, first_event_timeout=HANG_SECONDS)
        return StreamingResponse(await started(answer), media_type="text/event-stream")

    return SSEMiddleware(Starlette(routes=[Route("/chat", mark(chat))]))


async def test_a_client_gets_the_answer_of_the_second_upstream_after_a_failure_of_the_first(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware")

    async def half(visit: Visit) -> None:
        await visit.start()
        await visit.chunk(b"data: ha")
        visit.cut()

    async with upstream_service(half) as first, upstream_service(whole) as second:
        exchange = await handle(chat_app(client, first, second), path="/chat")
    assert (exchange.status, exchange.body) == (200, BODY)
    assert "model 0 has failed (UpstreamError: the upstream 127.0.0.1 has failed" in caplog.text


async def test_a_failed_upstream_becomes_the_status_of_the_response(client: Any) -> None:
    async def refuse(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 503 Down\r\nretry-after: 20\r\ncontent-length: 0\r\n\r\n")

    async with upstream_service(refuse) as service:
        exchange = await handle(chat_app(client, service), path="/chat")
    assert (exchange.status, exchange.headers[b"retry-after"]) == (503, b"20")


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_the_upstream_is_closed_when_the_client_has_left_and_no_time_to_linger_is_left(
    client: Any, spec_version: str
) -> None:
    async with upstream_service(_in_halves) as service:
        app = chat_app(client, service, mark=streaming(linger_seconds=0))
        scope = http_scope(path="/chat", asgi={"version": "3.0", "spec_version": spec_version})
        async with running(app, Exchange(scope)) as exchange:
            await exchange.until_count(2)
            exchange.disconnect()
            exchange.refusal = OSError("the client has left")
            (visit,) = service.visits
            await asyncio.wait_for(visit.is_closed.wait(), HANG_SECONDS)


async def test_the_client_of_an_unmarked_stream_is_not_watched(client: Any) -> None:
    async with upstream_service(_in_halves) as service:
        app = chat_app(client, service, mark=lambda endpoint: endpoint)
        scope = http_scope(path="/chat", asgi={"version": "3.0", "spec_version": "2.4"})
        async with running(app, Exchange(scope)) as exchange:
            await exchange.until_count(2)
            exchange.disconnect()
            await asyncio.sleep(0.1)
            assert exchange.receives == 0


async def test_the_upstream_is_read_on_while_the_stream_lingers(client: Any) -> None:
    goes_on = asyncio.Event()

    async def wait_and_end(visit: Visit) -> None:
        await visit.start()
        await visit.chunk(b"data: 1\n\n")
        await goes_on.wait()
        await visit.chunk(b"data: 2\n\n")
        await visit.end()

    ended = asyncio.Event()
    texts: list[str] = []

    def on_end(_: object, events: list[Event]) -> None:
        texts.extend(event.data for event in events)
        loop.call_soon_threadsafe(ended.set)

    loop = asyncio.get_running_loop()
    async with upstream_service(wait_and_end) as service:
        app = chat_app(client, service, mark=streaming(on_end=on_end, stream_name="chat"))
        headers = [(b"authorization", b"Bearer ann")]
        async with running(app, Exchange(http_scope(path="/chat", headers=headers))) as exchange:
            await exchange.until_count(1)
            exchange.disconnect()
            exchange.refusal = OSError("the client has left")
            goes_on.set()
            await asyncio.wait_for(ended.wait(), HANG_SECONDS)
    assert texts == ["1", "2"]
