"""A request as the middleware reads it: headers, trace ids, and whether a stream is wanted."""

import re
from collections.abc import Iterable, Mapping

import pytest

from sse_middleware.http.request import (
    NO_INTENT,
    ResumeIntent,
    SSERequest,
    app_path,
    is_request_for,
    may_have_event_id,
)
from sse_middleware.http.routes import Mark, streaming
from sse_middleware.protocol.event_ids import EventId
from tests.support.asgi import http_scope

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
VALID = b"00-" + TRACE + b"-" + PARENT + b"-01"


def is_fresh(value: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", value) is not None and value != TRACE.decode()


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return SSERequest(http_scope(headers=list(raw))).headers


def trace_id_of(headers: Mapping[bytes, bytes]) -> str:
    return SSERequest(http_scope(headers=list(headers.items()))).trace_id


# --- requests ---------------------------------------------------------------------------------


def test_a_repeated_header_is_joined_in_order() -> None:
    raw = [(b"accept", b"text/html"), (b"origin", b"x"), (b"accept", b"text/event-stream")]
    assert headers_of(raw) == {b"accept": b"text/html, text/event-stream", b"origin": b"x"}


def test_cookies_are_joined_as_one_header_has_them() -> None:
    assert headers_of([(b"cookie", b"a=1"), (b"cookie", b"b=2")]) == {b"cookie": b"a=1; b=2"}


def test_no_headers_are_no_headers() -> None:
    assert headers_of([]) == {}


# --- trace ids --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(VALID, id="sampled"),
        pytest.param(VALID[:-2] + b"00", id="not sampled"),
        pytest.param(VALID[:-2] + b"ff", id="unknown flags"),
        pytest.param(b"01" + VALID[2:], id="a future version"),
        pytest.param(
            b"cc" + VALID[2:] + b"-what-the-future-brings", id="a future version continues"
        ),
        pytest.param(b"cc" + VALID[2:] + b"-", id="a future version ends in a dash"),
        pytest.param(b"fe" + VALID[2:], id="the last version"),
        pytest.param(b"cc" + VALID[2:] + b"-" + b"x" * 10_000, id="a future version of 10 kB"),
    ],
)
def test_a_valid_traceparent_gives_its_trace_id(value: bytes) -> None:
    assert trace_id_of({b"traceparent": value, b"x-trace-id": b"other"}) == TRACE.decode()


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"ff" + VALID[2:], id="version ff"),
        pytest.param(b"0" + VALID[2:], id="a version of one digit"),
        pytest.param(b"0x" + VALID[2:], id="a version of no digits"),
        pytest.param(b"00-" + b"0" * 32 + b"-" + PARENT + b"-01", id="a trace id of zeros"),
        pytest.param(b"00-" + TRACE + b"-" + b"0" * 16 + b"-01", id="a parent id of zeros"),
        pytest.param(VALID.upper(), id="upper case"),
        pytest.param(b"00-" + TRACE[:-1] + b"-" + PARENT + b"-01", id="a short trace id"),
        pytest.param(b"00-" + TRACE + b"0-" + PARENT + b"-01", id="a long trace id"),
        pytest.param(b"00-" + TRACE + b"-" + PARENT[:-1] + b"-01", id="a short parent id"),
        pytest.param(b"00-" + TRACE + b"-" + PARENT, id="no flags"),
        pytest.param(VALID[:-1], id="short flags"),
        pytest.param(VALID + b"-more", id="version 00 continues"),
        pytest.param(VALID + b"-", id="version 00 ends in a dash"),
        pytest.param(VALID + b"0", id="long flags"),
        pytest.param(b"cc" + VALID[2:] + b"more", id="a future version continues without a dash"),
        pytest.param(VALID + b"\n", id="a line feed at the end"),
        pytest.param(b" " + VALID, id="a space in front"),
        pytest.param(VALID.replace(b"-", b"_"), id="other separators"),
        pytest.param(VALID + b", " + VALID, id="two headers joined"),
        pytest.param(b"0" * 10_000, id="10 kB"),
        pytest.param("00-\u0660".encode() * 10, id="unicode digits"),
    ],
)
def test_an_invalid_traceparent_is_passed_over(value: bytes) -> None:
    assert trace_id_of({b"traceparent": value, b"x-trace-id": b"other"}) == "other"
    assert is_fresh(trace_id_of({b"traceparent": value}))


