"""A client that reconnects as `EventSource` does.

It is written from WHATWG HTML 9.2 (https://html.spec.whatwg.org/#server-sent-events) and RFC 9112
and shares no code with the package, so that it detects errors of the package's parser.
"""

import asyncio
import codecs
import contextlib
import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

_HOST = "127.0.0.1"
_READ_BYTES = 1 << 16


class Dispatched(NamedTuple):
    """An event as a page receives it."""

    type: str
    data: str
    last_event_id: str

    @property
    def is_control(self) -> bool:
        """Whether the middleware has sent it, and not an app that uses the same event names."""
        return self.type in CONTROLS and '"stream_id"' in self.data


CONTROLS = ("start", "heartbeat", "complete", "error", "reset")
ENDS = ("complete", "error")


_LINE_ENDS_AND_OTHERS = re.compile(r"[\r\n]|[^\r\n]+")


class EventStream:
    """Parse one event stream by WHATWG HTML 9.2.6.

    Attributes:
        last_event_id: the last event id of the event source; the start of a stream keeps it.
        retry_ms: the reconnection time, `None` unless the stream has set it.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._after_cr = False
        self._line: list[str] = []
        self._data = self._type = self._id = ""

    def feed(self, data: bytes) -> Iterator[Dispatched]:
        """Dispatch the events that the next bytes complete, and buffer the rest."""
        text = self._decoder.decode(data)
        if text and self._at_start:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        for part in _LINE_ENDS_AND_OTHERS.findall(text):
            after_cr, self._after_cr = self._after_cr, part == "\r"
            if part == "\n" and after_cr:
                continue
            if part not in ("\r", "\n"):
                self._line.append(part)
                continue
            line = "".join(self._line)
            self._line.clear()
            if line:
                self._process(line)
            else:
                yield from self._dispatch()

    def _process(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                self._type = value
            case "data":
                self._data += value + "\n"
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)

    def _dispatch(self) -> Iterator[Dispatched]:
        self.last_event_id = self._id
        data, self._data = self._data, ""
        kind, self._type = self._type, ""
        if data:
            yield Dispatched(kind or "message", data.removesuffix("\n"), self.last_event_id)


def events_in(body: bytes) -> list[Dispatched]:
    """Return the events that a client dispatches for a complete event stream."""
    return list(EventStream().feed(body))


_CHUNK_SIZE = re.compile(rb"(?:\r\n)?([0-9A-Fa-f]+)[^\r\n]*\r\n")


class Chunked:
    """Decode the chunked transfer coding of a body (RFC 9112 7.1) incrementally.

    Attributes:
        ended: whether the last chunk has arrived.
    """

    def __init__(self) -> None:
        self.ended = False
        self._raw = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Return the new bytes of the body; a partial chunk counts."""
        self._raw += data
        body = b""
        while True:
            part = self._raw[: self._left]
            body += part
            self._raw = self._raw[len(part) :]
            self._left -= len(part)
            size = None if self._left else _CHUNK_SIZE.match(self._raw)
            if size is None:
                return body
            self._raw = self._raw[size.end() :]
            self._left = int(size[1], 16)
            self.ended = self.ended or not self._left


class EventSource:
    """An event source on `path`, which reconnects until its stream has ended.

    Args:
        port: of the server.
        path: of the stream, with its query.
        haste: the factor for reconnection times; 0 reconnects at once.
        closes: whether it closes at a `complete` or `error` event, as a page does that knows them;
            otherwise it reconnects until it receives a 204.
        last_event_id: the last event id with which it begins.

    Attributes:
        events: the app's events since the last `reset`.
        times: the time of each of the app's events, by the clock of the event loop.
        controls: the middleware's events.
        discarded: the app's events that it has discarded, one list for each `reset`.
        asked_with: the last event id of each connection, `""` for none.
        stopped_by: the event or the status that has ended it, `""` while it runs.
    """

    def __init__(
        self,
        port: int,
        path: str,
        *,
        haste: float = 0.0,
        closes: bool = True,
        last_event_id: str = "",
    ) -> None:
        self.events: list[Dispatched] = []
        self.times: list[float] = []
        self.controls: list[Dispatched] = []
        self.discarded: list[list[Dispatched]] = []
        self.asked_with: list[str] = []
        self.stopped_by = ""
        self._port = port
        self._path = path
        self._haste = haste
        self._closes = closes
        self._last_event_id = last_event_id
        self._retry_ms = 3000

    async def run(self, *, most_connections: int = 10) -> None:
        """Connect and reconnect until the end.

        Raises:
            RuntimeError: there is no end after `most_connections`.
        """
        while not self.stopped_by:
            if len(self.asked_with) == most_connections:
                message = f"no end after {most_connections} connections"
                raise RuntimeError(message)
            self.asked_with.append(self._last_event_id)
            with contextlib.suppress(OSError):
                await self._connect()
            if not self.stopped_by:
                await asyncio.sleep(self._haste * self._retry_ms / 1000)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)  # noqa: FBT003 - its only argument
            await loop.sock_connect(connection, (_HOST, self._port))
            await loop.sock_sendall(connection, self._request())
            # A stream reader would lose the bytes that arrive before a reset.
            response = b""
            while b"\r\n\r\n" not in response:
                data = await loop.sock_recv(connection, _READ_BYTES)
                if not data:
                    return
                response += data
            head, _, data = response.partition(b"\r\n\r\n")
            if not self._reads(head.decode("latin-1")):
                return
            stream, body = EventStream(self._last_event_id), Chunked()
            self._read(stream, body.feed(data))
            while not (self.stopped_by or body.ended):
                data = await loop.sock_recv(connection, _READ_BYTES)
                if not data:
                    return
                self._read(stream, body.feed(data))

    def _request(self) -> bytes:
        lines = [
            f"GET {self._path} HTTP/1.1",
            f"Host: {_HOST}:{self._port}",
            "Accept: text/event-stream",
            "Cache-Control: no-cache",
            "User-Agent: Mozilla/5.0",
        ]
        if self._last_event_id:
            lines.append(f"Last-Event-ID: {self._last_event_id}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _reads(self, head: str) -> bool:
        """Check the head of a response, and return whether an event stream follows."""
        status, *headers = head.lower().split("\r\n")
        if (
            status.split()[1] == "200"
            and "transfer-encoding: chunked" in headers
            and any(header.startswith("content-type: text/event-stream") for header in headers)
        ):
            return True
        self.stopped_by = status.split()[1]  # "fail the connection": for good
        return False

    def _read(self, stream: EventStream, data: bytes) -> None:
        for event in stream.feed(data):
            if event.is_control:
                self.controls.append(event)
            else:
                self.events.append(event)
                self.times.append(asyncio.get_running_loop().time())
            if event.type == "reset":
                self.discarded.append(self.events)
                self.events = []
            if event.type in ENDS and self._closes:
                self.stopped_by = event.type
                break
        self._last_event_id = stream.last_event_id
        if stream.retry_ms is not None:
            self._retry_ms = stream.retry_ms
