"""The seam to whoever is told of streams: metrics, logs, and what an app brings.

An observer is told at the opening, every ten seconds or so and at the end, never at an event; the
record has all the numbers, and an observer that counts remembers what it has counted already.
"""

from typing import Protocol

from sse_middleware.observability.stream_record import StreamRecord


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

    def resumed(self, route: str, result: str, replayed: int) -> None:
        """Hear what a request with a cursor of ours has got.

        Args:
            route: the bounded name of the stream's route.
            result: `resumed`, `truncated`, `gone`, `ended`, `cancelled` or `unavailable`.
            replayed: how many events it had missed and is given.
        """

    def lingering(self, more: int) -> None:
        """Hear that one stream more waits for a reader, 1, or one less, -1."""

    def rejected(self, route: str, reason: str) -> None:
        """Hear that a stream was not let in.

        Args:
            route: the bounded name of its route.
            reason: what has no room: `process` or `client`, the `rate` of openings, or `shutdown`.
        """

    def store_failed(self, operation: str) -> None:
        """Hear that the store was out of reach; `operation` is one of a few words."""

    def store_flushed(self, seconds: float) -> None:
        """Hear that events were written to the store, and how long that took."""