@pytest.mark.parametrize("name", [b"x-trace-id", b"x-request-id"], ids=ascii)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"a", id="1 character"),
        pytest.param(b"a" * 128, id="128 characters"),
        pytest.param(b"Az09._-", id="all kinds"),
        pytest.param(b"...", id="dots"),
    ],
)
def test_a_plain_trace_id_is_taken_as_it_is(name: bytes, value: bytes) -> None:
    assert trace_id_of({name: value}) == value.decode()


@pytest.mark.parametrize("name", [b"x-trace-id", b"x-request-id"], ids=ascii)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a" * 129, id="129 characters"),
        pytest.param(b"a" * 10_000, id="10 kB"),
        pytest.param(b"a\n", id="a line feed at the end"),
        pytest.param(b"a\r\nx-evil: 1", id="a header injected"),
        pytest.param(b"a\n\ndata: evil", id="an event injected"),
        pytest.param(b"a b", id="a space"),
        pytest.param(b"a, b", id="two headers joined"),
        pytest.param(b"a\0", id="NUL"),
        pytest.param(b'"a"', id="quotes"),
        pytest.param(b"a/b", id="a slash"),
        pytest.param("\u00e9".encode(), id="UTF-8"),
        pytest.param("\u00e9".encode("latin-1"), id="Latin-1"),
        pytest.param("\u0661".encode(), id="a unicode digit"),
    ],
)
def test_a_hostile_trace_id_is_replaced_by_a_fresh_one(name: bytes, value: bytes) -> None:
    assert is_fresh(trace_id_of({name: value}))


def test_x_trace_id_wins_over_x_request_id_unless_it_is_bad() -> None:
    assert trace_id_of({b"x-request-id": b"r", b"x-trace-id": b"t"}) == "t"
    assert trace_id_of({b"x-request-id": b"r", b"x-trace-id": b"t t"}) == "r"


def test_a_fresh_trace_id_is_never_the_same() -> None:
    made = {trace_id_of({}) for _ in range(100)}
    assert len(made) == 100
    assert all(is_fresh(value) for value in made)


# --- event ids ----------------------------------------------------------------------------------

OURS = EventId("-" + "A" * 20 + "_", 17)
ACCEPT = (b"accept", b"text/event-stream")
HEADER = (b"last-event-id", str(OURS).encode())


def request_of(method: str, *headers: tuple[bytes, bytes], query: str = "") -> SSERequest:
    return SSERequest(http_scope(method=method, headers=list(headers), query_string=query.encode()))


def test_a_request_without_an_event_id_has_no_intent() -> None:
    request = request_of("GET", query="a=1")
    assert not may_have_event_id(request.scope)
    assert (request.last_event_id, request.event_id, request.cancel_target) == (None, None, None)
    assert request.intent == NO_INTENT


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_event_id_of_ours_is_the_position_to_continue_from(method: str) -> None:
    request = request_of(method, HEADER)
    assert may_have_event_id(request.scope)
    assert request.event_id == OURS
    assert request.intent == ResumeIntent(OURS)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "HEAD", "OPTIONS"])
def test_other_methods_continue_no_stream(method: str) -> None:
    request = request_of(method, HEADER)
    assert request.event_id == OURS
    assert request.intent == NO_INTENT


def test_the_header_has_precedence_over_the_query() -> None:
    request = request_of("GET", HEADER, query=f"last_event_id={EventId(OURS.secret, 3)}")
    assert request.event_id == OURS
    request.hide_event_id()
    assert request.scope["headers"] == []
    assert request.event_id == OURS


def test_two_event_id_headers_count_as_none() -> None:
    assert request_of("GET", HEADER, HEADER).last_event_id is None


def test_a_delete_ends_the_stream_of_its_event_id() -> None:
    request = request_of("DELETE", HEADER)
    assert (request.cancel_target, request.intent) == (OURS, NO_INTENT)
    assert request.is_stop
    of_app = request_of("DELETE", (b"last-event-id", b"7"))
    assert (of_app.is_stop, of_app.cancel_target) == (False, None)
    by_query = request_of("DELETE", query=f"last_event_id={OURS}")
    assert (by_query.is_stop, by_query.cancel_target) == (False, None)


