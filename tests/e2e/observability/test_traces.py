"""Spans of streams beside those of OpenTelemetry's own instrumentations, and their export."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware, current_stream, streaming
from tests.support.asgi import Exchange, http_scope, stream_of
from tests.support.otlp import Collector, attributes_of, collecting
from tests.support.resuming import memory, read
from tests.support.servers import serving
from tests.support.traces import Traces, span_id_of, trace_id_of
from tests.support.waiting import HANG_SECONDS, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
STREAM = "GET /count/{limit} stream"
EVENTSOURCE = {
    "accept": "text/event-stream",
    "cache-control": "no-cache",
    "user-agent": "Mozilla/5.0",
}


def instrumented_outside(app: ASGIApp, traces: Traces) -> ASGIApp:
    inner = SSEMiddleware(app, mark="*", store=memory(), tracer_provider=traces.provider)
    return OpenTelemetryMiddleware(inner, tracer_provider=traces.provider)


def instrumented_inside(app: ASGIApp, traces: Traces) -> ASGIApp:
    inner = OpenTelemetryMiddleware(app, tracer_provider=traces.provider)
    return SSEMiddleware(inner, mark="*", store=memory(), tracer_provider=traces.provider)


def instrumented_fastapi(_: ASGIApp, traces: Traces) -> ASGIApp:
    app = FastAPI()
    app.add_middleware(SSEMiddleware, store=memory(), tracer_provider=traces.provider)

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"

    @app.get("/")
    @streaming
    async def endpoint() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    FastAPIInstrumentor.instrument_app(app, tracer_provider=traces.provider)
    return app


@pytest.mark.anyio
@pytest.mark.parametrize(
    "instrument", [instrumented_outside, instrumented_inside, instrumented_fastapi]
)
async def test_the_span_of_a_stream_is_the_child_of_the_instrumentations_span(
    instrument: Callable[[ASGIApp, Traces], ASGIApp],
) -> None:
    traces = Traces()
    app = instrument(stream_of(b"data: 1\n\n"), traces)
    exchange = await read(app, (b"traceparent", TRACEPARENT.encode()))
    spans = traces.spans
    (server,) = [span for span in spans if span.kind is SpanKind.SERVER]
    (stream,) = [span for span in spans if span.name.endswith(" stream")]
    assert parent_of(stream) == span_id_of(server)
    assert stream.kind is SpanKind.INTERNAL
    assert {trace_id_of(span) for span in spans} == {TRACE}
    assert exchange.headers[b"x-trace-id"].decode() == TRACE


@pytest.mark.anyio
async def test_no_request_and_no_annotation_makes_a_batch_of_spans_that_cannot_be_exported() -> (
    None
):
    traces = Traces()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().annotate(odd="\ud800", huge=1 << 80, **{"\ud800.x": b"\xff"})
        await stream_of(b"data: 1\n\n")(scope, receive, send)

    wrapped = SSEMiddleware(app, mark="*", tracer_provider=traces.provider)
    scope = http_scope(method="\ud800", headers=[(b"baggage", b"\xff=\xff")])
    scope.update(path="/\ud800", path_template="/\ud800", http_version="\ud800")
    exchange = Exchange(scope)
    await wrapped(scope, exchange.receive, exchange.send)
    assert b"_OTHER /? stream" in encode_spans(traces.spans).SerializeToString()


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def until_exported(collector: Collector, name: str, count: int) -> None:
    wait_until(
        lambda: len(collector.named(name)) >= count,
        lambda: f"no {count} spans {name!r} among {[span.name for span in collector.spans]}",
    )


def test_spans_are_exported_by_otlp_and_outlive_the_request_and_its_client(tmp_path: Path) -> None:
    environ = {"OTEL_BSP_SCHEDULE_DELAY": "50", "SSE_LINGER_SECONDS": "0.5"}
    headers = {**EVENTSOURCE, "traceparent": TRACEPARENT}
    app = "tests.e2e.observability.traced_app:app"
    with collecting() as collector:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        with (
            serving("uvicorn-httptools", app, tmp_path, environ) as server,
            httpx.Client(timeout=HANG_SECONDS, headers=headers) as client,
        ):
            whole = client.get(f"{server.url}/count/3")
            assert whole.headers["x-trace-id"] == TRACE
            assert "event: complete" in whole.text
            until_exported(collector, STREAM, 1)
            with client.stream("GET", f"{server.url}/count/100000") as cut:
                next(cut.iter_raw())
            until_exported(collector, STREAM, 2)
    finished, lingered = collector.named(STREAM)
    servers = {span.span_id for span in collector.named("GET /count/{limit}")}
    assert {finished.parent_span_id, lingered.parent_span_id} == servers
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    found = attributes_of(finished)
    assert found["sse.outcome"] == "finished"
    assert found["sse.chunks"] == 3
    assert found["http.route"] == "/count/{limit}"
    assert found["sse.stream_id"] == whole.headers["x-stream-id"]
    assert found["gen_ai.request.model"] == "small"
    (first,) = [event for event in finished.events if event.name == "sse.first_event"]
    assert finished.start_time_unix_nano <= first.time_unix_nano <= finished.end_time_unix_nano
    assert attributes_of(lingered)["sse.outcome"] == "disconnected"
    assert [event.name for event in lingered.events] == ["sse.first_event", "sse.disconnect"]
