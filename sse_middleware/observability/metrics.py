"""Prometheus metrics of the streams of this process.

No event updates a metric: the numbers of a stream are added every ten seconds or so and at its end.
Labels are bounded: a route is a template or a mark's name, never a path.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

from sse_middleware._once import OncePerKey
from sse_middleware.observability.bulk_metrics import BulkHistogram, adder_of, live_adder_of
from sse_middleware.observability.observer import Observer, guarded
from sse_middleware.observability.source_metrics import SourceMetrics
from sse_middleware.observability.store_metrics import StoreHealthMetrics
from sse_middleware.observability.stream_record import GAP_BOUNDS, StreamRecord

logger = logging.getLogger("sse_middleware")

PREFIX: Final = "sse_"
"""The beginning of the names of all metrics."""
_LIFETIMES: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
_FIRST_EVENTS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FLUSHES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_STALLS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EXEMPLAR_CHARACTERS: Final = 128 - len("trace_id")  # OpenMetrics 1.0, "Exemplars"


@dataclass(slots=True)
class _Carried:
    """The numbers of a stream that are in the metrics already."""

    chunks: int = 0
    sent_bytes: int = 0
    heartbeats: int = 0
    disconnects: int = 0
    gap_seconds: float = 0.0
    gaps: Sequence[int] = ()


_NOTHING: Final = _Carried()


@dataclass(frozen=True, slots=True)
class _RouteMetrics:
    """The metrics of one route and client kind, kept since a lookup costs more than their use."""

    durations: BulkHistogram
    first_events: BulkHistogram
    gaps: BulkHistogram
    add_events: Callable[[float], None]
    ended: dict[str, Callable[[float], None]]  # by outcome


class _StreamMetrics:
    """The metrics of streams in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._routes: dict[tuple[str, str], _RouteMetrics] = {}
        by_family: dict[str, Any] = {"labelnames": ("route", "family"), "registry": registry}
        active = Gauge(
            "sse_streams_active",
            "Streams that are open.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.add_active = live_adder_of(active)
        labels = ("route", "family", "outcome")
        self._ended = Counter("sse_streams", "Streams that have ended.", labels, registry=registry)
        self._durations = Histogram(
            "sse_stream_duration_seconds", "Life of a stream.", buckets=_LIFETIMES, **by_family
        )
        self._first_events = Histogram(
            "sse_time_to_first_event_seconds",
            "Time from the response start to the app's first event.",
            buckets=_FIRST_EVENTS,
            **by_family,
        )
        self._gaps = Histogram(
            "sse_event_gap_seconds",
            "Time between two events of the app.",
            buckets=GAP_BOUNDS,
            **by_family,
        )
        self._events = Counter("sse_events", "Events of the app.", **by_family)
        self.add_bytes = adder_of(
            Counter("sse_sent_bytes", "Bytes of stream bodies.", registry=registry)
        )
        self.add_heartbeats = adder_of(
            Counter("sse_heartbeats", "Heartbeats sent.", registry=registry)
        )
        self.add_disconnects = adder_of(
            Counter("sse_disconnects", "Disconnects before the end of a stream.", registry=registry)
        )

    def of(self, record: StreamRecord) -> _RouteMetrics:
        """Return the metrics of the streams of a route and a kind of client."""
        key = (record.route, record.family)
        route = self._routes.get(key)
        if route is None:
            labels = (_encodable(record.route), str(record.family))
            route = self._routes[key] = _RouteMetrics(
                BulkHistogram(self._durations.labels(*labels), _LIFETIMES),
                BulkHistogram(self._first_events.labels(*labels), _FIRST_EVENTS),
                BulkHistogram(self._gaps.labels(*labels), GAP_BOUNDS),
                adder_of(self._events.labels(*labels)),
                {},
            )
        return route

    def count_end(self, record: StreamRecord, route: _RouteMetrics) -> None:
        """Count a stream that has ended, with its trace id as an exemplar."""
        exemplar = None
        if len(record.trace_id) <= _EXEMPLAR_CHARACTERS:
            exemplar = {"trace_id": record.trace_id}
        outcome = str(record.outcome)
        if outcome not in route.ended:
            labels = (_encodable(record.route), str(record.family), outcome)
            route.ended[outcome] = adder_of(self._ended.labels(*labels))
        route.ended[outcome](1)
        route.durations.observe(record.duration_seconds, exemplar)
        if record.first_event_seconds is not None:
            route.first_events.observe(record.first_event_seconds, exemplar)


@guarded
class Metrics:
    """Count the streams of a process in a registry; there is one object for each registry.

    Args:
        other: the registry.

    Attributes:
        own: a registry of the same metrics and no others.
    """

    def __init__(self, other: CollectorRegistry) -> None:
        self.own = registry = _OwnRegistry(other)
        self._carried: dict[int, _Carried] = {}
        self._streams = _StreamMetrics(registry)
        self._sources = SourceMetrics(registry)
        self._stalls = Histogram(
            "sse_send_stall_seconds",
            "Writes that a client blocked for over a tenth of a second.",
            buckets=_STALLS,
            registry=registry,
        )
        self._resumes = Counter(
            "sse_resumes",
            "Requests with an event id of ours, or equal to others, by result.",
            ("route", "result"),
            registry=registry,
        )
        self._replayed = Counter(
            "sse_replayed_events", "Missed events that clients were sent.", registry=registry
        )
        lingering = Gauge(
            "sse_lingering_streams",
            "Streams that continue without a client, which may reconnect.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._add_lingering = live_adder_of(lingering)
        self._rejected = Counter(
            "sse_rejected", "Rejected streams, by reason.", ("route", "reason"), registry=registry
        )
        self._on_end_errors = Counter(
            "sse_on_end_errors",
            "Calls of `on_end` that have failed.",
            ("route",),
            registry=registry,
        )
        self._store_errors = Counter(
            "sse_store_errors", "Failures of the store.", ("operation",), registry=registry
        )
        self._store_health = StoreHealthMetrics(registry)
        self._flushes = Histogram(
            "sse_store_flush_seconds",
            "Time to write events to the store.",
            buckets=_FLUSHES,
            registry=registry,
        )

    def opened(self, record: StreamRecord) -> None:
        """Count an open stream; a client that resumes is not a new one."""
        if record.resumed_after is None:
            self._streams.add_active(1)

    def progressed(self, record: StreamRecord) -> None:
        """Add the numbers since the last call."""
        route = self._streams.of(record)
        self._carry_over(record, route, self._carried.get(id(record), _NOTHING))
        self._carried[id(record)] = _Carried(
            record.chunks,
            record.sent_bytes,
            record.heartbeats,
            record.disconnects,
            record.gap_seconds,
            tuple(record.gaps) if record.chunks > 1 else _NOTHING.gaps,
        )

    def _carry_over(self, record: StreamRecord, route: _RouteMetrics, carried: _Carried) -> None:
        if record.heartbeats != carried.heartbeats:
            self._streams.add_heartbeats(record.heartbeats - carried.heartbeats)
        if record.sent_bytes != carried.sent_bytes:
            self._streams.add_bytes(record.sent_bytes - carried.sent_bytes)
        if record.disconnects != carried.disconnects:
            self._streams.add_disconnects(record.disconnects - carried.disconnects)
        if record.resumed_after is None and record.chunks != carried.chunks:
            route.add_events(record.chunks - carried.chunks)
            if record.has_gaps:
                gaps = record.gaps
                for index, count in enumerate(carried.gaps):
                    gaps[index] -= count
                route.gaps.add(gaps, record.gap_seconds - carried.gap_seconds)

    def stalled(self, record: StreamRecord, seconds: float) -> None:  # noqa: ARG002
        """Observe a blocked write."""
        self._stalls.observe(seconds)

    def ended(self, record: StreamRecord) -> None:
        """Count a stream that has ended."""
        route = self._streams.of(record)
        self._carry_over(record, route, self._carried.pop(id(record), _NOTHING))
        if record.resumed_after is not None:
            return
        self._streams.add_active(-1)
        self._streams.count_end(record, route)
        if record.cache:  # the app has run; the others are counted when they attach
            self._resumes.labels(_encodable(record.route), record.cache).inc()
        if record.sources is not None:
            self._sources.count_end(_encodable(record.route), record.sources)

    def resumed(self, route: str, result: str, replayed: int) -> None:
        """Count a resume."""
        self._resumes.labels(_encodable(route), result).inc()
        self._replayed.inc(replayed)

    def lingering(self, more: int) -> None:
        """Count the streams that linger."""
        self._add_lingering(more)

    def rejected(self, route: str, reason: str) -> None:
        """Count a rejection."""
        self._rejected.labels(_encodable(route), reason).inc()

    def on_end_failed(self, route: str) -> None:
        """Count a failure of `on_end`."""
        self._on_end_errors.labels(_encodable(route)).inc()

    def store_failed(self, operation: str) -> None:
        """Count a failure of the store."""
        self._store_errors.labels(operation).inc()

    def health_changed(self, component: str, name: str, state: str, more: int) -> None:
        """Count a component of the access to the store."""
        self._store_health.add(component, name, state, more)

    def store_flushed(self, seconds: float) -> None:
        """Observe a write to the store."""
        self._flushes.observe(seconds)


metrics_in = OncePerKey(Metrics)
"""The metrics in a registry, created at the first use."""


def counting_in(registry: CollectorRegistry) -> tuple[Observer, ...]:
    """Return the observer that counts in a registry, or none if a name is taken there."""
    try:
        return (metrics_in(registry),)
    except ValueError as exc:  # the app works without metrics
        logger.warning(
            "Streams are not counted in the metrics registry: %s. They work as usual.", exc
        )
        return ()


class _OwnRegistry(CollectorRegistry):
    """A registry of our metrics; each of them is also registered in another registry."""

    def __init__(self, other: CollectorRegistry) -> None:
        super().__init__()
        self._other = other

    def register(self, collector: Collector) -> None:
        """Register a metric here and in the other registry."""
        self._other.register(collector)
        super().register(collector)


def _encodable(route: str) -> str:
    """Return the name of a route without lone surrogates, with which no scrape could be encoded."""
    return route.encode("utf-8", "replace").decode()
