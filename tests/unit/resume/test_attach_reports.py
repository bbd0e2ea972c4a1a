"""The log record and the metrics show which requests an equal one has answered."""

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from sse_middleware import Mark, SSEMiddleware, streaming
from tests.support.asgi import Exchange, body, http_scope, stream_start
from tests.support.log_records import stream_fields

pytestmark = pytest.mark.anyio


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    await asyncio.sleep(1)
    await send(body(b"data: 1\n\n"))
    await send(body(b"", more=False))


async def ask(mark: Mark, registry: CollectorRegistry, *times: float) -> None:
    """Send equal requests at these times."""
    app = SSEMiddleware(chat, marks={"/": mark}, registry=registry)

    async def request(at: float) -> None:
        await asyncio.sleep(at)
        exchange = Exchange(http_scope(headers=[(b"authorization", b"Bearer ann")]))
        await app(exchange.scope, exchange.receive, exchange.send)

    await asyncio.gather(*map(request, times))


async def test_each_request_is_a_miss_a_hit_or_coalesced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    registry = CollectorRegistry()
    await ask(streaming(name="chat", attach="kept"), registry, 0, 0.5, 2, 3)
    records = stream_fields(caplog)
    found = sorted((record["cache"], record["cache_hit"]) for record in records)
    assert found == [("coalesced", True), ("hit", True), ("hit", True), ("miss", False)]

    def count(result: str) -> float | None:
        labels = {"route": "chat", "result": result}
        return registry.get_sample_value("sse_resumes_total", labels)

    assert [count(result) for result in ("miss", "coalesced", "hit")] == [1, 1, 2]


async def test_a_route_that_attaches_no_request_has_neither(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    registry = CollectorRegistry()
    await ask(streaming(name="chat"), registry, 0, 2)
    records = stream_fields(caplog)
    assert [(record["cache"], record["cache_hit"]) for record in records] == [(None, None)] * 2
    labels = {"route": "chat", "result": "miss"}
    assert registry.get_sample_value("sse_resumes_total", labels) is None
