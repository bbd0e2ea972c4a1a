"""The load generator: bare sockets, so that it costs less than the servers that it measures.

It polls for answers every tenth of a millisecond. If it slept until an answer arrives, the server
would pay for its wake-up. If it polled all the time, it would do a part of the server's work,
because on the loopback interface the active process handles the incoming segments.
"""

import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlencode

from benchmarks.processes import TIMEOUT_SECONDS, BenchmarkError

LAST_CHUNK = b"\r\n0\r\n\r\n"
_PAUSE = 0.0001  # seconds
_MANY_BYTES = 1 << 18
_ETHERNET = 1400  # bytes of a segment; those of the loopback interface have 64 KiB


@dataclass(frozen=True)
class Request:
    """A request, and the check that its response is complete.

    Attributes:
        path: with the query.
        headers: in addition to `Host`.
        mark: occurs once in each event; not shorter than `end`.
        marks: their number in a complete response.
        end: the last bytes of the response.
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
    """Return a blocking connection to the server; a narrow one has small buffers."""
    connection = socket.socket()
    if narrow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _ETHERNET)
    connection.settimeout(TIMEOUT_SECONDS)
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def first_byte(port: int, request: Request, *, ends: bool = True) -> tuple[float, bytes]:
    """Send a request on a new connection.

    Args:
        port: of the server.
        request: asks the server to close the connection if the response ends.
        ends: read the response to its end, so that the next measurement does not overlap with it.

    Returns:
        The seconds from the start of the connection to the first byte of the body, and all bytes.
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
    """A connection that sends the same request again and again."""

    def __init__(self, port: int, request: Request) -> None:
        self.socket = connect(port)
        self._request = request
        self._encoded = request.encoded()
        self._kept = len(request.mark) - 1
        self._tail = b""
        self._marks = 0

    def send(self) -> None:
        """Send the request."""
        self._tail = b""
        self._marks = 0
        self.socket.sendall(self._encoded)

    def read(self) -> bool:
        """Read the bytes that have arrived; return whether the response is complete.

        Raises:
            BenchmarkError: the response has ended without some of its events.
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
    """Persistent connections, each of which sends the next request after a response."""

    def __init__(self, port: int, request: Request, connections: int) -> None:
        self._connections = [Connection(port, request) for _ in range(connections)]
        self._selector = selectors.DefaultSelector()
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def fetch(self, responses: int) -> None:
        """Request `responses`, at least one on each connection, and read them to their ends."""
        for connection in self._connections:
            connection.send()
        sent = len(self._connections)
        ended = 0
        while ended < max(responses, len(self._connections)):
            for key, _ in self._ready():
                if key.data.read():
                    ended += 1
                    if sent < responses:
                        sent += 1
                        key.data.send()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            if ready := self._selector.select(0):
                return ready
        raise BenchmarkError("the server does not answer")

    def close(self) -> None:
        """Close the connections."""
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()


@dataclass(slots=True)
class Stream:
    """An open stream."""

    socket: socket.socket
    last_received: float = 0.0


Received = Iterator[tuple[Stream, bytes, float]]
"""Streams with the bytes that they have received, and the monotonic time."""


class Streams:
    """Open streams.

    Args:
        port: of the server.
        request: opens a stream.
    """

    def __init__(self, port: int, request: Request) -> None:
        self._port = port
        self._encoded = request.encoded()
        self._streams: list[Stream] = []
        self._opened = 0
        self._selector = selectors.DefaultSelector()

    def open(self, number: int, per_second: float) -> Received:
        """Open streams and read all of them, until each has received something."""
        start = time.monotonic()
        for count in range(number):
            yield from self.receive(start + count / per_second - time.monotonic())
            self.add(self._encoded)
        deadline = time.monotonic() + TIMEOUT_SECONDS + number / per_second
        while self._opened < number:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"only {self._opened} of {number} streams opened")
            yield from self.receive(0.05)

    def add(self, encoded: bytes) -> None:
        """Open a stream with another request; do not wait for it."""
        stream = Stream(connect(self._port))
        stream.socket.sendall(encoded)
        self._streams.append(stream)
        self._selector.register(stream.socket, selectors.EVENT_READ, stream)

    def receive(self, seconds: float) -> Received:
        """Yield all bytes that arrive within a time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(_PAUSE)
            for key, _ in self._selector.select(0):
                stream: Stream = key.data
                data = stream.socket.recv(_MANY_BYTES)
                if not data:
                    raise BenchmarkError("the server has closed a stream")
                now = time.monotonic()
                if not stream.last_received:
                    self._opened += 1
                    stream.last_received = now
                yield stream, data, now

    def close(self) -> None:
        """Close all streams."""
        self._selector.close()
        for stream in self._streams:
            stream.socket.close()
