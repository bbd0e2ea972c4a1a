"""An in-process ASGI server for one request: reads endless streams, hangs, disconnects."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from sse_middleware import Event, EventParser

EVENTSOURCE = [(b"accept", b"text/event-stream"), (b"cache-control", b"no-cache")]


def http_scope(
    *,
    method: str = "GET",
    path: str = "/",
    headers: list[tuple[bytes, bytes]] | None = None,
    **others: object,
) -> Scope:
    """Return the scope of a request as a server of today makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers if headers is not None else [],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        **others,
    }


class Exchange:
    """One request in the hands of an app; `send` and `receive` are the server's side of it.

    Attributes:
        messages: what the app has sent, each with the loop's time.
        blocked: while set, the client reads nothing and every write waits.
        refusal: what a write raises, as a server does whose client is gone.
        overlaps: how often a write began while another was under way.
    """

    def __init__(self, scope: Scope, *, body: bytes = b"") -> None:
        self.scope = scope
        self.messages: list[tuple[float, MutableMapping[str, Any]]] = []
        self.refusal: Exception | None = None
        self.overlaps = 0
        self.receives = 0
        self._body: bytes | None = body
        self._disconnected = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        self._news = asyncio.Event()
        self._writing = False
        self.task: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.overlaps += self._writing
        self._writing = True
        try:
            await self._readable.wait()
        finally:
            self._writing = False
        self.messages.append((asyncio.get_running_loop().time(), message))
        self._news.set()

    async def receive(self) -> Message:
        self.receives += 1
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    def block(self) -> None:
        """Stop reading, so that the next write waits."""
        self._readable.clear()

    def unblock(self) -> None:
        """Read on."""
        self._readable.set()

    def disconnect(self) -> None:
        """Leave."""
        self._disconnected.set()

    @property
    def start(self) -> MutableMapping[str, Any]:
        """The response start."""
        return next(m for _, m in self.messages if m["type"] == "http.response.start")

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.start["headers"])

    @property
    def body(self) -> bytes:
        """All body bytes so far."""
        return b"".join(m.get("body", b"") for _, m in self.messages)

    @property
    def ended(self) -> bool:
        """Whether the response was completed."""
        return any(
            m["type"] == "http.response.body" and not m.get("more_body") for _, m in self.messages
        )

    @property
    def events(self) -> list[Event]:
        """What a client has dispatched so far."""
        return EventParser().feed(self.body)

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]

    async def until(self, name: str) -> Event:
        """Wait for an event of the type `name` and return it."""
        while not (found := [event for event in self.events if event.event == name]):
            self._news.clear()
            await self._news.wait()
        return found[-1]


@asynccontextmanager
async def running(app: ASGIApp, exchange: Exchange) -> AsyncIterator[Exchange]:
    """Run `app` on `exchange` in a task of its own, and see it end or end it."""
    exchange.task = asyncio.ensure_future(_run(app, exchange))
    try:
        yield exchange
    finally:
        if not exchange.task.done():
            exchange.task.cancel()
        await asyncio.gather(exchange.task, return_exceptions=True)


async def _run(app: ASGIApp, exchange: Exchange) -> None:
    await app(exchange.scope, exchange.receive, exchange.send)


async def handle(
    app: ASGIApp,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    **scope: Any,
) -> Exchange:
    """Run `app` on one request to its end, with a client that reads everything."""
    exchange = Exchange(http_scope(headers=headers, **scope))
    await app(exchange.scope, exchange.receive, exchange.send)
    return exchange


def stream_of(*chunks: bytes, pause: float = 0.0, headers: list[Any] | None = None) -> ASGIApp:
    """Return a plain ASGI app that streams `chunks`, each behind a pause."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(stream_start(headers))
        for chunk in chunks:
            await asyncio.sleep(pause)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def stream_start(headers: list[Any] | None = None) -> Message:
    """Return the response start of an event stream."""
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream"), *(headers or [])],
    }


def body(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
