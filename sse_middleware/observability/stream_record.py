"""The record of a stream: its numbers, for observers, and never a payload."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sse_middleware.observability.source_record import SourceRecord

GAP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the classes of `StreamRecord.gaps`, in seconds."""

_SHORTEST_GAP = GAP_BOUNDS[0]


class RecordedSpan(Protocol):
    """The span of a stream in a trace. No method raises.

    Attributes:
        traceparent: its ids, in the form of W3C's Trace Context.
    """

    traceparent: str

    def add_event(self, name: str) -> None:
        """Store that something happens to the stream now: `resume`, `cap`, `drain` ..."""

    def on_completion(self, chunk: Mapping[str, Any]) -> None:
        """Store the first chunk of a chat completion."""

    def on_app_raised(self, exc: BaseException) -> None:
        """Store the exception that the app has raised."""

    def end(self, record: "StreamRecord") -> None:
        """End the span, with the numbers of the stream that has ended."""


@dataclass(slots=True)
class StreamRecord:
    """The numbers of one stream up to now; the counters only grow.

    Attributes:
        stream_id: the public id.
        trace_id: the trace id of the request.
        route: a bounded name, never a raw path.
        family: the kind of the client.
        outcome: how the stream has ended, in one word; `None` while it is open.
        duration_seconds: the time that it was open, once it has ended.
        opened_at: the time of the response start, in seconds of the stream's clock.
        first_event_at: the time of the app's first event, `None` before it.
        last_event_at: the time of the last one, minus infinity before the first.
        chunks: the number of events of the app; of an unmarked stream that of its body messages.
        tokens: the tokens that the app has counted.
        sent_bytes: all bytes of the body that the server has accepted, before a content coding.
        heartbeats: the number of heartbeat events or comments.
        disconnects: the number of disconnects of the client before the end.
        resumed_after: the event after which a client has resumed a stream, `None` for the client
            that has opened it.
        annotations: the fields that the app has added to the log record, `None` for none.
        cache: `hit`, `coalesced` or `miss` if the mark attaches requests to equal ones, else `""`.
        sources: the report of its sources, `None` without one.
        span: its span in a trace, `None` without one.
    """

    stream_id: str
    trace_id: str
    route: str
    family: str
    outcome: str | None = None
    duration_seconds: float = 0.0
    opened_at: float = 0.0
    first_event_at: float | None = None
    last_event_at: float = -math.inf
    chunks: int = 0
    tokens: int = 0
    sent_bytes: int = 0
    heartbeats: int = 0
    disconnects: int = 0
    resumed_after: int | None = None
    annotations: dict[str, object] | None = None
    cache: str = ""
    sources: SourceRecord | None = None
    span: RecordedSpan | None = field(default=None, repr=False, compare=False)
    _longer_gaps: list[int] | None = None

    def count_events(self, count: int, now: float) -> int:
        """Count events that the app has sent at one time; return the number of the last, from 1."""
        number = self.chunks = self.chunks + count
        gap = now - self.last_event_at
        self.last_event_at = now
        # Nearly all gaps are of the first class: its count is computed from the other ones.
        if gap > _SHORTEST_GAP:
            self._note_longer_gap(gap)
        return number

    def note(self, event: str) -> None:
        """Add an event of a few words to the span, if there is one."""
        if self.span is not None:
            self.span.add_event(event)

    def note_disconnect(self) -> None:
        """Count the disconnect of the client; there is at most one."""
        self.disconnects = 1
        self.note("disconnect")

    def count_first_chunk(self, now: float) -> None:
        """Count the first body message of an unmarked stream, whose events are not known."""
        self.chunks = 1
        self.first_event_at = now

    def age(self, now: float) -> float:
        """Return how long the stream has been open, in seconds to three places."""
        return round(now - self.opened_at, 3)

    def source_record(self) -> SourceRecord:
        """Return the report of its sources, made when it is needed first."""
        if self.sources is None:
            self.sources = SourceRecord()
        return self.sources

    @property
    def has_upstream(self) -> bool:
        """Whether the app may wait for an upstream for long, also after its client has left."""
        return self.sources is not None and self.sources.has_upstream

    @property
    def first_event_seconds(self) -> float | None:
        """The time from the response start to the app's first event, if there was one."""
        return None if self.first_event_at is None else self.first_event_at - self.opened_at

    @property
    def has_gaps(self) -> bool:
        """Whether there are gaps that have been measured; an unmarked stream measures none."""
        return self.chunks > 1 and self.last_event_at > -math.inf

    @property
    def gaps(self) -> list[int]:
        """The number of gaps between two events in each class of `GAP_BOUNDS`, and above them all.

        If all gaps are of the first class, it is the only item.
        """
        gaps = [0] if self._longer_gaps is None else self._longer_gaps.copy()
        gaps[0] = max(0, self.chunks - 1) - sum(gaps)
        return gaps

    @property
    def gap_seconds(self) -> float:
        """The sum of the gaps between events."""
        return 0.0 if self.first_event_at is None else self.last_event_at - self.first_event_at

    def _note_longer_gap(self, seconds: float) -> None:
        if self.first_event_at is None:
            self.first_event_at = self.last_event_at
            return
        if self._longer_gaps is None:
            self._longer_gaps = [0] * (len(GAP_BOUNDS) + 1)
        self._longer_gaps[bisect_left(GAP_BOUNDS, seconds)] += 1
