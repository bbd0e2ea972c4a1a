"""No header, query or path makes the parsing of a request take quadratic time."""

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
from starlette.types import Scope

from sse_middleware.http.identity import Identities, TrustedProxies
from sse_middleware.http.request import SSERequest, may_have_event_id
from sse_middleware.protocol.client_kinds import detect_client_kind
from tests.support.asgi import http_scope
from tests.support.growth import excess_growth

SMALL, FACTOR = 1000, 8
LIMIT = 3.0**3
"""Three doublings: linear is 8, quadratic is 64."""
PARTS = [
    *(b"a", b" ", b"\t", b"=", b";", b",", b"; ", b"a=", b"=a;", b"a=b; ", b"sid=x;", b"&", b"%"),
    *(b"for=", b"for=1.2.3.4,", b'for="', b";for=", b"10.0.0.1,", b"::", b"[", b"0", b"-", b"\xff"),
    *(b"*/*,", b"text/event-stream,", b"\r\n", b"last_event_id=", b"&last_event_id=x", b"Mozilla/"),
]
HEADERS = [
    *(b"accept", b"authorization", b"cache-control", b"cookie", b"forwarded", b"last-event-id"),
    *(b"origin", b"traceparent", b"user-agent", b"x-forwarded-for", b"x-request-id", b"mcp-x"),
]
IDENTITIES = Identities(None, ("sid", "other"))
PROXIES = TrustedProxies(("10.0.0.0/8",))


def parse(scope: Scope) -> None:
    """Read all of a request that the middleware may read."""
    may_have_event_id(scope)
    request = SSERequest(scope)
    IDENTITIES.of(request)
    PROXIES.client_address(request)
    request.wants_stream(None, only_marked=False)
    detect_client_kind(request.method, request.headers, has_event_id=False)
    for name in ("trace_id", "request_path", "origin", "query"):
        getattr(request, name)


def assert_linear(scope: Callable[[int], Scope]) -> None:
    short, long = (partial(parse, scope(size)) for size in (SMALL, SMALL * FACTOR))
    assert not excess_growth(short, long, LIMIT)


def with_headers(*headers: tuple[bytes, bytes]) -> Scope:
    return http_scope(headers=list(headers), client=("10.0.0.1", 1))


@pytest.mark.parametrize(("name", "part"), list(product(HEADERS, PARTS)))
def test_a_long_header_takes_linear_time(name: bytes, part: bytes) -> None:
    assert_linear(lambda size: with_headers((name, part * size + b"\0")))


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_repeated_takes_linear_time(name: bytes) -> None:
    assert_linear(lambda size: with_headers(*[(name, b"10.0.0.1;a=" + 100 * b"x")] * size))


@pytest.mark.parametrize("part", PARTS)
def test_a_long_query_or_path_takes_linear_time(part: bytes) -> None:
    assert_linear(lambda size: {**with_headers(), "query_string": part * size})
    assert_linear(lambda size: {**with_headers(), "raw_path": b"/" + part * size})
