"""A client that reloads a page makes its request again, and ends its own lingering stream there."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming
from tests.support.asgi import EVENTSOURCE, Exchange, http_scope, running
from tests.support.resuming import back, id_of, resumable, texts, value

pytestmark = pytest.mark.anyio

HOUR = 3600
CONNECTIONS = 5
"""The size of SQLAlchemy's default pool."""
NAMED = (b"accept", b"text/event-stream;events=named")


def cookie(name: str) -> tuple[bytes, bytes]:
    return (b"cookie", b"theme=dark; session=" + name.encode())


class Pool:
    """Connections to a database, each held by a request.

    Attributes:
        most: the largest number of connections that were held at a time.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._held = self.most = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        """Hold a connection."""
        await asyncio.wait_for(self._free.acquire(), 30)  # SQLAlchemy's timeout
        self._held += 1
        self.most = max(self.most, self._held)
        try:
            yield
        finally:
            self._held -= 1
            self._free.release()


async def answer() -> AsyncIterator[str]:
    """Send a number a second."""
    for number in range(1, HOUR):
        yield f"data: {number}\n\n"
        await asyncio.sleep(1)


def plain_app(pool: Pool) -> ASGIApp:
    """Return an app that holds a connection from the end of the request to that of the response."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await Request(scope, receive).body()
        async with pool.connection():
            response = StreamingResponse(answer(), media_type="text/event-stream")
            await response(scope, receive, send)

    return app


def fastapi_app(pool: Pool) -> ASGIApp:
    """Return an app with a dependency that holds a connection."""
    fastapi = pytest.importorskip("fastapi", reason="the minimal environment has no FastAPI")

    async def session() -> AsyncIterator[None]:
        async with pool.connection():
            yield

    holds, reads = fastapi.Depends(session), fastapi.Body(default=None)

    async def endpoint(_: Any = holds, __: Any = reads) -> StreamingResponse:
        return StreamingResponse(answer(), media_type="text/event-stream")

    app: Any = fastapi.FastAPI()
    app.api_route("/answer", methods=["GET", "POST"])(streaming()(endpoint))
    wrapped: ASGIApp = app
    return wrapped


def identified(app: ASGIApp, **options: Any) -> SSEMiddleware:
    """Return an app whose streams linger, with cookies that identify clients."""
    settings = {"identity_cookies": ("session",), "stream_max_seconds": None}
    return resumable(app, **{**settings, **options})


class Browser:
    """A browser that loads pages and leaves them.

    Args:
        app: the app.
        stack: ends the requests.
    """

    def __init__(self, app: ASGIApp, stack: AsyncExitStack) -> None:
        self._app = app
        self._stack = stack

    async def open(
        self, *headers: tuple[bytes, bytes], body: bytes = b"", **scope: Any
    ) -> Exchange:
        """Request a stream, and return after three tenths of a second."""
        base = EVENTSOURCE if scope.get("method", "GET") == "GET" else [NAMED]
        request = http_scope(**{"path": "/answer", "headers": [*base, *headers], **scope})
        exchange = Exchange(request, body=body)
        await self._stack.enter_async_context(running(self._app, exchange))
        await asyncio.sleep(0.3)
        return exchange

    async def leave(self, *headers: tuple[bytes, bytes], **request: Any) -> Exchange:
        """Request a stream, and leave it."""
        exchange = await self.open(*headers, **request)
        exchange.disconnect()
        await asyncio.sleep(0.01)
        return exchange


APPS = pytest.mark.parametrize("make", [plain_app, fastapi_app])
METHODS = pytest.mark.parametrize("method", ["GET", "POST"])


