"""Random requests, valid in parts and hostile in others, to one middleware around a random app."""

import asyncio
import random
import string
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from sse_middleware import Event, EventParser, current_stream
from tests.support.asgi import EVENTSOURCE, Exchange, http_scope

EVIL: Final = b"3v1l"
"""Part of each hostile value of a request: no response, log line or metric may have it."""
ROUTES: Final = ("/chat", "/attached", "/openai", "/unmarked", "/ids", "/live", "/metrics", "/")
_METHODS: Final = (
    "GET",
    "GET",
    "GET",
    "POST",
    "POST",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PUT",
    "x" * 99,
)
_USERS: Final = (b"ann", b"bob")
_BREAKS: Final = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\x7f",
    b"\xff\xfe",
    b"\xe2\x80\xa8",
    b"%0d%0a",
    b"",
)
_HEADERS: Final = {
    b"accept": (b"text/event-stream", b"*/*", b"application/json", b"text/event-stream;q=0, */*"),
    b"authorization": (b"Bearer a", b"Bearer ", b"Basic"),
    b"cache-control": (b"no-cache", b"no-store"),
    b"cookie": (b"session=1", b'session="; a=b', b"=;=;" * 50, b"session"),
    b"forwarded": (b"for=1.2.3.4", b'for="[::1]:1";by=x, for=_x', b"for=" * 99),
    b"idempotency-key": (b"1", b'"2"', b"k" * 300),
    b"last-event-id": (b"1", b"A" * 22 + b"-3", b"-" * 99, b"A" * 22 + b"-" + b"9" * 40),
    b"mcp-session-id": (b"x",),
    b"origin": (b"https://a.example", b"null", b"o" * 3000),
    b"sec-fetch-site": (b"cross-site", b"same-origin"),
    b"traceparent": (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"0" * 32),
    b"user-agent": (b"Mozilla/5.0 (X11)", b"curl/8"),
    b"x-forwarded-for": (b"1.2.3.4", b"::1, 10.0.0.1", b"," * 99),
    b"x-request-id": (b"request-1",),
    b"x-stream-id": (b"abc", b"A" * 22),
    b"x-trace-id": (b"trace-1", b"t" * 129),
}
_QUERIES: Final = (
    *(b"", b"", b"", b"after=1", b"after=-1", b"after=99999999999999999999", b"starting_after=2"),
    *(b"last_event_id=1", b"lastEventId=%00", b"sse_cancel=1", b"sse_cancel", b"&=&%zz&" * 300),
)


class AppError(Exception):
    """The random app has failed."""


