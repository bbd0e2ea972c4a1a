"""What the tests of resuming share: streams that are kept, an app, and clients that come back."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_start,
)
from tests.support.middleware import marking

Headers = list[tuple[bytes, bytes]]

LINGER = 15.0
TTL = 60.0
UNKNOWN = "A" * 22 + "-3"
"""A cursor such as ours, of no stream."""


async def _refuse(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return Response(status_code=exc.status_code)


REFUSING: dict[Any, Any] = {HTTPException: _refuse}
"""For 404 and 405: the handlers of older Starlettes run in a thread, outside a virtual clock."""


class Counting:
    """An app that counts in a response of Starlette, and records its requests and its ends.

    Args:
        count: the last number.
        pause: the time after each number, in seconds.
        headers: of its response.

    Attributes:
        scopes: those of its requests.
        bodies: those of its requests.
        ends: how its runs have ended, `finished` or `cancelled`.
    """

    def __init__(
        self, count: int = 5, *, pause: float = 1.0, headers: dict[str, str] | None = None
    ) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.ends: list[str] = []
        self._count = count
        self._pause = pause
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(dict(scope))
        self.bodies.append(await Request(scope, receive).body())
        response = StreamingResponse(
            self._events(), headers=self._headers, media_type="text/event-stream"
        )
        await response(scope, receive, send)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            for number in range(1, self._count + 1):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(self._pause)
        except BaseException:
            self.ends.append("cancelled")
            raise
        self.ends.append("finished")


class Chunked(Exchange):
    """A request with a body in parts, which may be cut off."""

    def __init__(self, scope: Scope, *parts: bytes, cut: bool = False) -> None:
        super().__init__(scope)
        self._body = None
        more = [*[True] * (len(parts) - 1), cut]
        self._parts: list[Message] = [
            {"type": "http.request", "body": part, "more_body": more_body}
            for part, more_body in zip(parts, more, strict=True)
        ]
        if cut:
            self.disconnect()

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        return self._parts.pop(0) if self._parts else await super().receive()


def memory(**bounds: Any) -> MemoryStore:
    """Return a store with the clock of the running loop."""
    return MemoryStore(**{"ttl": TTL, "clock": asyncio.get_running_loop().time, **bounds})


def resumable(app: ASGIApp, **options: Any) -> SSEMiddleware:
    """Return `app` inside a middleware that keeps its streams, which linger."""
    if "store" not in options:
        options["store"] = memory()
    return marking(app, **{"linger_seconds": LINGER, **options})


def back(event_id: str, *headers: tuple[bytes, bytes]) -> Headers:
    """Return the headers of an `EventSource` that reconnects after the event `event_id`."""
    return [*EVENTSOURCE, (b"last-event-id", event_id.encode()), *headers]


def opened(
    app: ASGIApp, *headers: tuple[bytes, bytes], body: bytes = b"", **scope: Any
) -> AbstractAsyncContextManager[Exchange]:
    """Run `app` on a request of an `EventSource`."""
    exchange = Exchange(http_scope(headers=[*EVENTSOURCE, *headers], **scope), body=body)
    return running(app, exchange)


def returning(
    app: ASGIApp, event_id: str, *headers: tuple[bytes, bytes], **scope: Any
) -> AbstractAsyncContextManager[Exchange]:
    """Run `app` on a request of an `EventSource` that reconnects after the event `event_id`."""
    return opened(app, (b"last-event-id", event_id.encode()), *headers, **scope)


@asynccontextmanager
async def left(
    app: ASGIApp, events: int = 2, *headers: tuple[bytes, bytes], **scope: Any
) -> AsyncIterator[Exchange]:
    """Run `app` on a request of an `EventSource` that has disconnected after some events."""
    async with opened(app, *headers, **scope) as exchange:
        await exchange.until_count(events, "message")
        exchange.disconnect()
        await asyncio.sleep(0.01)
        yield exchange


async def read(app: ASGIApp, *headers: tuple[bytes, bytes], **scope: Any) -> Exchange:
    """Run `app` to its end on a request of an `EventSource` that reads all events."""
    return await handle(app, headers=[*EVENTSOURCE, *headers], **scope)


async def resume(
    app: ASGIApp, event_id: str, *headers: tuple[bytes, bytes], **scope: Any
) -> Exchange:
    """Reconnect after the event `event_id` and read to the end."""
    return await read(app, (b"last-event-id", event_id.encode()), *headers, **scope)


async def stop(
    app: ASGIApp, event_id: str, *headers: tuple[bytes, bytes], **scope: Any
) -> Exchange:
    """Request the end of a stream, as a client that has received one of its events."""
    stopping = {"method": "POST", "query_string": b"sse_cancel", "body": event_id.encode()}
    return await handle(app, headers=list(headers), **{**stopping, **scope})


def texts(exchange: Exchange) -> list[str]:
    """Return the data of the app's unnamed events."""
    return [event.data for event in exchange.events if event.event == "message"]


