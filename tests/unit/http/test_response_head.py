"""Headers: what is read from a hostile request, whose responses are ours, what we add."""

import re

import pytest

from sse_middleware.http.response_head import (
    RawHeaders,
    request_headers,
    seconds,
    stream_headers,
    trace_id,
    why_untouched,
)

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
VALID = b"00-" + TRACE + b"-" + PARENT + b"-01"


def is_fresh(value: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", value) is not None and value != TRACE.decode()


# --- requests ---------------------------------------------------------------------------------


def test_only_the_headers_that_matter_are_picked() -> None:
    picked = {
        b"accept": b"text/event-stream",
        b"cache-control": b"no-cache",
        b"cookie": b"a=1",
        b"origin": b"https://app.example",
        b"traceparent": VALID,
        b"x-trace-id": b"t",
        b"x-request-id": b"r",
    }
    others = [
        (b"host", b"example.org"),
        (b"last-event-id", b"7"),
        (b"x-mcp-", b"1"),
        (b"mcp", b"1"),
    ]
    assert request_headers([*others, *picked.items()]) == picked


def test_a_repeated_header_is_joined_in_order() -> None:
    raw = [(b"accept", b"text/html"), (b"origin", b"x"), (b"accept", b"text/event-stream")]
    assert request_headers(raw) == {b"accept": b"text/html, text/event-stream", b"origin": b"x"}


def test_cookies_are_joined_as_one_header_has_them() -> None:
    assert request_headers([(b"cookie", b"a=1"), (b"cookie", b"b=2")]) == {b"cookie": b"a=1; b=2"}


@pytest.mark.parametrize("name", [b"mcp-session-id", b"mcp-protocol-version", b"mcp-"], ids=ascii)
def test_any_mcp_header_is_kept_under_one_name(name: bytes) -> None:
    assert request_headers([(name, b"x"), (b"mcp-other", b"y")]).keys() == {b"mcp-"}


def test_no_headers_are_no_headers() -> None:
    assert request_headers([]) == {}


# --- trace ids --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(VALID, id="sampled"),
        pytest.param(VALID[:-2] + b"00", id="not sampled"),
        pytest.param(VALID[:-2] + b"ff", id="unknown flags"),
        pytest.param(b"01" + VALID[2:], id="a future version"),
        pytest.param(b"cc" + VALID[2:] + b"-what-the-future-brings", id="a future version goes on"),
        pytest.param(b"cc" + VALID[2:] + b"-", id="a future version ends in a dash"),
        pytest.param(b"fe" + VALID[2:], id="the last version"),
        pytest.param(b"cc" + VALID[2:] + b"-" + b"x" * 10_000, id="a future version of 10 kB"),
    ],
)
def test_a_valid_traceparent_gives_its_trace_id(value: bytes) -> None:
    assert trace_id({b"traceparent": value, b"x-trace-id": b"other"}) == TRACE.decode()


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
        pytest.param(VALID + b"-more", id="version 00 goes on"),
        pytest.param(VALID + b"-", id="version 00 ends in a dash"),
        pytest.param(VALID + b"0", id="long flags"),
        pytest.param(b"cc" + VALID[2:] + b"more", id="a future version goes on without a dash"),
        pytest.param(VALID + b"\n", id="a line feed behind"),
        pytest.param(b" " + VALID, id="a space in front"),
        pytest.param(VALID.replace(b"-", b"_"), id="other separators"),
        pytest.param(VALID + b", " + VALID, id="two headers joined"),
        pytest.param(b"0" * 10_000, id="10 kB"),
        pytest.param("00-\u0660".encode() * 10, id="unicode digits"),
    ],
)
def test_an_invalid_traceparent_is_passed_over(value: bytes) -> None:
    assert trace_id({b"traceparent": value, b"x-trace-id": b"other"}) == "other"
    assert is_fresh(trace_id({b"traceparent": value}))


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
    assert trace_id({name: value}) == value.decode()


@pytest.mark.parametrize("name", [b"x-trace-id", b"x-request-id"], ids=ascii)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a" * 129, id="129 characters"),
        pytest.param(b"a" * 10_000, id="10 kB"),
        pytest.param(b"a\n", id="a line feed behind"),
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
    assert is_fresh(trace_id({name: value}))


