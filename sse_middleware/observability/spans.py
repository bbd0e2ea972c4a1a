"""The spans of streams, for `tracing`: the only file that imports OpenTelemetry.

A span is the child of the span that is current at the response start, usually that of the server's
instrumentation, else of the incoming context. It is never made current itself, so that it can end
in any task: with the stream, however long that lingers. What has happened to the stream is added
when it ends, with the times at which it has happened; no event of the app costs anything.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, cast

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.propagate import extract
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TracerProvider

from sse_middleware.observability.first_trace_id import FirstTraceIds, is_trace_id
from sse_middleware.observability.stream_record import StreamRecord

_NAME: Final = "sse_middleware"
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
"""https://opentelemetry.io/docs/specs/semconv/attributes-registry/http/: any other is `_OTHER`."""
_FAILED: Final = ("error", "incomplete", "aborted")
"""The outcomes that are errors of the server; a cap, a drain or a client that leaves is none."""
_COMPLETION: Final = {"id": "gen_ai.response.id", "model": "gen_ai.response.model"}
"""https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/"""
_LARGEST: Final = (1 << 63) - 1
"""The largest number of the protocol of OpenTelemetry."""
_MAX_CHARACTERS: Final = 1000
_MAX_EVENTS: Final = 100
_NANOSECONDS: Final = 1_000_000_000

_Headers = Iterable[tuple[bytes, bytes]]


