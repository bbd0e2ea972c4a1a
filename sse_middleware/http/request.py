"""A request as the middleware reads it, parsed once.

All of it is hostile input: an event id that the middleware cannot have made counts as the app's.
"""

import copy
import hashlib
import operator
import random
import re
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from starlette.types import Scope

from sse_middleware.http.routes import Mark
from sse_middleware.observability.tracing import Tracing, is_loaded, span_trace_id
from sse_middleware.protocol.client_kinds import EVENT_STREAM, ClientKind, detect_client_kind
from sse_middleware.protocol.event_ids import EventId, parse_event_id

EVENT_ID_PARAMETERS: Final = frozenset(("last_event_id", "lastEventId", "evs_last_event_id"))
"""Query parameters that may carry an event id: ours, and those of two polyfills."""
CANCEL_PARAMETER: Final = "sse_cancel"
"""Query parameter of a POST that stops a stream. Its value is ignored: addresses are logged, so
that the event id is in the body or in the header."""

_EVENT_ID_HEADER: Final = b"last-event-id"
_NAME: Final = operator.itemgetter(0)
# A repeated header is joined as RFC 9110 5.3 specifies, cookies as RFC 9113 8.2.3 does. No event id
# contains a line feed, so that two ids count as none.
_SEPARATORS: Final = {b"cookie": b"; ", _EVENT_ID_HEADER: b"\n"}
# https://www.w3.org/TR/trace-context/#traceparent-header: version 00 ends after the flags, a higher
# one may be longer, ff is forbidden, and so are a trace or parent id of zeros only.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
_TRACE_HEADERS: Final = frozenset((b"traceparent", b"x-trace-id", b"x-request-id"))
_TRACE_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_FIELDS_LIMIT: Final = 100
_STORED_CHARACTERS: Final = 1000
"""The length of a path or an origin that is stored as it is; a character in JSON takes 6 bytes."""
_PARAMETER: Final = re.compile(
    rb"(?:^|&)(?:(?:%b)=|%b(?:[=&]|$))"
    % ("|".join(EVENT_ID_PARAMETERS).encode(), CANCEL_PARAMETER.encode())
)
_CANCEL: Final = re.compile(rb"(?:^|&)%b(?:[=&]|$)" % CANCEL_PARAMETER.encode())
LONGEST_NAME: Final = 200
"""The most characters in the name of a stream."""
ANY_STREAM: Final = frozenset((EVENT_STREAM, b"text/*", b"*/*"))
"""The media types and ranges that an event stream has."""
NEVER_STREAM: Final = ("HEAD", "OPTIONS")
"""The methods of requests that get no event stream."""
_READS: Final = ("GET", "HEAD")
RESUMABLE_METHODS: Final = ("GET", "POST")


class ResumeIntent(NamedTuple):
    """The position from which a request continues a stream.

    Attributes:
        event_id: the last event that the client has, `None` if the request has no id of ours.
        reset: the reason why the client cannot continue there, `""` if it can or is new.
    """

    event_id: EventId | None = None
    reset: str = ""


NO_INTENT: Final = ResumeIntent()


