"""The record of a stream: its numbers, for whoever is told of it, and never a payload."""

from bisect import bisect_left
from dataclasses import dataclass, field

GAP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds of the classes in which `StreamRecord.gaps` counts."""


@dataclass(slots=True)
class StreamRecord:
    """What happened on one stream so far; the counters only ever grow.

    Attributes:
        stream_id: the public name.
        trace_id: the request's.
        route: a bounded name, never a raw path.
        family: the client's, as its word.
        outcome: how it has ended, in one word; `None` while it is open.
        duration_seconds: its life, once it has ended.
        first_event_seconds: from the response start to the app's first event, if there was one.
        chunks: the events of the app.
        tokens: what the app has counted itself.
        sent_bytes: all bytes of the body that the server has taken.
        heartbeats: events or comments of ours.
        gaps: how many times between two events fell into each class of `GAP_BOUNDS`, and behind.
        gap_seconds: the sum of those times.
        annotations: what the app has said of the stream.
    """

    stream_id: str
    trace_id: str
    route: str
    family: str
    outcome: str | None = None
    duration_seconds: float = 0.0
    first_event_seconds: float | None = None
    chunks: int = 0
    tokens: int = 0
    sent_bytes: int = 0
    heartbeats: int = 0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS) + 1))
    gap_seconds: float = 0.0
    annotations: dict[str, object] = field(default_factory=dict)

    def add_gap(self, seconds: float, times: int = 1) -> None:
        """Count a time between two events."""
        self.gaps[bisect_left(GAP_BOUNDS, seconds)] += times
        self.gap_seconds += seconds * times
