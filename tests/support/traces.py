"""Spans of streams, recorded in memory by OpenTelemetry's SDK."""

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Traces:
    """A tracer provider whose spans are kept in memory once they have ended.

    Args:
        **options: of the provider.

    Attributes:
        provider: the provider.
    """

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in order."""
        return list(self._exporter.get_finished_spans())

    @property
    def span(self) -> ReadableSpan:
        """The only span that has ended."""
        (span,) = self.spans
        return span


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """Return the attributes of a span."""
    return span.attributes or {}


def events_of(span: ReadableSpan) -> list[str]:
    """Return the names of the events of a span, in order."""
    return [event.name for event in span.events]


def span_id_of(span: ReadableSpan) -> int:
    """Return the id of a span."""
    assert span.context is not None
    return int(span.context.span_id)


def trace_id_of(span: ReadableSpan) -> str:
    """Return the trace id of a span, in the form of headers."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}"
