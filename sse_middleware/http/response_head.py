"""The head of a response: whether it is an event stream, and the headers that are added to it.

Header names and values are bytes as in ASGI. Servers send names in lower case; an app may write its
own in any case.
"""

import functools
from collections.abc import Iterable
from http import HTTPStatus

from starlette.types import Message

from sse_middleware.config.fields import OFF
from sse_middleware.protocol.stream_terms import StreamTerms

RawHeaders = list[tuple[bytes, bytes]]

BODY = "http.response.body"
OWN_HEADERS: RawHeaders = [(b"cache-control", b"no-store"), (b"vary", b"Last-Event-ID")]
"""Headers of responses that the middleware sends itself: each is for one client and one time."""

_OURS = frozenset(
    (
        b"x-trace-id",
        b"x-stream-id",
        b"x-stream-max-seconds",
        b"x-heartbeat-interval",
        b"x-silence-threshold",
        b"x-accel-buffering",
        b"connection",
    )
)
_EVENT_STREAM = b"text/event-stream"
_JSON = (b"content-type", b"application/json")
_OF_ONE_RESPONSE = frozenset((b"set-cookie", b"date", b"content-length"))


def is_not_event_stream(message: Message) -> bool:
    """Return whether a response start is certainly none of an event stream; most are not.

    This runs for every response of an app, and therefore checks the usual spellings only.
    """
    headers = message.get("headers") or ()
    if type(headers) is list:
        if _JSON in headers:
            return True
    elif iter(headers) is headers:
        headers = message["headers"] = list(headers)  # an iterator can be read once
    for name, value in headers:
        if name == b"content-type":
            return value[:1] not in b"tT \t" or value.lstrip()[:10].lower() != b"text/event"
    return False


def passthrough_reason(
    method: str, status: int, headers: Iterable[tuple[bytes, bytes]]
) -> str | None:
    """Return why a response is passed through, `None` if the middleware handles the stream."""
    content_type = encoding = b""
    for name, value in headers:
        if name.lower() == b"content-type":
            content_type = value
        elif name.lower() == b"content-encoding":
            encoding = value.strip().lower()
    if content_type.partition(b";")[0].strip().lower() != _EVENT_STREAM:
        return "it is no event stream"
    if encoding not in (b"", b"identity"):
        return "it has a content-encoding"
    if status != HTTPStatus.OK:
        return "its status is not 200"
    if method == "HEAD":
        return "the method is HEAD"
    return None


def stream_headers(
    app_headers: Iterable[tuple[bytes, bytes]],
    terms: StreamTerms,
    *,
    http_version: str,
    trace_id: str,
    stream_id: str,
    keep_cache_control: bool,
) -> RawHeaders:
    """Return the app's headers and then ours.

    A header that the app has set is kept, except `content-length`, since the middleware adds bytes.
    Of two caching policies the stricter one is kept, or the app's with `keep_cache_control`.
    """
    result: RawHeaders = []
    cache_control: list[bytes] = []
    taken: list[bytes] = []
    for name, value in app_headers:
        lower = name.lower()
        if lower == b"cache-control":
            cache_control.append(value)
        elif lower != b"content-length":
            if lower in _OURS:
                taken.append(lower)
            result.append((name, value))
    if keep_cache_control and cache_control:
        result += [(b"cache-control", value) for value in cache_control]
    else:
        result.append((b"cache-control", _cache_control(b", ".join(cache_control))))
    ours = [
        (b"x-trace-id", trace_id.encode()),
        (b"x-stream-id", stream_id.encode()),
        (b"x-stream-max-seconds", seconds(terms.max_seconds)),
        (b"x-heartbeat-interval", seconds(terms.heartbeat_interval)),
        (b"x-silence-threshold", seconds(terms.silence_threshold)),
        (b"x-accel-buffering", b"no"),
    ]
    if http_version == "1.1":
        # RFC 9113 8.2.2 forbids it from HTTP/2 on; HTTP/1.0 needs a length to keep a connection.
        ours.append((b"connection", b"keep-alive"))
    return result + ([pair for pair in ours if pair[0] not in taken] if taken else ours)


def serialize_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write the headers that a response has in common with one that continues it, as lines.

    `set-cookie`, `date` and `content-length` belong to one response only.
    """
    return b"".join(
        b"%b:%b\r\n" % (name, value)
        for name, value in headers
        if name.lower() not in _OF_ONE_RESPONSE and b"\r" not in value and b"\n" not in value
    )


def parse_headers(lines: bytes) -> RawHeaders:
    """Read what `serialize_headers` has written."""
    pairs = (line.partition(b":") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in pairs]


@functools.lru_cache(maxsize=64)
def seconds(value: float | None) -> bytes:
    """Write a number of seconds as a header value, `None` as the settings write it."""
    return OFF.encode() if value is None else f"{value:.10g}".encode()


def _cache_control(of_app: bytes) -> bytes:
    if not of_app:
        return b"no-cache, no-transform"
    directives = {part.strip().lower() for part in of_app.split(b",")}
    if b"no-store" in directives:
        return of_app
    private = b"private, " if b"private" in directives else b""
    return private + b"no-cache, no-transform"


def body_message(data: bytes, *, more_body: bool = True) -> Message:
    """Return the ASGI message that carries `data`."""
    return {"type": BODY, "body": data, "more_body": more_body}
