"""The load: sockets and nothing around them, so that it is cheaper than what it measures.

It looks for answers every tenth of a millisecond. One that slept until there are some would be
woken at the server's cost, and one that looked all the time would do a part of the server's work,
for on one machine whoever holds the socket at that moment takes the segments in.
"""

import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlencode

from benchmarks.processes import PATIENCE, BenchmarkError

LAST_CHUNK = b"\r\n0\r\n\r\n"
_PAUSE = 0.0001  # seconds
_MANY_BYTES = 1 << 18
_ETHERNET = 1400  # bytes of a segment; the loopback's have 64 KiB, and buffers to match


@dataclass(frozen=True)
class Request:
    """What is asked, and how its response is known to be whole.

    Attributes:
        path: with the query.
        headers: beside `Host`.
        mark: stands in each event once; no shorter than `end`.
        marks: how many of them a response has.
        end: the response's last bytes.
    """

    path: str
    headers: Mapping[str, str]
    mark: bytes = b'"content":"hello"'
    marks: int = 1
    end: bytes = LAST_CHUNK

    def encoded(self) -> bytes:
        """Return the bytes of the request."""
        lines = [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(
            [f"GET {self.path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]
        ).encode()


def stream_request(headers: Mapping[str, str], events: int, burst: int) -> Request:
    """Return a request for a stream of `events`."""
    query = urlencode({"events": events, "burst": burst})
    return Request(f"/stream?{query}", headers, marks=events)


def connect(port: int, *, narrow: bool = False) -> socket.socket:
    """Return a connection to the server, which blocks; a narrow one has small buffers."""
    connection = socket.socket()
    if narrow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _ETHERNET)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def first_byte(port: int, request: Request, *, ends: bool = True) -> tuple[float, bytes]:
    """Ask for something on a connection of its own.

    Args:
        port: of the server.
        request: what is asked.
        ends: whether the response does, and is read until then, as the rest is not to burden
            whoever comes next.

    Returns:
        The seconds from the connecting to the body's first byte, and all that has been read.
    """
    encoded = request.encoded()
    start = time.perf_counter()
    with closing(connect(port)) as connection:
        connection.sendall(encoded)
        seen = b""
        while not seen.partition(b"\r\n\r\n")[2]:
            data = connection.recv(65536)
            if not data:
                raise BenchmarkError(f"{request.path} has no body")
            seen += data
        taken = time.perf_counter() - start
        while ends and (data := connection.recv(65536)):
            seen += data
    return taken, seen


class Connection:
    """A connection that asks for the same thing again and again."""

    def __init__(self, port: int, request: Request) -> None:
        self.socket = connect(port)
        self._request = request
        self._encoded = request.encoded()
        self._kept = len(request.mark) - 1
        self._tail = b""
        self._marks = 0

    def ask(self) -> None:
        """Send the request."""
        self._tail = b""
        self._marks = 0
        self.socket.sendall(self._encoded)

    def read(self) -> bool:
        """Read what is there, and tell whether the response has ended with it.

        Raises:
            BenchmarkError: it has ended without all of its events.
        """
        data = self.socket.recv(_MANY_BYTES)
        seen = self._tail + data
        self._marks += seen.count(self._request.mark)
        self._tail = seen[-self._kept :]
        if data and not seen.endswith(self._request.end):
            return False
        if self._marks != self._request.marks:
            raise BenchmarkError(
                f"{self._request.path} sent {self._marks} events of {self._request.marks}"
            )
        return True


class Load:
    """Kept connections, each of which asks again as soon as it is answered."""

    def __init__(self, port: int, request: Request, connections: int) -> None:
        self._connections = [Connection(port, request) for _ in range(connections)]
        self._selector = selectors.DefaultSelector()
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def fetch(self, responses: int) -> None:
        """Ask for `responses`, at least one by each connection, and read them to their ends."""
        for connection in self._connections:
            connection.ask()
        asked = len(self._connections)
        ended = 0
        while ended < max(responses, len(self._connections)):
            for key, _ in self._ready():
                if key.data.read():
                    ended += 1
                    if asked < responses:
                        asked += 1
                        key.data.ask()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(_PAUSE)
            if ready := self._selector.select(0):
                return ready
        raise BenchmarkError("the server has fallen silent")

    def close(self) -> None:
        """Close the connections."""
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()


@dataclass(slots=True)
class Stream:
    """An open stream."""

    socket: socket.socket
    last_heard: float = 0.0


Heard = Iterator[tuple[Stream, bytes, float]]
"""What has come on which stream, and when by the monotonic clock."""


class Streams:
    """Streams that are opened, one after another, and listened to.

    Args:
        port: of the server.
        request: what each asks.
    """

    def __init__(self, port: int, request: Request) -> None:
        self._port = port
        self._encoded = request.encoded()
        self._streams: list[Stream] = []
        self._opened = 0
        self._selector = selectors.DefaultSelector()

    def open(self, number: int, per_second: float) -> Heard:
        """Open streams, tell all that comes meanwhile, and go on until each has sent something."""
        start = time.monotonic()
        for count in range(number):
            yield from self.listen(start + count / per_second - time.monotonic())
            self.add(self._encoded)
        patience = time.monotonic() + PATIENCE + number / per_second
        while self._opened < number:
            if time.monotonic() > patience:
                raise BenchmarkError(f"only {self._opened} of {number} streams opened")
            yield from self.listen(0.05)

    def add(self, encoded: bytes) -> None:
        """Open a stream by a request of its own, and do not wait for it."""
        stream = Stream(connect(self._port))
        stream.socket.sendall(encoded)
        self._streams.append(stream)
        self._selector.register(stream.socket, selectors.EVENT_READ, stream)

    def listen(self, seconds: float) -> Heard:
        """Tell all that comes within a time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(_PAUSE)
            for key, _ in self._selector.select(0):
                stream: Stream = key.data
                data = stream.socket.recv(_MANY_BYTES)
                if not data:
                    raise BenchmarkError("the server has closed a stream")
                now = time.monotonic()
                if not stream.last_heard:
                    self._opened += 1
                    stream.last_heard = now
                yield stream, data, now

    def close(self) -> None:
        """Close all streams."""
        self._selector.close()
        for stream in self._streams:
            stream.socket.close()