def test_x_trace_id_wins_over_x_request_id_unless_it_is_bad() -> None:
    assert trace_id({b"x-request-id": b"r", b"x-trace-id": b"t"}) == "t"
    assert trace_id({b"x-request-id": b"r", b"x-trace-id": b"t t"}) == "r"


def test_a_fresh_trace_id_is_never_the_same() -> None:
    made = {trace_id({}) for _ in range(100)}
    assert len(made) == 100
    assert all(is_fresh(value) for value in made)


# --- responses --------------------------------------------------------------------------------

EVENT_STREAM = (b"content-type", b"text/event-stream")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([EVENT_STREAM], id="plain"),
        pytest.param([(b"content-type", b"text/event-stream; charset=utf-8")], id="charset"),
        pytest.param([(b"Content-Type", b" Text/Event-Stream ;x")], id="any case, spaces"),
        pytest.param([EVENT_STREAM, (b"content-encoding", b"identity")], id="identity"),
        pytest.param([EVENT_STREAM, (b"Content-Encoding", b" Identity ")], id="identity, any case"),
        pytest.param([(b"content-length", b"5"), EVENT_STREAM], id="other headers"),
    ],
)
def test_an_event_stream_is_ours(method: str, headers: RawHeaders) -> None:
    assert why_untouched(method, 200, headers) is None


@pytest.mark.parametrize(
    ("method", "status", "headers", "reason"),
    [
        pytest.param("GET", 200, [], "it is no event stream", id="no headers"),
        pytest.param(
            "GET", 200, [(b"content-type", b"")], "it is no event stream", id="an empty type"
        ),
        pytest.param(
            "GET",
            200,
            [(b"content-type", b"application/json")],
            "it is no event stream",
            id="another type",
        ),
        pytest.param(
            "GET",
            200,
            [(b"content-type", b"text/event-streams")],
            "it is no event stream",
            id="a longer type",
        ),
        pytest.param(
            "GET",
            200,
            [(b"content-type", b"application/json; x=text/event-stream")],
            "it is no event stream",
            id="as a parameter",
        ),
        pytest.param("GET", 201, [EVENT_STREAM], "its status is not 200", id="201"),
        pytest.param("GET", 204, [EVENT_STREAM], "its status is not 200", id="204"),
        pytest.param("GET", 500, [EVENT_STREAM], "its status is not 200", id="500"),
        pytest.param("HEAD", 200, [EVENT_STREAM], "the method is HEAD", id="HEAD"),
        pytest.param(
            "GET",
            200,
            [EVENT_STREAM, (b"content-encoding", b"gzip")],
            "it has a content-encoding",
            id="gzip",
        ),
        pytest.param(
            "GET",
            200,
            [(b"Content-Encoding", b"BR"), EVENT_STREAM],
            "it has a content-encoding",
            id="br, in front and in upper case",
        ),
        pytest.param(
            "GET",
            200,
            [EVENT_STREAM, (b"content-encoding", b"identity"), (b"content-encoding", b"gzip")],
            "it has a content-encoding",
            id="identity and gzip",
        ),
        pytest.param(
            "GET",
            200,
            [EVENT_STREAM, (b"content-encoding", b"identity, gzip")],
            "it has a content-encoding",
            id="identity and gzip, joined",
        ),
    ],
)
def test_why_a_response_is_left_alone(
    method: str, status: int, headers: RawHeaders, reason: str
) -> None:
    assert why_untouched(method, status, headers) == reason


def answered(
    app_headers: RawHeaders, http_version: str = "1.1", *, keep_cache_control: bool = False
) -> RawHeaders:
    return stream_headers(
        app_headers,
        http_version=http_version,
        trace_id="t",
        stream_id="s",
        max_seconds=60.0,
        heartbeat_interval=None,
        silence_threshold=0.05,
        keep_cache_control=keep_cache_control,
    )


@pytest.mark.parametrize(
    ("of_app", "expected"),
    [
        ([], [b"no-cache, no-transform"]),
        ([b"no-cache"], [b"no-cache"]),
        ([b"a", b"b"], [b"a", b"b"]),
    ],
)
def test_a_caching_policy_of_the_app_can_be_left_to_it(
    of_app: list[bytes], expected: list[bytes]
) -> None:
    headers = [(b"Cache-Control", value) for value in of_app]
    result = answered(headers, keep_cache_control=True)
    assert values(result, b"cache-control") == expected


