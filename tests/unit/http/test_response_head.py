"""The head of a response: which responses are event streams, and the headers that are added."""

import dataclasses

import pytest

from sse_middleware.http.response_head import (
    RawHeaders,
    passthrough_reason,
    seconds,
    stream_headers,
)
from sse_middleware.protocol.stream_terms import NO_TERMS

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
def test_an_event_stream_is_handled(method: str, headers: RawHeaders) -> None:
    assert passthrough_reason(method, 200, headers) is None


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
    assert passthrough_reason(method, status, headers) == reason


def answered(
    app_headers: RawHeaders, http_version: str = "1.1", *, keep_cache_control: bool = False
) -> RawHeaders:
    return stream_headers(
        app_headers,
        dataclasses.replace(NO_TERMS, max_seconds=60.0, silence_threshold=0.05),
        http_version=http_version,
        trace_id="t",
        stream_id="s",
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


def test_a_stream_gets_our_headers_after_those_of_the_app() -> None:
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
def test_the_content_length_is_removed(name: bytes) -> None:
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
def test_the_connection_header_is_sent_on_http_1_1_only(
    http_version: str, expected: list[bytes]
) -> None:
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
