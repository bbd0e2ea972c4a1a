"""The record of a stream: its numbers, for whoever is told of it, and never a payload."""

import math
from bisect import bisect_left
from dataclasses import dataclass

GAP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds of the classes in which `StreamRecord.gaps` counts."""

_SHORTEST_GAP = GAP_BOUNDS[0]


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
        opened_at: when the response started, in seconds of the stream's clock.
        first_event_at: when the app's first event came, `None` before.
        last_event_at: when the last one came, before all times while there was none.
        chunks: the events of the app.
        tokens: what the app has counted itself.
        sent_bytes: all bytes of the body that the server has taken.
        heartbeats: events or comments of ours.
        disconnects: how often the client has left before the end.
        resumed_after: the event behind which a reader has come back to a stream that somebody
            else has opened, `None` for the opening itself.
        annotations: what the app has said of the stream, `None` where it has said nothing.
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
    _longer_gaps: list[int] | None = None

    def count_events(self, count: int, now: float) -> int:
        """Count events of the app's that came at one time; return the last one's number, from 1."""
        number = self.chunks = self.chunks + count
        gap = now - self.last_event_at
        self.last_event_at = now
        # The shortest gaps are nearly all: they are what is left of all when the others are known.
        if gap > _SHORTEST_GAP:
            self._note_longer_gap(gap)
        return number

    @property
    def first_event_seconds(self) -> float | None:
        """The time from the response start to the app's first event, if there was one."""
        return None if self.first_event_at is None else self.first_event_at - self.opened_at

    @property
    def gaps(self) -> list[int]:
        """How many times between two events fell into each class of `GAP_BOUNDS`, and behind.

        Where all were of the first class, it stands alone.
        """
        gaps = [0] if self._longer_gaps is None else self._longer_gaps.copy()
        gaps[0] = max(0, self.chunks - 1) - sum(gaps)
        return gaps

    @property
    def gap_seconds(self) -> float:
        """The sum of those times."""
        return 0.0 if self.first_event_at is None else self.last_event_at - self.first_event_at

    def _note_longer_gap(self, seconds: float) -> None:
        if self.first_event_at is None:
            self.first_event_at = self.last_event_at
            return
        if self._longer_gaps is None:
            self._longer_gaps = [0] * (len(GAP_BOUNDS) + 1)
        self._longer_gaps[bisect_left(GAP_BOUNDS, seconds)] += 1
