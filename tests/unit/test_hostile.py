"""Hostile requests: a silent replacement, never an echo, never a crash."""

import logging

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.support.asgi import EVENTSOURCE, Exchange, http_scope, stream_of
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio

EVIL = b"evil"
VALUES = {
    "CR LF": EVIL + b"\r\nset-cookie: a=b",
    "LF": EVIL + b"\nevent: x\ndata: y\n\n",
    "NUL": EVIL + b"\0",
    "10 kB": EVIL * 2500,
    "latin-1": EVIL + bytes(range(128, 256)),
    "UTF-8": EVIL + "ü\N{SNOWMAN}\N{LINE SEPARATOR}".encode(),
    "markup": b"<script>" + EVIL + b"</script>",
    "braces": EVIL + b"{}%s%n",
    "empty": b"",
}
HEADERS = (
    b"traceparent",
    b"x-trace-id",
    b"x-request-id",
    b"last-event-id",
    b"accept",
    b"cache-control",
    b"user-agent",
    b"authorization",
    b"mcp-session-id",
)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("name", HEADERS, ids=bytes.decode)
@pytest.mark.parametrize("known", [EVENTSOURCE, []], ids=["eventsource", "plain"])
async def test_no_request_header_is_echoed_or_breaks_a_stream(
    name: bytes,
    value: bytes,
    known: list[tuple[bytes, bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    app = marking(stream_of(b"data: x\n\n", pause=6), registry=registry, rollout_percent=99)
    exchange = Exchange(http_scope(headers=[*known, (name, value), (name, value)]))
    await app(exchange.scope, exchange.receive, exchange.send)
    assert [event.data for event in exchange.events if event.event == "message"] == ["x"]
    answered = b"".join(value for _, value in exchange.start["headers"]) + exchange.body
    assert EVIL not in answered
    assert "evil" not in caplog.text
    assert EVIL not in generate_latest(registry)


@pytest.mark.parametrize(
    "path",
    ["/evil\r\nx: y", "/evil\0", "/evil/" * 3000, "/\udcff evil", "/../../evil", "//evil", ""],
)
@pytest.mark.parametrize("query", [b"", b"last_event_id=evil%0d%0a", b"&=&%zz&" * 2000, b"\xff\0"])
async def test_no_path_and_no_query_is_echoed_or_breaks_a_stream(
    path: str, query: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    app = marking(
        stream_of(b"data: x\n\n"), registry=registry, include=("*",), exclude=("/private/*",)
    )
    scope = http_scope(headers=EVENTSOURCE)
    exchange = Exchange({**scope, "path": path, "raw_path": b"/evil", "query_string": query})
    await app(exchange.scope, exchange.receive, exchange.send)
    assert exchange.names == ["start", "message", "complete"]
    answered = b"".join(value for _, value in exchange.start["headers"]) + exchange.body
    assert EVIL not in answered
    assert "evil" not in caplog.text
    assert EVIL not in generate_latest(registry)