def test_a_post_with_the_parameter_is_a_stop_with_the_event_id_in_its_header() -> None:
    for query in ("sse_cancel", "sse_cancel=", "a=1&sse_cancel&b=2", f"sse_cancel={OURS}"):
        request = request_of("POST", HEADER, query=query)
        assert may_have_event_id(request.scope)
        assert (request.is_stop, request.cancel_target, request.intent) == (True, OURS, NO_INTENT)
        without_header = request_of("POST", query=f"{query}&last_event_id={OURS}")
        assert (without_header.is_stop, without_header.cancel_target) == (True, None)
        assert not request_of("GET", query=query).is_stop


def test_a_copied_scope_keeps_the_event_id_and_has_its_own_headers() -> None:
    request = request_of("GET", HEADER, (b"cookie", b"user=ann"))
    request.hide_event_id()
    headers = [*request.scope["headers"], (b"authorization", b"token")]
    copy = request.with_scope({**request.scope, "headers": headers, "user": "ann"})
    assert copy.scope["user"] == "ann"
    assert (copy.event_id, copy.intent) == (OURS, request.intent)
    assert copy.headers == {b"cookie": b"user=ann", b"authorization": b"token"}
    assert b"authorization" not in request.headers


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "types"),
    [
        (b"text/event-stream", {b"text/event-stream"}),
        (b"Text/Event-Stream;q=0.9, */*", {b"text/event-stream", b"*/*"}),
        (b"", {b""}),
    ],
)
def test_accepted_types_have_no_parameters(accept: bytes, types: set[bytes]) -> None:
    assert request_of("GET", (b"accept", accept)).accepted_types == types
    assert request_of("GET").accepted_types == {b"*/*"}


@pytest.mark.parametrize(
    ("method", "headers", "mark", "wanted"),
    [
        ("PUT", [ACCEPT], None, True),
        ("HEAD", [ACCEPT], None, False),
        ("GET", [], None, False),
        ("GET", [HEADER], None, True),
        ("PUT", [HEADER], None, False),
        ("PUT", [ACCEPT], streaming(), True),
        ("PUT", [], streaming(), False),
        ("DELETE", [HEADER], None, False),
        ("GET", [], streaming(), True),
        ("OPTIONS", [ACCEPT], streaming(), False),
        ("GET", [ACCEPT], streaming(enabled=False), False),
    ],
)
def test_a_request_wants_a_stream_by_its_accept_its_event_id_or_its_mark(
    method: str, headers: list[tuple[bytes, bytes]], mark: Mark | None, *, wanted: bool
) -> None:
    request = request_of(method, *headers)
    assert request.wants_stream(mark, only_marked=False) is wanted
    assert request.wants_stream(mark, only_marked=True) is (wanted and mark is not None)


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/a", "", "/a"),
        ("/root/a", "/root", "/a"),
        ("/a", "/root", "/a"),
        ("/rooted", "/root", "/rooted"),
    ],
)
def test_the_path_of_the_app_is_below_the_root_path(path: str, root: str, expected: str) -> None:
    scope = http_scope(path=path, root_path=root)
    assert app_path(scope) == expected
    assert is_request_for(scope, "/other", expected)
    assert not is_request_for({**scope, "method": "POST"}, expected)


LONG = "/" + "\xe9" * 30_000


@pytest.mark.parametrize("name", ["path", "raw_path", "origin"])
def test_a_long_path_or_origin_is_stored_in_few_bytes_and_differs_from_any_other(name: str) -> None:
    def stored(text: str) -> str:
        data = text.encode("latin-1")
        if name == "origin":
            return SSERequest(http_scope(headers=[(b"origin", data)])).origin
        scope = http_scope()
        changed = {"path": text, "raw_path": b""} if name == "path" else {"raw_path": data}
        return SSERequest({**scope, **changed}).request_path

    texts = [LONG, LONG + "x", LONG[:-1], LONG[:1000], LONG[:1001]]
    assert [stored(text) for text in texts] == [stored(text) for text in texts]
    assert len({stored(text) for text in texts}) == len(texts)
    assert all(len(stored(text)) <= 1040 for text in texts)
    assert stored(LONG[:1000]) == LONG[:1000]
