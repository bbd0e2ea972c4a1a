"""The reports of a stream to observers: it has opened, progresses, has ended, each in one place."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from sse_middleware.observability.observer import Observer
from sse_middleware.observability.stream_record import StreamRecord

_PROGRESS_INTERVAL_SECONDS = 10.0
"""The shortest interval of `progressed` for one stream; a scrape comes every 15 s or so."""


class StreamSlot(Protocol):
    """The slot that a stream occupies if the number of streams is limited."""

    def set_lingering(self, *, lingers: bool) -> None:
        """Release the slot while the stream lingers, or occupy it again."""

    def release(self) -> None:
        """Release the slot; further calls have no effect."""


class Report:
    """Report one stream, or one connection that follows the log of another.

    Args:
        record: the numbers of the stream.
        observers: are notified.
        clock: returns the time.

    Attributes:
        record: as the argument.
        progress_at: the time of the next report, infinite for never.
        slot: released at the end, `None` if the number of streams is not limited.
    """

    __slots__ = ("_clock", "_observers", "progress_at", "record", "slot")

    def __init__(
        self, record: StreamRecord, observers: Sequence[Observer], clock: Callable[[], float]
    ) -> None:
        self.record = record
        self._observers = observers
        self._clock = clock
        self.progress_at = math.inf
        self.slot: StreamSlot | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the end has been reported."""
        return self.record.outcome is not None

    def open(self, now: float) -> None:
        """Report that the stream has opened."""
        self.progress_at = now + _PROGRESS_INTERVAL_SECONDS
        for observer in self._observers:
            observer.opened(self.record)

    def progress(self, now: float) -> None:
        """Report that the counters may have grown, if it is time."""
        if now >= self.progress_at:
            self.progress_at = now + _PROGRESS_INTERVAL_SECONDS
            for observer in self._observers:
                observer.progressed(self.record)

    def set_lingering(self, *, lingers: bool) -> None:
        """Release the slot while the stream lingers, or occupy it again."""
        if self.slot is not None:
            self.slot.set_lingering(lingers=lingers)

    def end(self, outcome: str) -> None:
        """Report how the stream has ended, once, and release its slot."""
        record = self.record
        if record.outcome is None:
            record.outcome = outcome
            self.progress_at = math.inf
            record.duration_seconds = record.age(self._clock())
            if self.slot is not None:
                self.slot.release()
            self.slot = None
            for observer in self._observers:
                observer.ended(record)
            if record.span is not None:
                record.span.end(record)
