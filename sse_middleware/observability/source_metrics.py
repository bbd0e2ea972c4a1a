"""Metrics of the additions for back ends, which are counted at the end of a stream."""

from prometheus_client import CollectorRegistry, Counter

from sse_middleware.observability.source_record import SourceRecord


class SourceMetrics:
    """The metrics in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._fallbacks = Counter(
            "sse_fallbacks",
            "Streams that another source than the first one has answered.",
            ("route", "source"),
            registry=registry,
        )

    def count_end(self, route: str, record: SourceRecord) -> None:
        """Count a stream that has ended.

        Args:
            route: the label of its route.
            record: the report of its sources.
        """
        if record.fallback_used:
            self._fallbacks.labels(route, record.source).inc()
