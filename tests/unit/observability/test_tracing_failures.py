"""Streams do not depend on OpenTelemetry: it may fail, and it may be missing."""

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from starlette.types import ASGIApp

from sse_middleware import SSEMiddleware
from tests.support.resuming import Counting, read, resumable
from tests.support.traces import Traces

pytestmark = pytest.mark.anyio


def traced(app: ASGIApp, traces: Traces) -> SSEMiddleware:
    return resumable(app, tracer_provider=traces.provider)


class Failing(SpanProcessor):
    """A span processor of the app that has a fault."""

    def __init__(self, *methods: str) -> None:
        self._methods = methods

    def on_start(self, *_: Any, **__: Any) -> None:
        if "on_start" in self._methods:
            raise ZeroDivisionError

    def on_end(self, _: ReadableSpan) -> None:
        if "on_end" in self._methods:
            raise ZeroDivisionError


class FailingExporter(SpanExporter):
    """An exporter whose collector is away."""

    def export(self, _: Any) -> SpanExportResult:
        raise ConnectionError


class FailingSampler(Sampler):
    """A sampler of the app that has a fault."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise ZeroDivisionError

    def get_description(self) -> str:
        return "failing"


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_an_exception_of_a_processor_never_reaches_a_stream(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    traces = Traces()
    traces.provider.add_span_processor(Failing(method))
    app = traced(Counting(3), traces)
    for _ in range(3):
        assert (await read(app)).names == ["start", *["message"] * 3, "complete"]
    assert sum("OpenTelemetry has failed" in text for text in caplog.messages) == 1


async def test_an_exception_of_a_sampler_or_an_exporter_never_reaches_a_stream() -> None:
    traces = Traces()
    traces.provider.add_span_processor(SimpleSpanProcessor(FailingExporter()))
    failing = Traces(sampler=FailingSampler())
    for each in (traces, failing):
        exchange = await read(traced(Counting(3), each))
        assert exchange.names == ["start", *["message"] * 3, "complete"]
    assert len(traces.spans) == 1


async def test_a_propagator_that_does_not_exist_costs_the_spans_and_not_the_streams(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "missing")
    for name in ("sse_middleware.observability.spans", "opentelemetry.propagate"):
        monkeypatch.delitem(sys.modules, name)
    traces = Traces()
    app = traced(Counting(3), traces)
    for _ in range(2):
        assert (await read(app)).names == ["start", *["message"] * 3, "complete"]
    assert traces.spans == []
    assert sum("OpenTelemetry has failed" in text for text in caplog.messages) == 1


# Without OpenTelemetry

PROGRAM = """
import asyncio, sys
from sse_middleware import SSEMiddleware, current_trace_id
from tests.support.asgi import handle, stream_of
{before}
class Missing:
    def find_spec(self, name, *_):
        assert not name.startswith("opentelemetry"), name
sys.meta_path.insert(0, Missing())
wrapped = SSEMiddleware(stream_of(b"data: x\\n\\n"), mark="*")
for _ in range(2):
    exchange = asyncio.run(handle(wrapped, headers=[(b"x-trace-id", b"a-1")]))
    assert exchange.headers[b"x-trace-id"] == b"a-1"
    assert exchange.body == b"data: x\\n\\n"
assert {expected}
"""


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "'opentelemetry' not in sys.modules"),
        (
            "import opentelemetry.trace; import opentelemetry.propagate",
            "'sse_middleware.observability.spans' in sys.modules",
        ),
    ],
)
def test_opentelemetry_is_imported_only_if_something_else_has_done_so(
    before: str, expected: str
) -> None:
    program = PROGRAM.format(before=before, expected=expected)
    subprocess.run([sys.executable, "-c", program], check=True)
