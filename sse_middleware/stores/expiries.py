"""The times at which ended logs expire, in constant time for each time for which they are kept."""

import math
from collections import OrderedDict


class Expiries:
    """The keys of ended logs, each with the time of its expiry.

    The times for which logs are kept are few: one for each mark that sets one, and the usual one.

    Attributes:
        earliest: a time before which no key expires.
    """

    __slots__ = ("_by_seconds", "earliest")

    def __init__(self) -> None:
        self._by_seconds: dict[float, OrderedDict[str, float]] = {}
        self.earliest = math.inf

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._by_seconds)

    def add(self, key: str, seconds: float, now: float) -> None:
        """Add a key that expires in `seconds`; for equal ones, the time never runs backwards."""
        expiries = self._by_seconds.get(seconds)
        if expiries is None:
            expiries = self._by_seconds[seconds] = OrderedDict()
        expiries[key] = at = now + seconds
        self.earliest = min(self.earliest, at)

    def discard(self, key: str, seconds: float) -> None:
        """Remove a key that was added with `seconds`, if it is there."""
        expiries = self._by_seconds.get(seconds)
        if expiries is not None:
            expiries.pop(key, None)
            if not expiries:
                del self._by_seconds[seconds]

    def next(self) -> tuple[str, float]:
        """Return the key that expires next and its time, which is infinite if there is none."""
        key, earliest = "", math.inf
        for expiries in self._by_seconds.values():
            first = next(iter(expiries.items()))
            if first[1] < earliest:
                key, earliest = first
        self.earliest = earliest
        return key, earliest
