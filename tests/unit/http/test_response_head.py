"""The head of a response: which responses are event streams, and the headers that are added."""

import dataclasses

import pytest

from sse_middleware.http.response_head import (
    RawHeaders,
    announcing_headers,
    passthrough_reason,
    seconds,
    stream_headers,
    unmarked_headers,
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
        pytest.param([EVENT_STREAM, (b"content-encoding", b"none")], id="no coding at all"),
        pytest.param([(b"content-length", b"5"), EVENT_STREAM], id="other headers"),
    ],
)
def test_an_event_stream_is_handled(method: str, headers: RawHeaders) -> None:
    assert passthrough_reason(method, 200, headers) is None


@pytest.mark.parametrize(
    ("method", "status", "headers", "reason"),
    [
        pytest.param("GET", 200, [], "it is no event stream", id="no headers"),
        *(
            pytest.param("GET", status, [EVENT_STREAM], "its status has no content", id=str(status))
            for status in (204, 205)
        ),
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
        pytest.param("GET", 304, [EVENT_STREAM], "its status is not 2xx", id="304"),
        pytest.param("GET", 199, [EVENT_STREAM], "its status is not 2xx", id="199"),
        pytest.param("GET", 500, [EVENT_STREAM], "its status is not 2xx", id="500"),
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


def answered(app_headers: RawHeaders) -> RawHeaders:
    terms = dataclasses.replace(NO_TERMS, max_seconds=60.0, silence_threshold=0.05)
    return stream_headers(app_headers, announcing_headers(terms), trace_id="t", stream_id="s")


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
        ([], [b"no-cache, no-transform, private"]),
        ([b"public, max-age=60"], [b"public, max-age=60, no-transform, private"]),
        ([b"Private, max-age=60"], [b"Private, max-age=60, no-transform"]),
        ([b"no-store"], [b"no-store, no-transform"]),
    ],
)
def test_no_shared_cache_stores_a_stream_with_our_ids(
    of_app: list[bytes], expected: list[bytes]
) -> None:
    headers = [(b"cache-control", value) for value in of_app]
    result = stream_headers(headers, (), trace_id="t", stream_id="s", has_ids=True)
    assert values(result, b"cache-control") == expected


@pytest.mark.parametrize(
    ("of_app", "expected"),
    [
        pytest.param([], b"no-cache, no-transform", id="none"),
        pytest.param([b""], b"no-cache, no-transform", id="empty"),
        pytest.param([b"no-cache"], b"no-cache, no-transform", id="no-cache"),
        pytest.param([b"public, max-age=60"], b"public, max-age=60, no-transform", id="any"),
        pytest.param([b"no-store"], b"no-store, no-transform", id="no-store"),
        pytest.param([b"No-Transform, private"], b"No-Transform, private", id="it has it"),
        pytest.param([b"no-cache", b"no-store"], b"no-cache, no-store, no-transform", id="two"),
        pytest.param([b"x-no-transform"], b"x-no-transform, no-transform", id="another"),
    ],
)
@pytest.mark.parametrize("name", [b"cache-control", b"Cache-Control"], ids=ascii)
def test_the_caching_policy_of_the_app_is_kept_and_forbids_transformations(
    name: bytes, of_app: list[bytes], expected: bytes
) -> None:
    result = answered([(name, value) for value in of_app])
    assert values(result, b"cache-control") == [expected]


def test_hop_by_hop_headers_are_left_to_the_server() -> None:
    assert values(answered([EVENT_STREAM]), b"connection") == []


OURS = [
    (b"x-trace-id", b"t"),
    (b"x-stream-id", b"s"),
    (b"x-accel-buffering", b"no"),
    (b"cache-control", b"no-cache"),
]


@pytest.mark.parametrize(
    ("of_app", "expected"),
    [
        ([EVENT_STREAM], OURS),
        ([(b"Cache-Control", b"no-store")], OURS[:3]),
        ([(b"X-TRACE-ID", b"1"), (b"x-accel-buffering", b"yes")], [OURS[1], OURS[3]]),
        ([(b"X-Stream-Id", b""), *OURS], []),
    ],
)
def test_an_unmarked_stream_gets_only_headers_that_the_app_has_not_set(
    of_app: RawHeaders, expected: RawHeaders
) -> None:
    assert unmarked_headers(of_app, trace_id="t", stream_id="s") == expected


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
