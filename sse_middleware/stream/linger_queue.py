"""The streams that linger: their number is limited, and the oldest one expires."""

from collections.abc import Sequence
from typing import Protocol

from sse_middleware.observability.observer import Observer


class LingeringStream(Protocol):
    """A stream that continues without a reader."""

    def expire(self) -> None:
        """End the stream."""


class LingerQueue:
    """Count the streams that wait for a reader.

    Args:
        limit: the maximum number of lingering streams.
        observers: are notified of changes.
    """

    __slots__ = ("_limit", "_observers", "_streams")

    def __init__(self, limit: int, observers: Sequence[Observer]) -> None:
        self._limit = limit
        self._observers = observers
        self._streams: dict[LingeringStream, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: LingeringStream) -> None:
        """Add a stream, and let the oldest one expire if there are too many."""
        if stream not in self._streams:
            self._streams[stream] = None
            self._notify(1)
        if len(self._streams) > self._limit:
            oldest = next(iter(self._streams))
            self.discard(oldest)
            oldest.expire()

    def discard(self, stream: LingeringStream) -> None:
        """Remove a stream that does not linger any more."""
        if stream in self._streams:
            del self._streams[stream]
            self._notify(-1)

    def _notify(self, more: int) -> None:
        for observer in self._observers:
            observer.lingering(more)
