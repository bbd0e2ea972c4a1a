"""Claims: what a request says of the stream that it comes back to, and of who it is.

All of it is hostile input: what is no cursor of ours counts as none.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from sse_middleware.protocol.event_ids import EventId, parse_event_id

logger = logging.getLogger("sse_middleware")

CURSOR_PARAMETERS = frozenset(("last_event_id", "lastEventId", "evs_last_event_id"))
"""Query parameters that may carry a cursor: ours, and those of two polyfills."""
CANCEL_PARAMETER = "sse_cancel"
"""The query parameter of a POST that ends the stream of the cursor which it carries."""

Identify = Callable[[Any], str | None]
"""Tells from the scope of a request whose it is, `None` or `""` where it is nobody's."""

_HEADER = b"last-event-id"
_FIELDS_LIMIT = 100
_BODY_BYTES = 1 << 20
"""The longest body by which a POST can resume; chats with a few images fit."""
_PARAMETER = re.compile(
    rb"(?:^|&)(?:%b)=" % "|".join([*CURSOR_PARAMETERS, CANCEL_PARAMETER]).encode()
)
_COOKIE = re.compile(rb"\s*([^=;\s]+)=([^;]*)")


def last_event_id(scope: Mapping[str, Any]) -> str | None:
    """Return the last event id of a request, `None` where it has none.

    That of the header goes before one in the query: a page that was cut again and again has the
    first one in its address, and the browser the newest.
    """
    in_headers = [value for name, value in scope.get("headers") or () if name == _HEADER]
    if in_headers:
        return _decoded(in_headers[0]) if len(in_headers) == 1 else None
    query = scope.get("query_string")
    if not (query and _PARAMETER.search(query)):
        return None
    values = [value for name, value in _pairs(query) if name in CURSOR_PARAMETERS]
    return next(filter(parse_event_id, values), next(iter(values), None))


def cancelled_id(scope: Mapping[str, Any]) -> str | None:
    """Return the event id of the stream that a request asks to end, `None` where it asks not."""
    method = scope.get("method")
    if method == "DELETE":
        return last_event_id(scope)
    query = scope.get("query_string")
    if method == "POST" and query and _PARAMETER.search(query):
        return next((value for name, value in _pairs(query) if name == CANCEL_PARAMETER), None)
    return None


def claims_something(scope: Mapping[str, Any]) -> bool:
    """Tell whether a request may have a last event id, or ask for an end; most do not."""
    for name, _ in scope.get("headers") or ():
        if name == _HEADER:
            return True
    query = scope.get("query_string")
    return bool(query and _PARAMETER.search(query))


def without_event_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return `headers` without the one that carries a cursor of ours, which no app knows."""
    return [(name, value) for name, value in headers if name != _HEADER]


def identity_of(
    scope: Mapping[str, Any],
    headers: Mapping[bytes, bytes],
    identify: Identify | None,
    cookies: Iterable[str],
) -> str | None:
    """Return a digest of whoever asks.

    Args:
        scope: the request's.
        headers: what `request_headers` has picked.
        identify: what the operator has given for it, and knows best.
        cookies: the names of those that tell it where there is no `Authorization`.

    Returns:
        Hexadecimal digits, `""` where the request says nothing of it, and `None` where `identify`
        has failed, so that nobody can be told from anybody.
    """
    if identify is not None:
        try:
            who = identify(scope)
        except Exception:
            logger.exception("identify(scope) has failed; the request can resume nothing")
            return None
        if who:
            return _digest(b"identity", str(who).encode("utf-8", "surrogatepass"))
    if b"authorization" in headers:
        return _digest(b"authorization", headers[b"authorization"])
    if not cookies or b"cookie" not in headers:
        return ""
    found = dict(_COOKIE.findall(headers[b"cookie"]))
    named = [found[name] for name in (name.encode() for name in cookies) if name in found]
    return _digest(b"cookies", *named) if named else ""


def place_of(scope: Mapping[str, Any]) -> str:
    """Return the path that a request has asked for, as it stood on the wire where that is known.

    Layers of an app may change `path`; nobody has a reason to change `raw_path`.
    """
    raw: bytes = scope.get("raw_path") or b""
    path: str = scope.get("path", "")
    told = raw.partition(b"?")[0].decode("latin-1")
    return path if told in (path, "") else told  # one object, where it is kept


def stream_name(name: str) -> str:
    """Return what the store calls a stream that the app has named."""
    return f"name:{name}"


def key_name(key: str, place: str) -> str:
    """Return what the store calls the stream of a `stream_key`."""
    return f"key:{place}:{key}"


class ResumeIntent(NamedTuple):
    """What has become of the cursor of a request that the app answers after all.

    Attributes:
        cursor: the cursor, `None` where the request has none of ours.
        reset: why the client cannot go on where it was, `""` where it can or never has been.
    """

    cursor: EventId | None = None
    reset: str = ""


NO_CLAIM = ResumeIntent()


class RequestBody:
    """The body of a request, for as long as its digest may be asked for.

    Attributes:
        complete: whether all of it has come.
    """

    __slots__ = ("_parts", "_size", "complete")

    def __init__(self) -> None:
        self._parts: list[bytes] | None = []
        self._size = 0
        self.complete = False

    @property
    def is_too_long(self) -> bool:
        """Whether it is longer than what is kept of one."""
        return self._parts is None

    def add(self, message: Mapping[str, Any]) -> None:
        """Take a message of the server's, and forget all of a body that is too long."""
        part: bytes = message.get("body", b"")
        self._size += len(part)
        if self._size > _BODY_BYTES:
            self._parts = None
        elif self._parts is not None:
            self._parts.append(part)
        self.complete = not message.get("more_body", False)

    def digest(self) -> str | None:
        """Return a digest of the whole body, `None` where it is not known or too long."""
        if self._parts is None or not self.complete:
            return None
        digest = hashlib.blake2b(digest_size=16)
        for part in self._parts:
            digest.update(part)
        return digest.hexdigest()


def _digest(kind: bytes, *values: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16, person=kind)
    for value in values:
        digest.update(b"%d:%b" % (len(value), value))
    return digest.hexdigest()


def _decoded(value: bytes) -> str | None:
    try:
        # "encoded as UTF-8" (WHATWG HTML 9.2.3). NUL and line ends are in no id.
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return None if any(character in text for character in "\0\r\n") else text or None


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        pairs = parse_qsl(query.decode("latin-1"), max_num_fields=_FIELDS_LIMIT)
    except ValueError:
        return []
    return [(name, value) for name, value in pairs if not any(c in value for c in "\0\r\n")]
