"""Families: what kind of client asks, which decides what it may be sent beside the app's bytes.

Named events and ids are needed by a native `EventSource`, whose page sees nothing else, and
break other clients, several of which send the same `Accept`. So `EVENTSOURCE` is given only to
who shows that it is one, and everybody else is `PLAIN`.
"""

import enum
import hashlib

from sse_middleware.config.options import CommentStyle

ALL = 100
"""Percent."""

EVENT_STREAM = b"text/event-stream"


class ClientKind(enum.StrEnum):
    """What kind of client asks."""

    EVENTSOURCE = "eventsource"
    """Reads named events and resumes by cursor: heartbeats, ids and an end it can see."""
    PLAIN = "plain"
    """Anything else: the app's bytes, and a comment when they pause for long."""
    OPENAI = "openai"
    """A plain client of a stream of chat completion chunks, with an end that its SDKs know."""
    OFF = "off"
    """A client that the rollout has left out: measured, and not touched."""


def family_of(method: str, headers: dict[bytes, bytes], *, has_cursor: bool) -> ClientKind:
    """Tell the family of a client from its request.

    Args:
        method: the HTTP method.
        headers: what `request_headers` has picked.
        has_cursor: whether it came with a cursor of ours.
    """
    accepts = headers.get(b"accept", b"").lower()
    if EVENT_STREAM not in accepts and not has_cursor:
        return ClientKind.PLAIN
    accept = [part.strip() for part in accepts.split(b";")]
    if accept == [EVENT_STREAM, b"events=named"] or has_cursor:
        return ClientKind.EVENTSOURCE
    # "Set request's cache mode to "no-store"" (WHATWG HTML 9.2.2), for which a browser adds
    # Cache-Control: no-cache (https://fetch.spec.whatwg.org/#http-network-or-cache-fetch). Of all
    # clients only a native EventSource sends this pair unasked.
    native = (
        method == "GET"
        and accept == [EVENT_STREAM]
        and headers.get(b"cache-control", b"").strip().lower() == b"no-cache"
        and b"mcp-" not in headers
    )
    return ClientKind.EVENTSOURCE if native else ClientKind.PLAIN


class CommentForm(enum.StrEnum):
    """How the heartbeat comment of a plain client is written.

    A hand-written parser that splits at blank lines loses the event behind a comment that has
    none; some decoders of libraries dispatch an empty event at any blank line.
    """

    BLOCK = "block"
    """With a blank line."""
    BLOCK_UNTIL_ID = "block until an id"
    """With a blank line until the stream has an id, from when on SDKs dispatch at any."""
    LINE = "line"
    """Without."""


def comment_form(headers: dict[bytes, bytes], style: CommentStyle) -> CommentForm:
    """Tell the form of comment that suits a client.

    Args:
        headers: what `request_headers` has picked.
        style: the setting; `auto` goes by what the client accepts. Libraries name just event
            streams (some twice), SDKs some type, and hand-written code names none.
    """
    if style != "auto":
        return CommentForm(style)
    accepts = headers.get(b"accept", b"*/*").lower()
    if accepts == b"*/*":
        return CommentForm.BLOCK
    accepted = {part.strip() for part in accepts.split(b",")}
    if accepted == {EVENT_STREAM}:
        return CommentForm.LINE
    return CommentForm.BLOCK if accepted == {b"*/*"} else CommentForm.BLOCK_UNTIL_ID


def in_rollout(percent: int, headers: dict[bytes, bytes], address: str) -> bool:
    """Tell whether a client belongs to the stable share of `percent` for whom we act.

    A client is told by its credentials, else by its address and browser.
    """
    if percent >= ALL:
        return True
    key = headers.get(b"authorization") or address.encode() + headers.get(b"user-agent", b"")
    digest = hashlib.blake2b(key, digest_size=4).digest()
    return int.from_bytes(digest) % 10_000 < percent * 100
