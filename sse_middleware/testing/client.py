"""An in-process ASGI server and its client, for one request.

The client reads endless streams, stops reading and disconnects. There is no socket and no thread,
so a test sees each message when it is sent, and can run on an event loop with a fake clock.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from starlette.types import ASGIApp, Message, Scope

from sse_middleware.protocol.parser import Event, EventParser

EVENTSOURCE_HEADERS = [
    (b"accept", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
]
"""The headers by which a native `EventSource` is recognised."""

TIMEOUT_SECONDS = 10.0
"""How long a test waits for an event, or for a whole response, unless it sets another limit."""


def http_scope(
    *,
    method: str = "GET",
    path: str = "/",
    headers: list[tuple[bytes, bytes]] | None = None,
    **others: object,
) -> Scope:
    """Return the scope of a request as servers make it (ASGI HTTP 2.3).

    Args:
        method: the HTTP method.
        path: the decoded path.
        headers: names in lower case and values, none by default.
        **others: any other key of the scope, such as `query_string` (bytes) or `state`.

    Raises:
        TypeError: the headers or the query string are not of bytes, as those of a server are.
    """
    pairs = [] if headers is None else headers
    if not isinstance(pairs, list) or not all(isinstance(name, bytes) for name, _ in pairs):
        example = 'pairs of bytes, such as [(b"accept", b"text/event-stream")]'
        raise TypeError(f"headers is {headers!r}, allowed is a list of {example}")
    query = others.get("query_string", b"")
    if not isinstance(query, bytes):
        raise TypeError(f'query_string is {query!r}, allowed is bytes, such as b"a=1"')
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
        "headers": pairs,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        **others,
    }


class Exchange:
    """One request to an app; `send` and `receive` are the server's side.

    Args:
        scope: the request's scope, as `http_scope` makes it.
        body: the request's body.
        timeout: the limit of each wait in seconds, by the clock of the event loop; `None` for none.

    Attributes:
        scope: the request's.
        timeout: the limit of each wait.
        messages: the messages of the app, each with the loop's time.
        refusal: the exception that each write raises, as servers do after a disconnect.
        overlaps: how often a write began while another was under way.
        receives: how often the app has called `receive`.
        task: the app's task, while it is `running`; awaiting it raises the app's exception.
    """

    def __init__(
        self, scope: Scope, *, body: bytes = b"", timeout: float | None = TIMEOUT_SECONDS
    ) -> None:
        if not isinstance(scope, MutableMapping):
            raise TypeError(f"scope is {scope!r}, allowed is that of a request: http_scope(...)")
        self.scope = scope
        self.timeout = timeout
        self.messages: list[tuple[float, MutableMapping[str, Any]]] = []
        self.refusal: Exception | None = None
        self.overlaps = 0
        self.receives = 0
        self.task: asyncio.Task[None] | None = None
        self._request = dict(scope), body  # apps add to their scope
        self._body: bytes | None = body
        self._disconnected = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        self._news = asyncio.Event()
        self._writing = False
        self._parser = EventParser()
        self._parsed = 0
        self._events: list[Event] = []

    async def send(self, message: Message) -> None:
        """Store a message of the app; wait while the client is blocked."""
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
        """Return the request's body, and then wait for the disconnect."""
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
        """Read again."""
        self._readable.set()

    def disconnect(self) -> None:
        """Disconnect: `receive` returns `http.disconnect`. For failing writes, set `refusal`."""
        self._disconnected.set()

    def reconnect(
        self, *, headers: list[tuple[bytes, bytes]] | None = None, **others: object
    ) -> Self:
        """Disconnect, and return the next request of the same client.

        It is the same request, with the `Last-Event-ID` that an `EventSource` sends. Let the app
        run on this exchange meanwhile, as it does on a server:

            async with running(app, exchange.reconnect()) as again:
                await again.until("complete")

        Args:
            headers: other headers, such as those of another user.
            **others: other keys of the scope with other values.
        """
        self.disconnect()
        scope, body = self._request
        kept = scope["headers"] if headers is None else headers
        sent = [pair for pair in kept if pair[0] != b"last-event-id"]
        if self.last_event_id:
            sent.append((b"last-event-id", self.last_event_id.encode()))
        return type(self)({**scope, "headers": sent, **others}, body=body, timeout=self.timeout)

    @property
    def start(self) -> MutableMapping[str, Any]:
        """The response start; raises an `AssertionError` if it has not been sent yet."""
        for _, message in self.messages:
            if message["type"] == "http.response.start":
                return message
        raise AssertionError("the response has not started")

    @property
    def status(self) -> int:
        """The status of the response."""
        status: int = self.start["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the response, the last one of each name."""
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
        """The events that a client has dispatched so far."""
        self._parse()
        return self._events.copy()

    @property
    def names(self) -> list[str]:
        """The types of those events."""
        return [event.event for event in self.events]

    @property
    def last_event_id(self) -> str:
        """The `Last-Event-ID` that a client would send now; `""` for none."""
        self._parse()
        return self._parser.last_event_id

    @property
    def retry(self) -> int | None:
        """The delay before a client would reconnect, in milliseconds; `None` for its default."""
        self._parse()
        return self._parser.retry

    async def until(self, name: str) -> Event:
        """Wait for an event of the type `name` and return the latest one.

        Raises:
            AssertionError: the stream has ended without one, or the time is over.
        """
        await self._until(lambda: name in self.names, f"an event {name!r}")
        return next(event for event in reversed(self.events) if event.event == name)

    async def until_count(self, count: int, name: str | None = None) -> list[Event]:
        """Wait for `count` events and return all of them.

        Args:
            count: the number of events.
            name: their type; any by default.

        Raises:
            AssertionError: the stream has ended before that, or the time is over.
        """

        def found() -> list[Event]:
            return [event for event in self.events if name in (None, event.event)]

        await self._until(lambda: len(found()) >= count, f"{count} events {name or ''}".rstrip())
        return found()

    async def until_end(self) -> None:
        """Wait for the end of the response.

        Raises:
            AssertionError: the app has returned or failed without one, or the time is over.
        """
        await self._until(lambda: self.ended, "an end of the response")

    def _parse(self) -> None:
        for _, message in self.messages[self._parsed :]:
            self._events += self._parser.feed(message.get("body", b""))
        self._parsed = len(self.messages)

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                while not holds():
                    if self.ended or (self.task is not None and self.task.done()):
                        message = f"the stream has ended without {what}, {self._received()}"
                        raise AssertionError(message) from self._failure()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as exc:
            message = f"{what} has not arrived within {self.timeout:g} s, {self._received()}"
            raise AssertionError(message) from exc

    def _received(self) -> str:
        return f"it had {', '.join(self.names) or 'no event'}"

    def _failure(self) -> BaseException | None:
        if self.task is None or not self.task.done() or self.task.cancelled():
            return None
        return self.task.exception()

    def _on_return(self, _: "asyncio.Task[None]") -> None:
        self._news.set()


AnyExchange = TypeVar("AnyExchange", bound=Exchange)


@asynccontextmanager
async def running(app: ASGIApp, exchange: AnyExchange) -> AsyncIterator[AnyExchange]:
    """Run `app` on `exchange` in a separate task, and end it after the block.

    After the block the app has returned, failed, or was cancelled. Its exception is not raised
    again; `await exchange.task` inside the block does that.
    """
    exchange.task = asyncio.ensure_future(_run(app, exchange))
    exchange.task.add_done_callback(exchange._on_return)  # noqa: SLF001
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
    body: bytes = b"",
    timeout: float | None = TIMEOUT_SECONDS,  # noqa: ASYNC109 - its error has the events
    **scope: Any,
) -> Exchange:
    """Run `app` on one request to its end, with a client that reads everything.

    Args:
        app: the app.
        headers: the request's headers.
        body: the request's body.
        timeout: the limit in seconds, by the clock of the event loop; `None` for none.
        **scope: other arguments of `http_scope`.

    Returns:
        The exchange, with all messages of the app. The app's exception is raised.

    Raises:
        AssertionError: the app has not returned within `timeout`; it is cancelled.
    """
    exchange = Exchange(http_scope(headers=headers, **scope), body=body, timeout=timeout)
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            await app(exchange.scope, exchange.receive, exchange.send)
    except TimeoutError as exc:
        if not limit.expired():
            raise  # the app's own
        message = f"the app has not returned within {timeout:g} s, {exchange._received()}"  # noqa: SLF001
        raise AssertionError(message) from exc
    return exchange