class SSERequest:
    """One HTTP request. The middleware makes one only if it needs more than the scope has.

    Args:
        scope: as the attribute.
        trace_id: the trace id if it is known.
        tracing: determines the trace id if the request has a context of OpenTelemetry, or none.

    Attributes:
        scope: the ASGI scope; the app's routing adds to it while the request is handled.
        method: the HTTP method.
        headers: the headers by name; a repeated one is joined.
        last_event_id: the last event id, ours or the app's. The header has precedence over the
            query: the address of a page that was disconnected several times has the first id, and
            the browser has the newest.
        event_id: the last event id if it is one of ours.
        is_stop: whether the request stops a stream. The middleware responds to all of them itself,
            because the app would run for a stream that this process does not know.
        cancel_target: the event id in the header of such a request, else `None`.
        intent: the position from which the request continues a stream; the resume handler may
            change it.
    """

    __slots__ = (
        "_accepted_types",
        "_trace_id",
        "_tracing",
        "cancel_target",
        "event_id",
        "headers",
        "intent",
        "is_stop",
        "last_event_id",
        "method",
        "scope",
    )

    def __init__(
        self, scope: Scope, *, trace_id: str | None = None, tracing: Tracing | None = None
    ) -> None:
        self.scope = scope
        self.method: str = scope.get("method", "")
        self.headers = headers = _parse_headers(scope.get("headers") or ())
        self.last_event_id: str | None = None
        self.event_id: EventId | None = None
        self.cancel_target: EventId | None = None
        self.is_stop = False
        self.intent = NO_INTENT
        self._accepted_types: AbstractSet[bytes] | None = None
        self._trace_id = trace_id
        self._tracing = tracing
        query = scope.get("query_string")
        if _EVENT_ID_HEADER in headers or (query and _PARAMETER.search(query)):
            self._parse_event_ids(query or b"")

    @property
    def accepted_types(self) -> AbstractSet[bytes]:
        """The media types and ranges that the client accepts, without parameters."""
        if self._accepted_types is None:
            self._accepted_types = types = set()
            for part in self.headers.get(b"accept", b"*/*").lower().split(b","):
                types.add(part.partition(b";")[0].strip())
        return self._accepted_types

    @property
    def request_path(self) -> str:
        """The path as it was on the wire, without the query."""
        return request_path(self.scope)

    @property
    def idempotency_key(self) -> str:
        """The `Idempotency-Key`, `""` without one; a digest replaces a long one.

        Its draft: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
        """
        key = self.headers.get(b"idempotency-key", b"").strip().decode("latin-1")
        return key if len(key) <= LONGEST_NAME else _digest(key)

    @property
    def query(self) -> list[tuple[str, str]]:
        """The fields of the query string, without those that contain line ends or NUL."""
        return _parse_query(self.scope.get("query_string") or b"")

    @property
    def peer_host(self) -> str:
        """The host that has connected to the server, `""` for a unix socket."""
        return str((self.scope.get("client") or ("",))[0])

    @property
    def origin(self) -> str:
        """The origin of the page that makes the request, `""` if it is not sent.

        A digest replaces the end of a long one.
        """
        origin = self.headers.get(b"origin", b"").decode("latin-1")
        return origin if len(origin) <= _STORED_CHARACTERS else _shortened(origin)

    @property
    def trace_id(self) -> str:
        """The trace id: of the current span, of `traceparent`, of its own header, or a new one."""
        if self._trace_id is None:
            self._trace_id = _parse_trace_id(self.headers, self._tracing)
        return self._trace_id

    @property
    def client_kind(self) -> ClientKind:
        """The kind of the client, by this request alone."""
        has_event_id = self.intent.event_id is not None
        return detect_client_kind(self.method, self.headers, has_event_id=has_event_id)

    def wants_stream(self, mark: Mark | None, *, only_marked: bool) -> bool:
        """Return whether a stream of ours is the only useful response.

        Args:
            mark: the mark of the endpoint, which decides if it marks streams only.
            only_marked: whether streams of endpoints without a mark are left alone.
        """
        if self.method in NEVER_STREAM or self.is_stop:
            return False
        if mark is not None:
            if mark.overrides.get("enabled") is False:
                return False
            if mark.is_certain:
                # Some SDKs do not announce in `Accept` that they read a stream, but all POST.
                return self.method in RESUMABLE_METHODS or EVENT_STREAM in self.accepted_types
        elif only_marked:
            return False
        return self.intent.event_id is not None or self.accepted_types == {EVENT_STREAM}

    def with_scope(self, scope: Scope) -> "SSERequest":
        """Return this request with a scope that layers of the app have changed or copied.

        Its headers are read again, and with them the identity. The event ids stay as they are,
        because the app does not see ours.
        """
        other = copy.copy(self)
        other.scope = scope
        other.method = scope.get("method", "")
        other.headers = _parse_headers(scope.get("headers") or ())
        other._accepted_types = None  # noqa: SLF001 - its own class
        return other

    def hide_event_id(self) -> None:
        """Remove the header with our event id from the scope, since no app knows that id."""
        headers = self.scope["headers"]
        self.scope["headers"] = [pair for pair in headers if pair[0] != _EVENT_ID_HEADER]

    def _parse_event_ids(self, query: bytes) -> None:
        fields = _parse_query(query) if _PARAMETER.search(query) else []
        if _EVENT_ID_HEADER in self.headers:
            last = _decoded(self.headers[_EVENT_ID_HEADER])
        else:
            values = [value for name, value in fields if name in EVENT_ID_PARAMETERS]
            last = next(filter(parse_event_id, values), next(iter(values), None))
        self.last_event_id = last
        self.event_id = parse_event_id(last or "")
        in_header = self.event_id if _EVENT_ID_HEADER in self.headers else None
        if self.method == "DELETE":
            self.is_stop = in_header is not None
        elif self.method == "POST":
            self.is_stop = _CANCEL.search(query) is not None
        if self.is_stop:
            self.cancel_target = in_header
        elif self.method in RESUMABLE_METHODS:
            self.intent = ResumeIntent(self.event_id)