@dataclass
class Run:
    """What the app does for one request.

    Attributes:
        status: the status of its response.
        headers: its headers.
        chunks: the parts of its body.
        pause: the time before each part, in seconds.
        fails: whether it raises an `AppError` after them.
        ends: whether it ends its response.
        name: the name of its stream, `""` for none.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    chunks: list[bytes]
    pause: float
    fails: bool
    ends: bool
    name: str
    is_stream: bool

    @property
    def body(self) -> bytes:
        """All bytes of its body."""
        return b"".join(self.chunks)


@dataclass
class Sent:
    """A request and its outcome.

    Attributes:
        exchange: the request and the response.
        runs: what the app has done for it.
        failure: the exception that has left the middleware.
    """

    exchange: Exchange
    runs: list[Run] = field(default_factory=list)
    failure: BaseException | None = None


class Client(Exchange):
    """A client to which a server sends nothing after its disconnect."""

    has_left = False

    async def send(self, message: Message) -> None:
        """Store a message of the app, as long as the client is connected."""
        if self.refusal is not None or not self.has_left:
            await super().send(message)

    def disconnect(self) -> None:
        """Disconnect."""
        self.has_left = True
        super().disconnect()


class Fuzzer:
    """Make requests from a seed.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._known: list[bytes] = []  # event ids and stream ids that clients have received

    def request(self) -> Sent:
        """Return a request that has not been sent."""
        choose, chance = self._random.choice, self._random.random
        path = choose(ROUTES)
        if chance() < 0.1:
            path += "/" + self._hostile(b"x").decode("latin-1")
        headers = list(EVENTSOURCE) if chance() < 0.4 else []
        if chance() < 0.7:
            headers.append((b"x-user", choose(_USERS)))
        for _ in range(self._random.randrange(4)):
            name = choose(tuple(_HEADERS))
            headers.append((name, self._value(choose(_HEADERS[name]))))
        query = self._value(choose(_QUERIES))
        if self._known and chance() < 0.3:
            known = self._value(choose(self._known[-50:]))
            if chance() < 0.7:
                headers.append((choose((b"last-event-id", b"x-stream-id")), known))
            else:
                query = b"last_event_id=" + known
        scope = http_scope(method=choose(_METHODS), path=path, headers=headers, query_string=query)
        if chance() < 0.1:
            del scope[choose(("client", "raw_path", "root_path", "http_version"))]
        body = choose((b"", b"{}", b"q" * 5000, self._hostile(b"{}")))
        return Sent(Client(scope, body=body))

    async def send(self, app: Any, sent: Sent) -> None:
        """Send a request; its client may leave, or stop to read for a while."""
        exchange, chance = sent.exchange, self._random.random
        exchange.scope["fuzz"] = sent
        task = asyncio.ensure_future(app(exchange.scope, exchange.receive, exchange.send))
        if chance() < 0.3:
            await asyncio.sleep(2 * chance())
            if chance() < 0.4:
                exchange.block()
                await asyncio.sleep(2 * chance())
                exchange.unblock()
            if chance() < 0.6:
                exchange.refusal = OSError("the client has left") if chance() < 0.5 else None
                exchange.disconnect()
        _, pending = await asyncio.wait([task], timeout=600)
        assert not pending, "a request hangs"
        sent.failure = task.exception()
        self._learn(exchange)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request at random."""
        run = self._run(scope)
        scope["fuzz"].runs.append(run)
        if run.name:
            current_stream().name(run.name)
        if self._random.random() < 0.5:
            await receive()
        await send({"type": "http.response.start", "status": run.status, "headers": run.headers})
        for chunk in run.chunks:
            await asyncio.sleep(run.pause)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if run.fails:
            raise AppError
        if run.ends:
            await send({"type": "http.response.body", "body": b""})

    def _run(self, scope: Scope) -> Run:
        choose, chance = self._random.choice, self._random.random
        is_stream = chance() < 0.8
        kind = b"text/event-stream" if is_stream else choose((b"application/json", b"text/html"))
        headers = [(b"content-type", kind)]
        if chance() < 0.2:
            extra = choose(((b"cache-control", b"max-age=9"), (b"x-accel-buffering", b"yes")))
            headers.append(extra)
        data = b"".join(self._block(scope) for _ in range(self._random.randrange(8)))
        return Run(
            status=200 if chance() < 0.9 else choose((204, 301, 404, 503)),
            headers=headers,
            chunks=self._split(data),
            pause=choose((0.0, 0.0, 0.1, 3.0)),
            fails=chance() < 0.1,
            ends=chance() < 0.95,
            name=choose(("", "", "a", "b" * 200)),
            is_stream=is_stream,
        )

    def _block(self, scope: Scope) -> bytes:
        """Return an event, or other bytes."""
        choose, end = (
            self._random.choice,
            self._random.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")),
        )
        lines = [b"data: " + choose((b"x", b"{}", b'{"id":"chatcmpl-1"}', b"[DONE]", b"\xff"))]
        if self._random.random() < 0.2:
            lines.insert(0, b"event: app-" + choose((b"a", b"b")))
        if scope.get("path", "").startswith("/ids") or self._random.random() < 0.02:
            lines.append(b"id: %d" % self._random.randrange(9))
        if self._random.random() < 0.1:
            lines = [choose((b": comment", b"retry: 5", b"words", b"data", b""))]
        return b"".join(line + end for line in lines) + end

    def _split(self, data: bytes) -> list[bytes]:
        """Return bytes in random parts."""
        cuts = sorted(
            self._random.randrange(len(data) + 1) for _ in range(self._random.randrange(6))
        )
        parts = zip([0, *cuts], [*cuts, len(data)], strict=True)
        return [data[begin:end] for begin, end in parts]

    def _value(self, value: bytes) -> bytes:
        return self._hostile(value) if self._random.random() < 0.3 else value

    def _hostile(self, value: bytes) -> bytes:
        """Return a value with a mark, and with bytes that may break a line or a parser."""
        break_, at = self._random.choice(_BREAKS), self._random.randrange(len(value) + 1)
        injected = EVIL + break_ + b"data: " + EVIL + break_ + break_
        if self._random.random() < 0.1:
            injected *= self._random.choice((2, 500))
        return value[:at] + injected + value[at:]

    def _learn(self, exchange: Exchange) -> None:
        if not exchange.messages:
            return
        self._known.append(exchange.headers.get(b"x-stream-id", b""))
        if exchange.last_event_id and exchange.last_event_id.isascii():
            self._known.append(exchange.last_event_id.encode())
        del self._known[:-200]


def app_events(exchange: Exchange) -> list[Event]:
    """Return the events of a response that are not the middleware's."""
    events = exchange.events
    failed = [at for at, event in enumerate(events) if '"code":"internal_error"' in event.data]
    return [
        event
        for event in events[: failed[0] if failed else None]
        if '"stream_id"' not in event.data and event.event not in ("reset", "error", "complete")
    ]


def dispatched(data: bytes) -> list[tuple[str, str]]:
    """Return the names and data of the events that a client dispatches."""
    return [(event.event, event.data) for event in EventParser().feed(data)]


PRINTABLE: Final = set(string.printable.encode()) - set(b"\t\r\n\x0b\x0c")
