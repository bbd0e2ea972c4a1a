"""A TCP proxy that cuts connections, and a client that comes back as `EventSource` does.

The client is written from WHATWG HTML 9.2 (https://html.spec.whatwg.org/#server-sent-events) and
RFC 9112, with nothing of ours in it, so that it can tell what ours does wrong.
"""

import asyncio
import codecs
import contextlib
import enum
import itertools
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

_HOST = "127.0.0.1"
_READ_BYTES = 1 << 16
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_NO_CONTENT = b"HTTP/1.1 204"


class How(enum.StrEnum):
    """What becomes of the two halves of a connection that is cut."""

    CLOSED = "closed"
    """Both are closed in order (FIN)."""
    RESET = "reset"
    """Both are reset (RST)."""
    UNNOTICED = "unnoticed"
    """The client's is reset; the server goes on writing, as it does into a dead network."""


@dataclass(frozen=True)
class Cut:
    """A cut of one connection.

    Attributes:
        place: how many bytes of the response (its head and the framing of its chunks included)
            come through; or a regular expression, behind whose first match there is no more.
        how: what becomes of the connection.
        held: whether no byte comes through before the response is whole, so that its producer has
            ended already when the cut comes.
    """

    place: int | bytes
    how: How = How.CLOSED
    held: bool = False

    def end_in(self, response: bytes) -> int | None:
        """Return where to cut what has come of a response, `None` where that place is to come."""
        if isinstance(self.place, int):
            return self.place if len(response) >= self.place else None
        found = re.search(self.place, response)
        return None if found is None else found.end()


class CuttingProxy:
    """Stand before servers, and cut the first connections, each by its own cut.

    Args:
        ports: of the servers; each connection goes to the next one, as behind a balancer.
        cuts: of the first connections.

    Attributes:
        port: where it listens.
        made: the cuts that were made; one behind the end of a response is not.
        passed: how many bytes of the longest response came through.
    """

    def __init__(self, ports: Sequence[int], cuts: Iterable[Cut] = ()) -> None:
        self.port = 0
        self.made: list[Cut] = []
        self.passed = 0
        self._server_ports: Iterator[int] = itertools.cycle(ports)
        self._cuts = iter(cuts)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, _HOST)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        cut = next(self._cuts, None)
        try:
            from_server, to_server = await asyncio.open_connection(_HOST, next(self._server_ports))
        except OSError:
            _reset(to_client)
            return
        asking = asyncio.create_task(_forward(from_client, to_server))
        try:
            if await self._answer(from_server, to_client, cut):
                return
            assert cut is not None
            self.made.append(cut)
            asking.cancel()
            if cut.how is How.CLOSED:
                to_client.close()
                to_server.write_eof()
            else:
                _reset(to_client)
            if cut.how is not How.RESET:
                # A socket that is closed before all is read would be reset.
                while await from_server.read(_READ_BYTES):
                    pass
        except OSError:
            pass  # the client or the server has gone by itself
        finally:
            asking.cancel()
            if cut is not None and cut.how is How.RESET:
                _reset(to_server)
            for writer in (to_client, to_server):
                writer.close()
            for writer in (to_client, to_server):
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _answer(
        self, from_server: asyncio.StreamReader, to_client: asyncio.StreamWriter, cut: Cut | None
    ) -> bool:
        """Pass a response on, and tell whether all of it went through."""
        response, passed = b"", 0
        async for data in _arriving(from_server, held=cut is not None and cut.held):
            response += data
            end = None if cut is None else cut.end_in(response)
            to_client.write(response[passed:end])
            await to_client.drain()
            passed = len(response) if end is None else end
            self.passed = max(self.passed, passed)
            if end is not None:
                return False
        return True


async def _arriving(reader: asyncio.StreamReader, *, held: bool) -> AsyncIterator[bytes]:
    if held:
        response = b""
        while not response.endswith(_LAST_CHUNK) and not response.startswith(_NO_CONTENT):
            data = await reader.read(_READ_BYTES)
            if not data:
                break
            response += data
        yield response
    while data := await reader.read(_READ_BYTES):
        yield data


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Dispatched(NamedTuple):
    """An event as a page gets it."""

    type: str
    data: str
    last_event_id: str

    @property
    def is_control(self) -> bool:
        """Whether it is one of the middleware's, and not of an app that likes the same names."""
        return self.type in CONTROLS and '"stream_id"' in self.data


CONTROLS = ("start", "heartbeat", "complete", "error", "reset")
ENDS = ("complete", "error")


_LINE_ENDS_AND_OTHERS = re.compile(r"[\r\n]|[^\r\n]+")


class EventStream:
    """Read one event stream as WHATWG HTML 9.2.6 says.

    Attributes:
        last_event_id: that of the event source, which a block sets, and no stream by its start.
        retry_ms: the reconnection time, `None` where the stream has not set it.
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
        """Dispatch what is whole with the next bytes; the rest waits for its end."""
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
    """Return what a client dispatches for a whole event stream."""
    return list(EventStream().feed(body))


_CHUNK_SIZE = re.compile(rb"(?:\r\n)?([0-9A-Fa-f]+)[^\r\n]*\r\n")


class Chunked:
    """Take the chunked transfer coding off a body (RFC 9112 7.1), however it arrives.

    Attributes:
        ended: whether the last chunk has come.
    """

    def __init__(self) -> None:
        self.ended = False
        self._raw = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the body that have come, whether or not their chunk is whole."""
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


class Client:
    """An event source on `path` behind `port`, which comes back until it is told the end.

    Args:
        port: where to connect.
        path: what to ask for.
        haste: by what to multiply reconnection times; 0 comes back at once.
        closes: whether it is closed at the end that the events tell, as a page does that knows of
            them; one that does not comes back until it gets a 204.
        last_event_id: what it has already, when it begins.

    Attributes:
        events: the app's events, those behind the last `reset`.
        times: when each of all the app's events came, by the clock of the loop.
        controls: the middleware's.
        discarded: the app's events that it has thrown away at each `reset`.
        asked_with: the last event id of each connection, `""` for none.
        stopped_by: the event or the status that was the end, `""` while there is none.
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
        """Connect and come back until the end.

        Raises:
            RuntimeError: it has come back so often that it would for ever.
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
            # Not a stream reader: that forgets what has come where a reset comes behind it.
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
        ]
        if self._last_event_id:
            lines.append(f"Last-Event-ID: {self._last_event_id}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _reads(self, head: str) -> bool:
        """Take the head of a response, and tell whether an event stream follows."""
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