def may_have_event_id(scope: Scope) -> bool:
    """Return whether a request may have a last event id or stop a stream; most do not.

    This runs for every request, and so needs no `SSERequest`.
    """
    if _EVENT_ID_HEADER in map(_NAME, scope.get("headers") or ()):
        return True
    query = scope.get("query_string")
    return bool(query and _PARAMETER.search(query))


def request_path(scope: Scope) -> str:
    """Return the path as it was on the wire if the server passes it on, without the query.

    Layers of an app may change `path`; they have no reason to change `raw_path`. The path is stored
    with a stream, so a digest replaces the end of a long one.
    """
    raw: bytes = scope.get("raw_path") or b""
    path: str = scope.get("path", "")
    sent = raw.partition(b"?")[0].decode("latin-1")
    if sent not in (path, ""):  # otherwise one object is kept
        path = sent
    return path if len(path) <= _STORED_CHARACTERS else _shortened(path)


def app_path(scope: Scope) -> str:
    """Return the path of a request as the app's routes match it.

    ASGI has `path` include the `root_path`; older servers remove it.
    """
    path: str = scope.get("path", "")
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def is_request_for(scope: Scope, *paths: str) -> bool:
    """Return whether a request gets a page of ours at one of `paths`, below the `root_path`."""
    return scope.get("method") in _READS and app_path(scope) in paths


def stream_name(name: str, identity: str) -> str:
    """Return the store's name of a stream that an app has named, which belongs to an identity."""
    return f"name:{identity}:{name}"


def stream_key_name(key: str, path: str) -> str:
    """Return the store's name of the stream with a `stream_key`."""
    return f"key:{path}:{key}"


def _shortened(text: str) -> str:
    """Return a text of bounded length that is equal only for the same text."""
    return f"{text[:_STORED_CHARACTERS]}...{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _parse_headers(raw: Collection[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers = dict(raw)
    return headers if len(headers) == len(raw) else _joined_headers(raw)


def _joined_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers of which some are repeated."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in raw:
        values.setdefault(name, []).append(value)
    return {name: _SEPARATORS.get(name, b", ").join(found) for name, found in values.items()}


def trace_id_of(raw: Collection[tuple[bytes, bytes]], tracing: Tracing | None) -> str:
    """Return the trace id of a request with these headers, as `SSERequest.trace_id` does."""
    return _parse_trace_id(_parse_headers(raw), tracing)


def _parse_trace_id(headers: Mapping[bytes, bytes], tracing: Tracing | None) -> str:
    if not is_loaded():
        return _header_trace_id(headers) or f"{random.getrandbits(128):032x}"
    found_id = span_trace_id()
    if not found_id and tracing is not None:
        found_id = tracing.incoming_trace_id(headers)
    return found_id or _header_trace_id(headers) or _new_trace_id(tracing)


def _header_trace_id(headers: Mapping[bytes, bytes]) -> str:
    if _TRACE_HEADERS.isdisjoint(headers):
        return ""
    if b"traceparent" in headers:
        found = _TRACEPARENT.fullmatch(headers[b"traceparent"])
        if found is not None and (found[1] != b"00" or found[3] is None):
            return found[2].decode()
    for name in (b"x-trace-id", b"x-request-id"):
        if name in headers and _TRACE_ID.fullmatch(headers[name]):
            return headers[name].decode()
    return ""


def _new_trace_id(tracing: Tracing | None) -> str:
    made_id = "" if tracing is None else tracing.new_trace_id()
    return made_id or f"{random.getrandbits(128):032x}"


def _decoded(value: bytes) -> str | None:
    try:
        # "encoded as UTF-8" (WHATWG HTML 9.2.3). An id contains neither NUL nor line ends.
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return None if _has_control_character(text) else text or None


def _parse_query(query: bytes) -> list[tuple[str, str]]:
    try:
        pairs: Iterable[tuple[str, str]] = parse_qsl(
            query.decode("latin-1"), max_num_fields=_FIELDS_LIMIT
        )
    except ValueError:
        return []
    return [(name, value) for name, value in pairs if not _has_control_character(value)]


def _has_control_character(text: str) -> bool:
    return any(character in text for character in "\0\r\n")
