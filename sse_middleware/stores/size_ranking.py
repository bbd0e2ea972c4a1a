"""Which of many logs is the largest, in logarithmic time.

Most processes never have to know. The logs are ranked from the first question on, until there have
been as many changes as logs since the last ranking.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

_SPARE: Final = 64
"""The number of outdated entries that the heap may have in any case."""


class SizeRanking:
    """The sizes of logs by their ids.

    Args:
        measure: returns the sizes of all logs.

    Attributes:
        is_active: whether changes have to be reported by `update`.
    """

    def __init__(self, measure: Callable[[], dict[str, int]]) -> None:
        self._measure = measure
        self.is_active = False
        self._sizes: dict[str, int] = {}
        # Entries with a size that has changed remain until they are the largest, or too many.
        self._heap: list[tuple[int, str]] = []

    def update(self, key: str, size: int) -> None:
        """Set the size of a log; 0 removes it."""
        if not size:
            self._sizes.pop(key, None)
        elif self._sizes.get(key) != size:
            self._sizes[key] = size
            heappush(self._heap, (-size, key))
        if len(self._heap) > 2 * len(self._sizes) + _SPARE:
            self.is_active = False
            self._heap, self._sizes = [], {}

    def largest(self) -> str | None:
        """Return the largest log, `None` if all are empty."""
        if not self.is_active:
            self.is_active = True
            self._sizes = self._measure()
            self._heap = [(-size, key) for key, size in self._sizes.items()]
            heapify(self._heap)
        while self._heap:
            size, key = self._heap[0]
            if self._sizes.get(key) == -size:
                return key
            heappop(self._heap)
        return None