@APPS
@METHODS
async def test_twenty_loads_of_a_page_do_not_exhaust_a_pool(
    make: Callable[[Pool], ASGIApp], method: str
) -> None:
    pool, registry = Pool(), CollectorRegistry()
    app = identified(make(pool), registry=registry)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        loads = [await browser.leave(cookie("alice"), method=method) for _ in range(20)]
        assert [texts(each) for each in loads] == [["1"]] * 20
        assert value(registry, "sse_lingering_streams") == 1
    assert pool.most <= 2
    assert not app._context.linger_queue.paths


@APPS
@METHODS
async def test_a_reload_releases_what_its_own_request_waits_for(
    make: Callable[[Pool], ASGIApp], method: str
) -> None:
    app = identified(make(Pool()))
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        for who in range(CONNECTIONS):
            await browser.leave(cookie(f"user-{who}"), method=method)
        assert texts(await browser.open(cookie("user-3"), method=method)) == ["1"]
        assert texts(await browser.open(cookie("new"), method=method)) == []  # it waits


# What counts as the same request


@pytest.mark.parametrize(
    "other",
    [
        {"query_string": b"a=2"},
        {"path": "/other"},
        {"method": "POST", "body": b"{}"},
        {"headers": [*EVENTSOURCE, cookie("bob")]},
        {"headers": EVENTSOURCE},
        {"headers": [(b"accept", b"application/json"), cookie("alice")]},
        {"method": "HEAD"},
    ],
    ids=str,
)
async def test_another_request_ends_no_stream(other: dict[str, Any]) -> None:
    registry = CollectorRegistry()
    app = identified(plain_app(Pool()), registry=registry)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        await browser.leave(cookie("alice"), query_string=b"a=1")
        await browser.open(
            **{"headers": [*EVENTSOURCE, cookie("alice")], "query_string": b"a=1"} | other
        )
        assert value(registry, "sse_lingering_streams") == 1


@pytest.mark.parametrize(
    ("body", "again", "lingering"),
    [(b"{}", b"{}", 0), (b"{}", b"[]", 1), (b"", b"", 0), (b"x" * (1 << 20) + b"x", None, 1)],
)
async def test_the_body_of_a_post_is_compared_up_to_a_mebibyte(
    body: bytes, again: bytes | None, lingering: int
) -> None:
    registry = CollectorRegistry()
    app = identified(plain_app(Pool()), registry=registry)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        await browser.leave(cookie("alice"), method="POST", body=body)
        await browser.open(cookie("alice"), method="POST", body=body if again is None else again)
        assert value(registry, "sse_lingering_streams") == lingering


async def test_clients_without_an_identity_end_no_stream() -> None:
    registry = CollectorRegistry()
    app = identified(plain_app(Pool()), registry=registry)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        for _ in range(3):
            await browser.leave()
        assert value(registry, "sse_lingering_streams") == 3
        assert not app._context.linger_queue.paths


