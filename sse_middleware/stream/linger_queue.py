"""The streams that wait for a reader: so many at once, and who has waited longest gives way."""

from collections.abc import Sequence
from typing import Protocol

from sse_middleware.observability.observer import Observer


class LingeringStream(Protocol):
    """A stream that goes on without a reader."""

    def expire(self) -> None:
        """End it."""


class LingerQueue:
    """Count who waits for a reader.

    Args:
        limit: how many may do so at once.
        observers: who is told.
    """

    __slots__ = ("_limit", "_observers", "_streams")

    def __init__(self, limit: int, observers: Sequence[Observer]) -> None:
        self._limit = limit
        self._observers = observers
        self._streams: dict[LingeringStream, None] = {}  # in the order in which they came

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: LingeringStream) -> None:
        """Take note that `waiter` waits, and let the one give up that is too many."""
        if stream not in self._streams:
            self._streams[stream] = None
            self._notify(1)
        if len(self._streams) > self._limit:
            oldest = next(iter(self._streams))
            self.discard(oldest)
            oldest.expire()

    def discard(self, stream: LingeringStream) -> None:
        """Take note that `waiter` does not wait any more."""
        if stream in self._streams:
            del self._streams[stream]
            self._notify(-1)

    def _notify(self, more: int) -> None:
        for observer in self._observers:
            observer.lingering(more)
