"""The head of a response: whether it is an event stream, and the headers that are added to it.

Header names and values are bytes as in ASGI. Servers send names in lower case; an app may write its
own in any case.
"""

import functools
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Final

from starlette.types import Message

from sse_middleware.config.fields import OFF
from sse_middleware.protocol.stream_terms import StreamTerms

RawHeaders = list[tuple[bytes, bytes]]

BODY = "http.response.body"
OWN_HEADERS: RawHeaders = [(b"cache-control", b"no-store"), (b"vary", b"Last-Event-ID")]
"""Headers of responses that the middleware sends itself: each is for one client and one time."""

_REPLACED = (b"cache-control", b"content-length")
_CHANGED = frozenset(
    (
        *_REPLACED,
        b"x-trace-id",
        b"x-stream-id",
        b"x-stream-max-seconds",
        b"x-heartbeat-interval",
        b"x-silence-threshold",
        b"x-accel-buffering",
    )
)
"""The headers of an app that are replaced, or replace ours."""
_USUAL_POLICY = (b"cache-control", b"no-cache, no-transform")
_PRIVATE_POLICY = (b"cache-control", b"no-cache, no-transform, private")
"""The caching policy if the app has none."""
_EVENT_STREAM = b"text/event-stream"
_SUCCESS = range(200, 300)
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


_WITHOUT_CONTENT = (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT)
"""Statuses whose responses have no body (RFC 9110 15.3.5 and 15.3.6)."""
OTHER_TYPE = "it is no event stream"
"""The reason why a response with another content type is left alone."""
_NOT_ENCODED = (b"", b"identity", b"none")
"""`none` is no content coding, but apps send it so that no layer compresses their streams."""
ENCODED = "it has a content-encoding"
"""The reason why an event stream is left alone that cannot be passed on event by event."""


def passthrough_reason(
    method: str, status: int, headers: Iterable[tuple[bytes, bytes]]
) -> str | None:
    """Return why a response is no event stream that can be handled, `None` if it is one."""
    content_type = encoding = b""
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-type":
            content_type = value
        elif lower == b"content-encoding":
            encoding = value.strip().lower()
    if content_type.partition(b";")[0].strip().lower() != _EVENT_STREAM:
        return OTHER_TYPE
    if status not in _SUCCESS:
        return "its status is not 2xx"
    if status in _WITHOUT_CONTENT:
        return "its status has no content"
    if method == "HEAD":
        return "the method is HEAD"
    if encoding not in _NOT_ENCODED:
        return ENCODED
    return None


def has_content_length(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a response has a `content-length`."""
    for name, _ in headers:  # noqa: SIM110 - a generator costs more than the comparison
        if name.lower() == b"content-length":
            return True
    return False


def unmarked_headers(
    app_headers: Iterable[tuple[bytes, bytes]], *, trace_id: str, stream_id: str
) -> RawHeaders:
    """Return the headers that an unmarked stream gets besides those of the app."""
    ours = {
        b"x-trace-id": trace_id.encode(),
        b"x-stream-id": stream_id.encode(),
        b"x-accel-buffering": b"no",
        b"cache-control": b"no-cache",
    }
    for name, _ in app_headers:
        ours.pop(name.lower(), None)
    return list(ours.items())


NUMBER_OF_UNMARKED_HEADERS: Final = len(unmarked_headers((), trace_id="", stream_id=""))
"""The headers that an unmarked stream gets if its app sets none of them."""


def announcing_headers(terms: StreamTerms) -> RawHeaders:
    """Return the headers that are the same for all streams with these terms."""
    return [
        (b"x-stream-max-seconds", seconds(terms.max_seconds)),
        (b"x-heartbeat-interval", seconds(terms.heartbeat_interval)),
        (b"x-silence-threshold", seconds(terms.silence_threshold)),
        (b"x-accel-buffering", b"no"),
    ]


def stream_headers(
    app_headers: Sequence[tuple[bytes, bytes]],
    announcing: Sequence[tuple[bytes, bytes]],
    *,
    trace_id: str,
    stream_id: str,
    has_ids: bool = False,
) -> RawHeaders:
    """Return the app's headers and then ours, for a marked stream.

    A header that the app has set is kept, except `content-length`, since the middleware adds bytes.
    The caching policy of the app is kept too, with `no-transform`; with our ids, which are secret,
    it is `private` for caches that several clients share.

    Args:
        app_headers: those of the app.
        announcing: the result of `announcing_headers`.
        trace_id: the trace id of the request.
        stream_id: the public id of the stream.
        has_ids: whether events have our ids.
    """
    ours = [(b"x-trace-id", trace_id.encode()), (b"x-stream-id", stream_id.encode()), *announcing]
    names = [name.lower() for name, _ in app_headers]
    if _CHANGED.isdisjoint(names):  # as usual
        return [*app_headers, _PRIVATE_POLICY if has_ids else _USUAL_POLICY, *ours]
    pairs = list(zip(names, app_headers, strict=True))
    policy = _cache_control(
        [pair[1] for name, pair in pairs if name == b"cache-control"], has_ids=has_ids
    )
    return [
        *(pair for name, pair in pairs if name not in _REPLACED),
        (b"cache-control", policy),
        *(pair for pair in ours if pair[0] not in names),
    ]


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


def _cache_control(of_app: Iterable[bytes], *, has_ids: bool) -> bytes:
    policy = b", ".join(of_app)
    directives = {part.strip().lower() for part in policy.split(b",")}
    if directives == {b""}:
        policy = b"no-cache"
    if b"no-transform" not in directives:
        policy += b", no-transform"
    is_private = not directives.isdisjoint((b"private", b"no-store"))
    return policy + b", private" if has_ids and not is_private else policy


def body_message(data: bytes, *, more_body: bool = True) -> Message:
    """Return the ASGI message that carries `data`."""
    return {"type": BODY, "body": data, "more_body": more_body}


def first_message(items: list[bytes | Message]) -> tuple[Message, int, list[bytes | Message]]:
    """Return the first of the messages that carry bytes and other messages in their order.

    Returns:
        The message, as large as possible; the size of its body; and the other items.
    """
    parts: list[bytes] = []
    for item in items:
        if isinstance(item, bytes):
            parts.append(item)
        elif parts:
            break
        else:
            return item, 0, items[1:]
    data = b"".join(parts)
    return body_message(data), len(data), items[len(parts) :]