async def test_a_request_with_an_event_id_resumes_its_stream_and_ends_none() -> None:
    registry = CollectorRegistry()
    app = identified(plain_app(Pool()), registry=registry)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        first = await browser.leave(cookie("alice"))
        await asyncio.sleep(1)
        again = await browser.open(headers=back(id_of(first, 1), cookie("alice")))
        assert (again.names[0], texts(again)) == ("start", ["2"])
        unknown = await browser.open(headers=back("A" * 22 + "-3", cookie("alice")))
        assert unknown.names[0] == "reset"
        again.disconnect()
        await asyncio.sleep(0.01)
        assert value(registry, "sse_lingering_streams") == 1


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD"])
async def test_a_preflight_request_is_not_identified(method: str) -> None:
    async def refuse(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 405, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (stream if scope["method"] == "GET" else refuse)(scope, receive, send)

    def identify(scope: Scope) -> str:
        identified_methods.append(scope["method"])
        return str(dict(scope["headers"])[b"cookie"])

    identified_methods: list[str] = []
    stream = plain_app(Pool())
    async with AsyncExitStack() as stack:
        browser = Browser(identified(app, identify=identify), stack)
        await browser.leave(cookie("alice"))
        await browser.open(method=method, headers=[(b"accept", b"*/*")])
    assert identified_methods == ["GET"]


# Which streams end, and how


async def test_a_stream_that_a_client_reads_does_not_end() -> None:
    app = identified(plain_app(Pool()))
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        tab = await browser.open(cookie("alice"))
        first = await browser.leave(cookie("alice"))
        reader = await browser.open(headers=back(id_of(first, 1), cookie("alice")))
        await browser.open(cookie("alice"))
        await asyncio.sleep(10)
        assert len(texts(tab)) >= 10
        assert len(texts(reader)) >= 9


async def test_a_stream_whose_client_is_expected_does_not_end() -> None:
    registry = CollectorRegistry()
    app = identified(
        plain_app(Pool()), registry=registry, cap_action="rotate", stream_max_seconds=5
    )
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        tab = await browser.open(cookie("alice"))
        await tab.until_end()
        await browser.open(cookie("alice"))
        assert value(registry, "sse_lingering_streams") == 1
        last = tab.last_event_id
        again = await browser.open(headers=back(last, cookie("alice")))
        assert again.names[0] == "start"


async def test_a_stream_that_is_left_between_a_reload_and_its_response_ends() -> None:
    pool, registry = Pool(), CollectorRegistry()
    app = identified(plain_app(pool), registry=registry)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        others = [await browser.open(cookie(f"user-{who}")) for who in range(CONNECTIONS - 1)]
        first = await browser.open(cookie("alice"))
        second = await browser.open(cookie("alice"))  # it waits for a connection
        assert not second.messages
        first.disconnect()
        await asyncio.sleep(0.01)
        assert value(registry, "sse_lingering_streams") == 1
        others[0].disconnect()
        await browser.open(cookie("user-0"))
        assert texts(second) == ["1"]
        assert value(registry, "sse_lingering_streams") == 0


@pytest.mark.parametrize(("seconds", "lingering"), [(0, 0), (0.5, 0), (2, 1)])
async def test_a_stream_ends_if_its_disconnect_arrives_just_after_the_next_request(
    seconds: float, lingering: int
) -> None:
    registry = CollectorRegistry()
    app = identified(plain_app(Pool()), registry=registry)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        first = await browser.open(cookie("alice"))
        second = await browser.open(cookie("alice"))
        await asyncio.sleep(seconds)
        first.disconnect()
        await asyncio.sleep(0.01)
        assert value(registry, "sse_lingering_streams") == lingering
        second.disconnect()
        await asyncio.sleep(0.01)
        assert value(registry, "sse_lingering_streams") == lingering + 1


async def test_the_stream_ends_as_one_that_has_lingered_long_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sse_middleware.stream")
    app = identified(plain_app(Pool()))
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        first = await browser.leave(cookie("alice"))
        await browser.open(cookie("alice"))
        logged = SimpleNamespace(**caplog.records[0].__dict__["sse"])
        assert (logged.outcome, logged.disconnects) == ("disconnected", 1)
        assert not first.ended
        late = await browser.open(headers=back(id_of(first, 1), cookie("alice")))
        assert late.names[0] == "reset"
        assert json.loads(late.events[0].data)["reason"] == "gone"
        assert texts(late) == ["1"]


async def test_a_rejected_reload_ends_no_stream() -> None:
    registry = CollectorRegistry()
    limits: dict[str, Any] = {"max_streams": 1, "limit_action": "reject"}
    app = identified(plain_app(Pool()), registry=registry, **limits)
    async with AsyncExitStack() as stack:
        browser = Browser(app, stack)
        await browser.leave(cookie("alice"))
        other = await browser.open(cookie("bob"))
        assert (await browser.open(cookie("alice"))).status == 503
        assert value(registry, "sse_lingering_streams") == 1
        other.disconnect()
        assert (await browser.open(cookie("alice"))).status == 200
        assert value(registry, "sse_lingering_streams") == 1  # that of the other client