class Spans:
    """Start the spans of streams.

    Args:
        provider: the tracer provider, `None` for that of the process.
        failed: receives an exception of OpenTelemetry.
    """

    def __init__(
        self, provider: TracerProvider | None, failed: Callable[[Exception], None]
    ) -> None:
        self._provider = provider
        self._failed = failed
        self._tracer: trace.Tracer | None = None
        self._first_ids: FirstTraceIds | None = None

    def incoming_trace_id(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the trace id of the context of a request, as `Tracing` specifies."""
        if self._find_tracer() is None:
            return ""
        context = extract(headers.items(), get_current(), _GETTER)
        return _trace_id(trace.get_current_span(context).get_span_context())

    def new_trace_id(self) -> str:
        """Return the id of a new trace, as `Tracing` specifies."""
        if self._find_tracer() is None or self._first_ids is None:
            return ""
        return self._first_ids.new()

    def _find_tracer(self) -> trace.Tracer | None:
        if self._tracer is None:
            provider = self._provider or trace.get_tracer_provider()
            if isinstance(provider, trace.ProxyTracerProvider):
                return None  # the app has set none
            self._tracer = provider.get_tracer(_NAME)
            self._first_ids = FirstTraceIds.of(self._tracer)
        return self._tracer

    def start(self, record: StreamRecord, scope: Mapping[str, Any], status: int, link: str) -> None:
        """Start the span of a stream, as `Tracing.begin` specifies."""
        tracer = self._find_tracer()
        if tracer is None:
            return
        context, kind = _parent(scope)
        attributes = _request_attributes(record, scope, kind)
        attributes["http.response.status_code"] = status
        if record.cache:
            attributes["sse.cache"] = record.cache
        if not is_trace_id(record.trace_id):  # the log lines of the handler may have it
            attributes["sse.request_id"] = _text(record.trace_id)
        start = partial(
            tracer.start_span,
            f"{attributes['http.request.method']} {attributes['sse.route']} stream",
            context=context,
            kind=kind,
            attributes=attributes,
            links=_links(link),
        )
        if self._first_ids is None or trace.get_current_span(context).get_span_context().is_valid:
            span = start()
        else:
            span = self._first_ids.call(start, record.trace_id, scope.get("headers") or ())
        if trace_id := _trace_id(span.get_span_context()):
            record.trace_id = trace_id
            record.span = StreamSpan(span, self._failed)


class StreamSpan:
    """The span of one stream.

    Args:
        span: the span, which has started.
        failed: receives an exception of OpenTelemetry.

    Attributes:
        traceparent: its ids, in the form of W3C's Trace Context.
    """

    __slots__ = ("_completion", "_error", "_events", "_failed", "_span", "traceparent")

    def __init__(self, span: trace.Span, failed: Callable[[Exception], None]) -> None:
        self._span = span
        self._failed = failed
        self._events: list[tuple[str, int]] = []
        self._error = ""
        self._completion: Mapping[str, Any] = {}
        ids = span.get_span_context()
        self.traceparent = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"

    def add_event(self, name: str) -> None:
        """Store that something happens to the stream now."""
        if len(self._events) < _MAX_EVENTS:
            self._events.append((f"sse.{name}", time.time_ns()))

    def on_completion(self, chunk: Mapping[str, Any]) -> None:
        """Store the first chunk of a chat completion."""
        self._completion = chunk

    def on_app_raised(self, exc: BaseException) -> None:
        """Store the type of the exception that the app has raised, without its text."""
        self._error = type(exc).__qualname__

    def end(self, record: StreamRecord) -> None:
        """End the span, with the numbers of the stream that has ended."""
        try:
            if self._span.is_recording():
                self._describe(record)
        except Exception as exc:  # noqa: BLE001 - of the SDK
            self._failed(exc)
        try:
            self._span.end()
        except Exception as exc:  # noqa: BLE001 - of a processor or an exporter
            self._failed(exc)

    def _describe(self, record: StreamRecord) -> None:
        span, now, outcome = self._span, time.time_ns(), str(record.outcome)
        if record.first_event_at is not None:
            seconds_ago = record.opened_at + record.duration_seconds - record.first_event_at
            at = now - max(0, round(seconds_ago * _NANOSECONDS))
            span.add_event("sse.first_event", timestamp=at)
        for name, at in self._events:
            span.add_event(name, timestamp=at)
        if outcome in _FAILED:
            error = self._error or outcome
            span.add_event("sse.error", {"error.type": error}, now)
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR, f"the stream has ended with {outcome}")
        span.set_attributes(_stream_attributes(record, outcome))
        span.set_attributes(_completion_attributes(record, self._completion))
        for name, value in (record.annotations or {}).items():
            key = name if "." in name else f"sse.annotation.{name}"
            span.set_attribute(_text(key), _value(value))


class _HeaderGetter(Getter[_Headers]):
    """Reads the headers of an ASGI scope for the propagators."""

    def get(self, carrier: _Headers, key: str) -> list[str] | None:
        """Return the values of a header."""
        name = key.lower().encode()
        return [value.decode("latin-1") for header, value in carrier if header == name] or None

    def keys(self, carrier: _Headers) -> list[str]:
        """Return the names of all headers."""
        return [name.decode("latin-1") for name, _ in carrier]


_GETTER: Final = _HeaderGetter()


def _parent(scope: Mapping[str, Any]) -> tuple[Context, SpanKind]:
    """Return the context of the parent, and the kind of a span with this parent.

    A span without a local parent is the one that shows the request, and so is a server's.
    """
    context = get_current()
    current = trace.get_current_span(context).get_span_context()
    if not current.is_valid:
        return extract(scope.get("headers") or (), context, _GETTER), SpanKind.SERVER
    return context, SpanKind.SERVER if current.is_remote else SpanKind.INTERNAL


def _trace_id(ids: SpanContext) -> str:
    return f"{ids.trace_id:032x}" if ids.is_valid else ""


def _links(traceparent: str) -> list[Link]:
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return []
    trace_id, span_id, flags = (int(group, 16) for group in found.groups())
    return [Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags)))]


def _request_attributes(
    record: StreamRecord, scope: Mapping[str, Any], kind: SpanKind
) -> dict[str, Any]:
    """Return the attributes that are known at the response start."""
    method, route = scope.get("method", ""), _text(record.route)
    attributes: dict[str, Any] = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "sse.route": route,
        "sse.stream_id": record.stream_id,
        "sse.family": str(record.family),
        "sse.resumed": record.resumed_after is not None,
    }
    if route.startswith("/"):  # otherwise it is the name of a mark
        attributes["http.route"] = route
    if kind is SpanKind.SERVER:  # otherwise the span of the server has them
        attributes["url.scheme"] = _text(scope.get("scheme", "http"))
        attributes["url.path"] = _text(scope.get("path", ""))
        attributes["network.protocol.version"] = _text(scope.get("http_version", ""))
    return attributes


def _stream_attributes(record: StreamRecord, outcome: str) -> dict[str, Any]:
    """Return the numbers of a stream that has ended."""
    attributes: dict[str, Any] = {
        "sse.family": str(record.family),
        "sse.outcome": outcome,
        "sse.chunks": record.chunks,
        "sse.sent_bytes": record.sent_bytes,
        "sse.heartbeats": record.heartbeats,
        "sse.disconnects": record.disconnects,
    }
    if record.resumed_after is not None:
        attributes["sse.resumed_after"] = record.resumed_after
    elif record.first_event_seconds is not None:
        attributes["sse.time_to_first_event"] = record.first_event_seconds
    if record.sources is not None:
        for name, value in record.sources.log_fields.items():
            if isinstance(value, str | int | float):
                attributes[f"sse.{name}"] = _value(value)
    return attributes


def _completion_attributes(record: StreamRecord, chunk: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a stream that a generative model has produced."""
    attributes: dict[str, Any] = {
        attribute: _text(chunk[field]) for field, attribute in _COMPLETION.items() if field in chunk
    }
    if chunk:
        attributes["gen_ai.operation.name"] = "chat"
    if record.sources is not None and record.sources.calls:
        attributes["gen_ai.usage.input_tokens"] = record.sources.usage.input_tokens
        attributes["gen_ai.usage.output_tokens"] = record.sources.usage.output_tokens
    elif record.tokens:
        attributes["gen_ai.usage.output_tokens"] = record.tokens
    return attributes


def _value(value: object) -> float | str:
    is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST)
    return cast("float", value) if is_number else _text(value)


def _text(value: object) -> str:
    """Return a bounded text without lone surrogates, with which no span could be exported."""
    return str(value)[:_MAX_CHARACTERS].encode("utf-8", "replace").decode()