def counted(first: int, last: int) -> list[str]:
    """Return the data of the events `first` to `last` of a `Counting`."""
    return [str(number) for number in range(first, last + 1)]


def bytes_after(whole: Exchange, event_id: str) -> bytes:
    """Return the bytes of a whole response after the event `event_id`."""
    position = whole.body.index(b"\nid: %b\n" % event_id.encode())
    return whole.body[whole.body.index(b"\n\n", position) + 2 :]


def opening(exchange: Exchange) -> bytes:
    """Return the first block of a response."""
    return exchange.body[: exchange.body.index(b"\n\n") + 2]


def id_of(exchange: Exchange, number: int) -> str:
    """Return the id of the event `number` of a response that begins with `start`."""
    secret = str(exchange.events[0].id).rpartition("-")[0]
    return f"{secret}-{number}"


def living(*kinds: type) -> list[object]:
    """Return the objects of these classes that are not collected."""
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def now() -> float:
    return asyncio.get_running_loop().time()


class Listening:
    """An app that counts, a number a second, and waits in other tasks for its client to leave.

    Args:
        count: the last number, after which it ends its response.
        listeners: how many tasks wait.
        leaves: whether it returns after the disconnect.

    Attributes:
        disconnects: the times at which the tasks have received the disconnect of the client.
        ends: when and how it has ended.
    """

    def __init__(self, count: int = 1000, *, listeners: int = 1, leaves: bool = True) -> None:
        self.disconnects: list[float] = []
        self.ends: list[tuple[float, str]] = []
        self._count = count
        self._listeners = listeners
        self._leaves = leaves

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        tasks = [asyncio.ensure_future(self._listen(receive)) for _ in range(self._listeners)]
        try:
            await send(stream_start())
            for number in range(1, self._count + 1):
                await send(body(b"data: %d\n\n" % number))
                if self._leaves:
                    await asyncio.wait(tasks, timeout=1, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(1)
                if self._leaves and any(task.done() for task in tasks):
                    self.ends.append((now(), "left"))
                    return
            await send(body(b"", more=False))
            self.ends.append((now(), "finished"))
        except asyncio.CancelledError:
            self.ends.append((now(), "cancelled"))
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _listen(self, receive: Receive) -> None:
        message = await receive()
        assert message["type"] == "http.disconnect"
        self.disconnects.append(now())


class Deaf:
    """An app that counts, a number a second, and never calls `receive`.

    Attributes:
        ends: when and how it has ended.
    """

    def __init__(self, count: int = 1000) -> None:
        self.ends: list[tuple[float, str]] = []
        self._count = count

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send(stream_start())
            for number in range(1, self._count + 1):
                await send(body(b"data: %d\n\n" % number))
                await asyncio.sleep(1)
            await send(body(b"", more=False))
            self.ends.append((now(), "finished"))
        except BaseException as exc:
            self.ends.append((now(), type(exc).__name__))
            raise


UNCAPPED: dict[str, Any] = {"stream_max_seconds": None}
