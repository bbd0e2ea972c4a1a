"""The streams that wait for a reader: so many at once, and who has waited longest gives way."""

from collections.abc import Sequence
from typing import Protocol

from sse_middleware.observability.observer import Observer


class Waiter(Protocol):
    """A stream that goes on without a reader."""

    def give_up(self) -> None:
        """End it."""


class LingerQueue:
    """Count who waits for a reader.

    Args:
        limit: how many may do so at once.
        observers: who is told.
    """

    __slots__ = ("_limit", "_observers", "_waiting")

    def __init__(self, limit: int, observers: Sequence[Observer]) -> None:
        self._limit = limit
        self._observers = observers
        self._waiting: dict[Waiter, None] = {}  # in the order in which they came

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiter: Waiter) -> None:
        """Take note that `waiter` waits, and let the one give up that is too many."""
        if waiter not in self._waiting:
            self._waiting[waiter] = None
            self._tell(1)
        if len(self._waiting) > self._limit:
            oldest = next(iter(self._waiting))
            self.discard(oldest)
            oldest.give_up()

    def discard(self, waiter: Waiter) -> None:
        """Take note that `waiter` does not wait any more."""
        if waiter in self._waiting:
            del self._waiting[waiter]
            self._tell(-1)

    def _tell(self, more: int) -> None:
        for observer in self._observers:
            observer.lingering(more)
