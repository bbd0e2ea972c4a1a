"""Which of many logs is the largest, in logarithmic time."""

from heapq import heapify, heappop, heappush
from typing import Final

_SPARE: Final = 64
"""The number of outdated entries that the heap may have in any case."""


class SizeRanking:
    """The sizes of logs by their ids."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        # Entries with a size that has changed remain until they are the largest, or too many.
        self._heap: list[tuple[int, str]] = []

    def add(self, key: str) -> None:
        """Add an empty log."""
        self._sizes[key] = 0

    def update(self, key: str, size: int) -> None:
        """Set the size of a log, if it was added."""
        if self._sizes.get(key, size) == size:
            return
        self._sizes[key] = size
        if len(self._heap) > 2 * len(self._sizes) + _SPARE:
            self._heap = [(-size, key) for key, size in self._sizes.items()]
            heapify(self._heap)
        else:
            heappush(self._heap, (-size, key))

    def discard(self, key: str) -> None:
        """Remove a log, if it is there."""
        self._sizes.pop(key, None)
        if not self._sizes:
            self._heap.clear()

    def largest(self) -> str | None:
        """Return the largest log, `None` if all are empty."""
        while self._heap:
            size, key = self._heap[0]
            if self._sizes.get(key) == -size:
                return key
            heappop(self._heap)
        return None