def values(headers: RawHeaders, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def test_a_stream_gets_our_headers_behind_the_apps() -> None:
    assert answered([EVENT_STREAM, (b"X-App", b"1"), (b"x-app", b"2")]) == [
        EVENT_STREAM,
        (b"X-App", b"1"),
        (b"x-app", b"2"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-trace-id", b"t"),
        (b"x-stream-id", b"s"),
        (b"x-stream-max-seconds", b"60"),
        (b"x-heartbeat-interval", b"off"),
        (b"x-silence-threshold", b"0.05"),
        (b"x-accel-buffering", b"no"),
        (b"connection", b"keep-alive"),
    ]


@pytest.mark.parametrize("name", [b"content-length", b"Content-Length", b"CONTENT-LENGTH"])
def test_the_content_length_goes(name: bytes) -> None:
    result = answered([(name, b"5"), EVENT_STREAM, (name, b"5")])
    assert values(result, b"content-length") == []
    assert values(result, b"content-type") == [b"text/event-stream"]


@pytest.mark.parametrize(
    "name",
    [
        b"x-trace-id",
        b"X-Stream-ID",
        b"X-Stream-Max-Seconds",
        b"x-heartbeat-interval",
        b"X-SILENCE-THRESHOLD",
        b"X-Accel-Buffering",
        b"Connection",
    ],
    ids=ascii,
)
def test_a_header_that_the_app_has_set_stays_in_any_case(name: bytes) -> None:
    result = answered([EVENT_STREAM, (name, b"of the app")])
    assert (name, b"of the app") in result
    assert values(result, name.lower()) == [b"of the app"]


def test_the_apps_repeated_headers_stay_repeated() -> None:
    cookies = [(b"set-cookie", b"a=1"), (b"Set-Cookie", b"b=2")]
    assert answered(cookies)[:2] == cookies


@pytest.mark.parametrize(
    ("of_app", "expected"),
    [
        pytest.param([], b"no-cache, no-transform", id="none"),
        pytest.param([b""], b"no-cache, no-transform", id="empty"),
        pytest.param([b"no-cache"], b"no-cache, no-transform", id="no-cache"),
        pytest.param([b"public, max-age=60"], b"no-cache, no-transform", id="a laxer one"),
        pytest.param([b"private"], b"private, no-cache, no-transform", id="private"),
        pytest.param(
            [b"max-age=60 , Private"], b"private, no-cache, no-transform", id="private, any case"
        ),
        pytest.param([b"no-store"], b"no-store", id="no-store"),
        pytest.param([b"No-Store, max-age=0"], b"No-Store, max-age=0", id="no-store as written"),
        pytest.param([b"private,no-store"], b"private,no-store", id="no-store and private"),
        pytest.param([b"no-cache", b"no-store"], b"no-cache, no-store", id="in two headers"),
        pytest.param([b"x-no-store"], b"no-cache, no-transform", id="no such directive"),
    ],
)
@pytest.mark.parametrize("name", [b"cache-control", b"Cache-Control"], ids=ascii)
def test_of_two_caching_policies_the_stricter_one_is_kept(
    name: bytes, of_app: list[bytes], expected: bytes
) -> None:
    result = answered([(name, value) for value in of_app])
    assert values(result, b"cache-control") == [expected]


@pytest.mark.parametrize(
    ("http_version", "expected"),
    [("1.1", [b"keep-alive"]), ("1.0", []), ("2", []), ("3", [])],
)
def test_connection_is_said_on_http_1_1_only(http_version: str, expected: list[bytes]) -> None:
    assert values(answered([EVENT_STREAM], http_version), b"connection") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, b"off", id="off"),
        pytest.param(60.0, b"60", id="whole"),
        pytest.param(60, b"60", id="an int"),
        pytest.param(0.05, b"0.05", id="a fraction"),
        pytest.param(0.1 + 0.2, b"0.3", id="no noise of floats"),
        pytest.param(31_536_000.0, b"31536000", id="a year, no exponent"),
    ],
)
def test_seconds_are_written_as_the_settings_write_them(
    value: float | None, expected: bytes
) -> None:
    assert seconds(value) == expected
