"""The client of the commands: sends one request, and records what comes back.

A thin shell around `http.client`, so that the commands need no extra. A timer closes the socket at
the deadline, which also interrupts a server that sends its headers, or the size of a chunk, byte by
byte; no read has a timeout of its own.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from sse_middleware.doctor.visit import MAX_BODY_BYTES, Chunk, Ending, Visit

CONNECT_SECONDS = 10.0

_READ_BYTES = 1 << 16
_HTTP_1_0 = 10  # as `http.client` writes it
_SAFE = "%/:=&?~#+!$,;'@()*[]|"
"""The characters of a path that are sent as they are."""

Until = Callable[[bytes], bool]
"""Gets each chunk, and returns whether the body so far is enough."""


class InvalidURLError(ValueError):
    """A URL cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to request, and how.

    Attributes:
        url: the URL.
        method: the HTTP method.
        headers: the headers that the user has set, by their names in lower case.
        body: the body of the request.
        verify: whether the certificate of the server is verified.
    """

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid or not self.url.isprintable():
            raise InvalidURLError(
                f"the URL is {self.url!r}, allowed is one with http:// or https://, "
                "such as http://localhost:8000/chat"
            )
        if parts.username is not None:
            raise InvalidURLError("credentials belong in --header 'Authorization: …', not in a URL")

    @property
    def shown(self) -> str:
        """The URL without its query, which may contain secrets."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path or '/'}"

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return urlsplit(self.url).scheme == "https"

    def connection(self, protocols: tuple[str, ...] = ("http/1.1",)) -> http.client.HTTPConnection:
        """Return a connection that is not open yet, and offers `protocols` in TLS."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if not self.is_encrypted:
            return http.client.HTTPConnection(host, parts.port, timeout=CONNECT_SECONDS)
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(list(protocols))
        return http.client.HTTPSConnection(
            host, parts.port, timeout=CONNECT_SECONDS, context=context
        )

    @property
    def request_target(self) -> str:
        """The path and the query, as the request line has them."""
        parts = urlsplit(self.url)
        query = f"?{parts.query}" if parts.query else ""
        return quote((parts.path or "/") + query, safe=_SAFE)


class _Request(NamedTuple):
    method: str
    target: str
    body: bytes | None
    headers: Mapping[str, str]


def fetch(
    target: Target,
    headers: Mapping[str, str],
    *,
    seconds: float,
    method: str | None = None,
    until: Until | None = None,
) -> Visit:
    """Send a request, and record its response until its end.

    Args:
        target: the request.
        headers: further headers; those of the target have precedence.
        seconds: the time after which the connection is closed.
        method: another method than that of the target; then there is no body.
        until: closes the connection earlier, after the chunk with which it returns `True`.
    """
    request = _Request(
        method or target.method,
        target.request_target,
        target.body if method is None else None,
        {**headers, **target.headers},
    )
    connection = target.connection()
    try:
        connection.connect()
    except (OSError, ValueError) as exc:
        return Visit(failure=f"cannot connect: {_cause(exc)}", ending=Ending.FAILED)
    with _deadline(connection.sock, seconds) as is_over:
        return _exchange(connection, request, until, is_over)


def offers_http2(target: Target) -> bool | None:
    """Return whether a server offers HTTP/2 to browsers, `None` if it does not say."""
    if not target.is_encrypted:
        return False
    connection = target.connection(("h2", "http/1.1"))
    try:
        connection.connect()
        connected = connection.sock
        chosen = connected.selected_alpn_protocol() if isinstance(connected, ssl.SSLSocket) else ""
    except (OSError, ValueError):
        return None
    finally:
        connection.close()
    return chosen == "h2"


@contextmanager
def _deadline(connected: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Shut a socket down after a time, and close it after the block; yield whether it is over."""
    is_over = threading.Event()

    def shut_down() -> None:
        is_over.set()
        with suppress(OSError):
            # Not that of a TLS socket, which another thread must not call during a read.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    connected.settimeout(None)
    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield is_over
    finally:
        timer.cancel()
        connected.close()


def _exchange(
    connection: http.client.HTTPConnection,
    request: _Request,
    until: Until | None,
    is_over: threading.Event,
) -> Visit:
    sent_at = time.monotonic()
    try:
        connection.request(*request)
        response = connection.getresponse()
    except (OSError, ValueError, http.client.HTTPException) as exc:
        failure = "no response start in time" if is_over.is_set() else _cause(exc)
        ended_at = time.monotonic() - sent_at
        return Visit(failure=failure, ending=Ending.FAILED, ended_at=ended_at)
    head_at = time.monotonic() - sent_at
    with response:
        chunks, ending = _read(response, sent_at, until)
    if is_over.is_set():  # `http.client` takes a size that is cut off for a whole one
        ending = Ending.LEFT
    return Visit(
        status=response.status,
        http_version="1.0" if response.version == _HTTP_1_0 else "1.1",
        headers=tuple((name.lower(), value) for name, value in response.getheaders()),
        head_at=head_at,
        chunks=tuple(chunks),
        ending=ending,
        ended_at=time.monotonic() - sent_at,
    )


def _read(
    response: http.client.HTTPResponse, sent_at: float, until: Until | None
) -> tuple[list[Chunk], Ending]:
    """Read a body until its end; return its chunks, and how it has ended."""
    chunks, size = list[Chunk](), 0
    try:
        while data := response.read1(_READ_BYTES):
            chunks.append(Chunk(time.monotonic() - sent_at, data))
            size += len(data)
            if size >= MAX_BODY_BYTES or (until is not None and until(data)):
                return chunks, Ending.LEFT
    except (OSError, ValueError, http.client.HTTPException):
        return chunks, Ending.CUT
    if response.chunked or response.length == 0:
        return chunks, Ending.COMPLETE
    return chunks, Ending.CLOSED if response.length is None else Ending.CUT


def _cause(exc: Exception) -> str:
    """Return the text of an exception, on one line."""
    if isinstance(exc, http.client.RemoteDisconnected):
        return "the connection was closed without a response"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {exc.verify_message}"
    return " ".join(str(exc).split()) or type(exc).__name__
