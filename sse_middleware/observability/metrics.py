"""Metrics: what Prometheus scrapes of the streams of this process.

Nothing here is touched at an event: a stream's numbers are carried over every ten seconds or so and
at its end. Labels are bounded: a route is a template or a mark's name, never a path.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, make_asgi_app
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Exemplar
from starlette.types import ASGIApp

from sse_middleware._once import OncePerKey
from sse_middleware.observability.observer import Observer
from sse_middleware.observability.stream_record import GAP_BOUNDS, StreamRecord

logger = logging.getLogger("sse_middleware")

_LIFETIMES: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
_FIRST_EVENTS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FLUSHES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_STALLS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EXEMPLAR_CHARACTERS: Final = 128 - len("trace_id")  # OpenMetrics 1.0, "Exemplars"


class CountedCounter(Counter):
    """A counter that is known to be one, to grow, and to have its labels."""

    def add(self, amount: int) -> None:
        """Do as `inc` does, which asks for all that each time."""
        self._value.inc(amount)


class CountedHistogram(Histogram):
    """A histogram that takes many observations at once, and one at a third of its usual price.

    Observing each gap would cost several times what the event itself does.
    """

    def add(self, counts: list[int], total: float) -> None:
        """Add `counts[i]` observations to bucket i, whose values sum up to `total`.

        Buckets behind the last count get none.
        """
        for bucket, count in zip(self._buckets, counts, strict=False):
            if count:
                bucket.inc(count)
        self._sum.inc(total)

    def add_one(self, amount: float, exemplar: dict[str, str] | None) -> None:
        """Do as `observe` does, with an exemplar that is known to be one."""
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        bucket.inc(1)
        self._sum.inc(amount)
        if exemplar is not None:
            bucket.set_exemplar(Exemplar(exemplar, amount, time.time()))


@dataclass(slots=True)
class _Carried:
    """What of a stream the metrics have already."""

    chunks: int = 0
    sent_bytes: int = 0
    heartbeats: int = 0
    disconnects: int = 0
    gap_seconds: float = 0.0
    gaps: Sequence[int] = ()


_NOTHING: Final = _Carried()


@dataclass(frozen=True, slots=True)
class _OfRoute:
    """The metrics of one route; to look them up by their label costs more than to use them."""

    durations: CountedHistogram
    first_events: CountedHistogram
    gaps: CountedHistogram
    events: CountedCounter
    ended: dict[tuple[str, str], CountedCounter]  # by family and outcome


class Metrics:
    """Count the streams of a process in `registry`; one object for each registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._carried: dict[int, _Carried] = {}
        self._routes: dict[str, _OfRoute] = {}
        common: dict[str, Any] = {"registry": registry}
        by_route: dict[str, Any] = {"labelnames": ("route",), **common}
        self._active = Gauge(
            "sse_streams_active", "Streams that are open.", multiprocess_mode="livesum", **common
        )
        self._streams = CountedCounter(
            "sse_streams",
            "Streams that have ended.",
            labelnames=("route", "family", "outcome"),
            **common,
        )
        self._durations = CountedHistogram(
            "sse_stream_duration_seconds", "Life of a stream.", buckets=_LIFETIMES, **by_route
        )
        self._first_events = CountedHistogram(
            "sse_time_to_first_event_seconds",
            "Time from the response start to the app's first event.",
            buckets=_FIRST_EVENTS,
            **by_route,
        )
        self._gaps = CountedHistogram(
            "sse_event_gap_seconds",
            "Time between two events of the app.",
            buckets=GAP_BOUNDS,
            **by_route,
        )
        self._events = CountedCounter("sse_events", "Events of the app.", **by_route)
        self._bytes = CountedCounter("sse_sent_bytes", "Bytes of stream bodies.", **common)
        self._heartbeats = CountedCounter("sse_heartbeats", "Heartbeats sent.", **common)
        self._disconnects = CountedCounter(
            "sse_disconnects", "Streams whose client left before their end.", **common
        )
        self._stalls = Histogram(
            "sse_send_stall_seconds",
            "Writes that a client blocked for over a tenth of a second.",
            buckets=_STALLS,
            **common,
        )

        self._resumes = Counter(
            "sse_resumes",
            "Requests with a cursor of ours, by what they got.",
            labelnames=("route", "result"),
            **common,
        )
        self._replayed = Counter(
            "sse_replayed_events", "Events given to clients that had missed them.", **common
        )
        self._lingering = Gauge(
            "sse_lingering_streams",
            "Streams that go on and wait for a reader to come back.",
            multiprocess_mode="livesum",
            **common,
        )

        self._rejected = Counter(
            "sse_rejected",
            "Streams that were not let in, by what had no room.",
            labelnames=("route", "reason"),
            **common,
        )
        self._store_errors = Counter(
            "sse_store_errors",
            "Times that the store of events was out of reach or has refused.",
            labelnames=("operation",),
            **common,
        )
        self._flushes = Histogram(
            "sse_store_flush_seconds",
            "Time to write what was to be kept to the store.",
            buckets=_FLUSHES,
            **common,
        )

    def opened(self, record: StreamRecord) -> None:
        """Count a stream in; a reader of one that is counted already is not."""
        if record.resumed_after is None:
            self._active.inc()

    def progressed(self, record: StreamRecord) -> None:
        """Carry over what has come since the last time."""
        self._carry_over(record, self._carried.get(id(record), _NOTHING))
        self._carried[id(record)] = _Carried(
            record.chunks,
            record.sent_bytes,
            record.heartbeats,
            record.disconnects,
            record.gap_seconds,
            tuple(record.gaps) if record.chunks > 1 else _NOTHING.gaps,
        )

    def _carry_over(self, record: StreamRecord, carried: _Carried) -> None:
        if record.heartbeats != carried.heartbeats:
            self._heartbeats.add(record.heartbeats - carried.heartbeats)
        if record.sent_bytes != carried.sent_bytes:
            self._bytes.add(record.sent_bytes - carried.sent_bytes)
        if record.disconnects != carried.disconnects:
            self._disconnects.add(record.disconnects - carried.disconnects)
        if record.resumed_after is None and record.chunks != carried.chunks:
            route = self._route(record.route)
            route.events.add(record.chunks - carried.chunks)
            if record.chunks > 1:
                gaps = record.gaps
                for index, count in enumerate(carried.gaps):
                    gaps[index] -= count
                route.gaps.add(gaps, record.gap_seconds - carried.gap_seconds)

    def stalled(self, record: StreamRecord, seconds: float) -> None:  # noqa: ARG002
        """Observe a blocked write."""
        self._stalls.observe(seconds)

    def ended(self, record: StreamRecord) -> None:
        """Count a stream out."""
        self._carry_over(record, self._carried.pop(id(record), _NOTHING))
        if record.resumed_after is not None:
            return
        self._active.dec()
        exemplar = None
        if len(record.trace_id) <= _EXEMPLAR_CHARACTERS:
            exemplar = {"trace_id": record.trace_id}
        route, how = self._route(record.route), (record.family, str(record.outcome))
        if how not in route.ended:
            route.ended[how] = self._streams.labels(record.route, *how)
        route.ended[how].add(1)
        route.durations.add_one(record.duration_seconds, exemplar)
        if record.first_event_seconds is not None:
            route.first_events.add_one(record.first_event_seconds, exemplar)

    def resumed(self, route: str, result: str, replayed: int) -> None:
        """Count a resume."""
        self._resumes.labels(route, result).inc()
        self._replayed.inc(replayed)

    def lingering(self, more: int) -> None:
        """Count the streams that wait."""
        self._lingering.inc(more)

    def rejected(self, route: str, reason: str) -> None:
        """Count what was not let in."""
        self._rejected.labels(route, reason).inc()

    def store_failed(self, operation: str) -> None:
        """Count a failure."""
        self._store_errors.labels(operation).inc()

    def store_flushed(self, seconds: float) -> None:
        """Observe a flush."""
        self._flushes.observe(seconds)

    def _route(self, name: str) -> _OfRoute:
        route = self._routes.get(name)
        if route is None:
            route = self._routes[name] = _OfRoute(
                self._durations.labels(name),
                self._first_events.labels(name),
                self._gaps.labels(name),
                self._events.labels(name),
                {},
            )
        return route


metrics_in = OncePerKey(Metrics)
"""The metrics in a registry, made at its first use."""


def counting_in(registry: CollectorRegistry) -> tuple[Observer, ...]:
    """Return who counts in a registry: nobody where names of ours are taken there."""
    try:
        return (metrics_in(registry),)
    except ValueError as exc:  # no reason to break the app
        logger.warning("streams are not counted in the metrics registry: %s", exc)
        return ()


def exposition(registry: CollectorRegistry | None, environ: Mapping[str, str]) -> ASGIApp:
    """Return the ASGI app that sends the metrics in a registry.

    Without a registry, it sends those of the default one, or of all processes in Prometheus'
    multi-process mode.
    """
    if registry is None:
        registry = REGISTRY
        if environ.get("PROMETHEUS_MULTIPROC_DIR") or environ.get("prometheus_multiproc_dir"):
            registry = CollectorRegistry()
            # The library has no types here.
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    app: ASGIApp = make_asgi_app(registry)
    return app
