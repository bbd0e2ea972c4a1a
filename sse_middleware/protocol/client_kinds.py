"""Kinds of clients: which control events a client may receive besides the bytes of the app.

The kinds are those of clients of marked endpoints; without a mark, no client receives any.

A page with a native `EventSource` needs named events and ids, because it has access to nothing
else. The same events break other clients, several of which send the same `Accept`. A client is
therefore `EVENTSOURCE` only if its request proves it, and `PLAIN` otherwise.
"""

import enum

from sse_middleware.config.endpoint_options import CommentStyle

EVENT_STREAM = b"text/event-stream"


class ClientKind(enum.StrEnum):
    """The kind of a client."""

    EVENTSOURCE = "eventsource"
    """Reads named events and resumes by event id: receives heartbeats, ids and an end event."""
    PLAIN = "plain"
    """Any other client: receives the bytes of the app, and a comment during a long silence."""
    OPENAI = "openai"
    """A plain client of a stream of chat completion chunks: receives an end that SDKs parse."""
    JSON = "json"
    """A client that accepts no event stream: receives one document, if the mark collects them."""
    UNMARKED = "unmarked"
    """Any client of an endpoint without a mark: its stream is measured and gets headers."""
    OFF = "off"
    """A client outside the rollout: its stream is measured and not changed."""


def detect_client_kind(
    method: str, headers: dict[bytes, bytes], *, has_event_id: bool
) -> ClientKind:
    """Return the kind of the client that sends a request.

    Args:
        method: the HTTP method.
        headers: the headers of the request, as in `SSERequest.headers`.
        has_event_id: whether the request has an event id of the middleware.
    """
    accepts = headers.get(b"accept", b"").lower()
    if EVENT_STREAM not in accepts and not has_event_id:
        return ClientKind.PLAIN
    if has_event_id or _is_named(accepts):
        return ClientKind.EVENTSOURCE
    # "Set request's cache mode to "no-store"" (WHATWG HTML 9.2.2), for which a browser adds
    # Cache-Control: no-cache (https://fetch.spec.whatwg.org/#http-network-or-cache-fetch).
    is_native = (
        method == "GET"
        and accepts.strip() == EVENT_STREAM
        and headers.get(b"cache-control", b"").strip().lower() == b"no-cache"
        and _is_from_browser(headers)
        and b"\nmcp-" not in b"\n".join((b"", *headers))  # one search in all names
    )
    return ClientKind.EVENTSOURCE if is_native else ClientKind.PLAIN


def _is_named(accepts: bytes) -> bool:
    """Return whether a client declares that it reads named events, as our browser client does."""
    if accepts == EVENT_STREAM:
        return False
    return [part.strip() for part in accepts.split(b";")] == [EVENT_STREAM, b"events=named"]


def _is_from_browser(headers: dict[bytes, bytes]) -> bool:
    """Return whether headers are those of a browser's script.

    Libraries such as sseclient, requests-sse and aiohttp-sse-client send the `Accept` and
    `Cache-Control` of a browser, but their own `User-Agent`. Browsers send fetch metadata in a
    secure context: "cors" and "empty" for an `EventSource`
    (https://www.w3.org/TR/fetch-metadata/#sec-fetch-dest-header).
    """
    if not headers.get(b"user-agent", b"").startswith(b"Mozilla/"):
        return False
    metadata = headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")
    if metadata == (None, None):
        return b"sec-fetch-site" not in headers
    return metadata == (b"cors", b"empty")


class CommentForm(enum.StrEnum):
    """How the heartbeat comment of a plain client is written.

    A hand-written parser that splits at blank lines loses the event after a comment without one.
    Some decoders of libraries dispatch an empty event at each blank line.
    """

    BLOCK = "block"
    """With a blank line."""
    BLOCK_UNTIL_ID = "block until an id"
    """With a blank line until the stream has an id; decoders that keep an id dispatch at each."""
    LINE = "line"
    """Without a blank line."""


def comment_form(style: CommentStyle) -> CommentForm:
    """Return the form of heartbeat comment that a setting selects; with `off` there is none."""
    if style in ("line", "block"):
        return CommentForm(style)
    return CommentForm.BLOCK_UNTIL_ID
