"""What the log record and the metrics show of the sources of a stream."""

import logging
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, streaming
from sse_middleware.sources import Source, UpstreamError, fallback, started
from tests.support.asgi import Exchange, handle
from tests.support.log_records import stream_fields

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Use real time, because old releases of Starlette handle an exception in a thread."""
    return "asyncio"


async def up() -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"


async def down() -> AsyncIterator[bytes]:
    raise UpstreamError("the key is wrong", status_code=503, headers={"retry-after": "7"})
    yield b""


async def ask(*names: str, registry: CollectorRegistry) -> Exchange:
    functions = {"up": up, "down": down}
    ladder = [Source(name, functions[name]) for name in names]

    @streaming
    async def chat(_: Request) -> StreamingResponse:
        answer = await started(fallback(*(source() for source in ladder)))
        return StreamingResponse(answer, media_type="text/event-stream")

    app = Starlette(routes=[Route("/chat/{number}", chat, methods=["POST"])])
    app.add_middleware(SSEMiddleware, registry=registry)
    return await handle(app, path="/chat/5", method="POST")


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def only_record(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    (record,) = stream_fields(caplog)
    return record


@pytest.mark.parametrize(
    ("names", "source", "fallbacks"), [(("down", "up"), "up", 1), (("up", "down"), "up", None)]
)
async def test_the_record_and_the_metrics_show_which_source_has_answered(
    names: tuple[str, ...],
    source: str,
    fallbacks: float | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    registry = CollectorRegistry()
    exchange = await ask(*names, registry=registry)
    starts = [m for _, m in exchange.messages if m["type"] == "http.response.start"]
    assert (len(starts), exchange.body) == (1, b"data: 1\n\n")
    (record,) = stream_fields(caplog)
    assert (record["source"], record["fallback_used"]) == (source, fallbacks is not None)
    labels = {"route": "/chat/{number}", "source": "up"}
    assert value(registry, "sse_fallbacks_total", **labels) == fallbacks


async def test_the_failure_of_all_sources_is_a_status_without_details() -> None:
    exchange = await ask("down", "down", registry=CollectorRegistry())
    assert (exchange.status, exchange.headers[b"retry-after"]) == (503, b"7")
    assert exchange.body == b"Service Unavailable"


async def test_a_stream_without_sources_has_no_fields_for_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")

    async def app(_: Request) -> StreamingResponse:
        return StreamingResponse(up(), media_type="text/event-stream")

    await handle(SSEMiddleware(Starlette(routes=[Route("/", app)])))
    (record,) = stream_fields(caplog)
    assert "source" not in record
