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

        self._transform_errors = Counter(
            "sse_transform_errors",
            "Events that were dropped because they could not be transformed.",
            ("route",),
            registry=registry,
        )
        self._order_violations = Counter(
            "sse_order_violations",
            "Events that were not in the order of their mark.",
            ("route",),
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
        if record.transform_errors:
            self._transform_errors.labels(route).inc(record.transform_errors)
        if record.order_violations:
            self._order_violations.labels(route).inc(record.order_violations)
