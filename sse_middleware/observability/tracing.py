"""Traces: one OpenTelemetry span for each stream, from its response start to its end.

The app configures OpenTelemetry. Until something has imported its API, no span can be current and
none can be recorded, so nothing here imports it either. Without a tracer provider, streams have no
span. An exception of an SDK, a sampler or a processor is logged once and never reaches a stream.
"""

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from sse_middleware.observability.stream_record import StreamRecord

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

logger = logging.getLogger("sse_middleware")

_API: Final = "opentelemetry.trace"


class _Spans(Protocol):
    """Starts spans; the only implementation imports OpenTelemetry."""

    def start(self, record: StreamRecord, scope: Mapping[str, Any], status: int, link: str) -> None:
        """Start the span of a stream, if there is a tracer provider."""

    def incoming_trace_id(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the trace id of the context of a request, `""` without one."""

    def new_trace_id(self) -> str:
        """Return the id of a new trace, `""` if the span could not have it."""


class Tracing:
    """Start the spans of the streams of one middleware.

    Args:
        provider: the tracer provider, `None` for the one that the app has set for the process.
    """

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._spans: _Spans | None = None
        self._is_usable = True
        self._has_failed = False

    def begin(
        self,
        record: StreamRecord,
        scope: Mapping[str, Any],
        *,
        status: int = 200,
        link: str = "",
    ) -> None:
        """Start the span of a stream, and give the record its trace id.

        Args:
            record: the numbers of the stream, with its route; receives the span, which `Report`
                ends.
            scope: the scope of the request.
            status: that of the response.
            link: the `traceparent` of the span of the stream that the request has resumed, `""` for
                none.
        """
        spans = self._spans or self._load()
        if spans is not None:
            try:
                spans.start(record, scope, status, link)
            except Exception as exc:  # noqa: BLE001 - of the SDK
                self.failed(exc)

    def incoming_trace_id(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the trace id of the context that a request has brought for the span of its stream.

        Args:
            headers: by name, in lower case.

        Returns:
            32 hexadecimal digits; `""` without a context, without a tracer provider, or after a
            failure of OpenTelemetry.
        """
        spans = self._spans or self._load()
        if spans is not None:
            try:
                return spans.incoming_trace_id(headers)
            except Exception as exc:  # noqa: BLE001 - of a propagator
                self.failed(exc)
        return ""

    def new_trace_id(self) -> str:
        """Return an id for a trace that the span of the stream will begin.

        A handler may read it long before the stream has a span. `begin` starts the span with it.

        Returns:
            32 hexadecimal digits, in the form of the id generator of the tracer provider; `""`
            without one, or after a failure of OpenTelemetry.
        """
        spans = self._spans or self._load()
        if spans is not None:
            try:
                return spans.new_trace_id()
            except Exception as exc:  # noqa: BLE001 - of the SDK
                self.failed(exc)
        return ""

    def _load(self) -> _Spans | None:
        if not self._is_usable or _API not in sys.modules:
            return None
        try:
            from sse_middleware.observability.spans import Spans  # noqa: PLC0415 - an extra

            self._spans = Spans(self._provider, self.failed)
        except Exception as exc:  # noqa: BLE001 - OTEL_PROPAGATORS may be wrong, for example
            self._is_usable = False
            self.failed(exc)
        return self._spans

    def failed(self, exc: Exception) -> None:
        """Log the first failure of OpenTelemetry."""
        if not self._has_failed:
            self._has_failed = True
            logger.warning(
                "OpenTelemetry has failed with %s. Streams continue as usual, but spans may be "
                "missing. This is logged once.",
                type(exc).__name__,
                exc_info=exc,
            )


def is_loaded() -> bool:
    """Return whether something has imported OpenTelemetry, without which there are no spans."""
    return _API in sys.modules


def span_trace_id() -> str:
    """Return the trace id of the span that is current, `""` without one."""
    api = sys.modules.get(_API)
    if api is None:
        return ""
    try:
        context = api.get_current_span().get_span_context()
    except Exception:  # it is being imported in another thread, for example
        logger.debug("the current span of OpenTelemetry cannot be read", exc_info=True)
        return ""
    return f"{context.trace_id:032x}" if context.is_valid else ""
