"""The seam to whoever is told of streams: metrics, logs, and what an app brings.

An observer is told at the opening, every ten seconds or so and at the end, never at an event; the
record has all the numbers, and an observer that counts remembers what it has counted already.
"""

from typing import Protocol

from sse_middleware.record import StreamRecord


class Observer(Protocol):
    """What is told of streams. Nothing here may wait, block or raise."""

    def opened(self, record: StreamRecord) -> None:
        """Hear that a response has become a stream."""

    def progressed(self, record: StreamRecord) -> None:
        """Hear that a stream lives; its counters have grown since the last time."""

    def stalled(self, record: StreamRecord, seconds: float) -> None:
        """Hear that a write was blocked for so long by a client that did not read."""

    def ended(self, record: StreamRecord) -> None:
        """Hear, once, that a stream has ended; `record.outcome` says how."""
