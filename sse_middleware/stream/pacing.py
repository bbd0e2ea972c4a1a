"""The minimum interval between two events of an app."""

import asyncio


class Pacing:
    """The minimum interval of two content events, and the earliest time of the next one.

    Args:
        seconds: the interval.

    Attributes:
        turn: the lock of the write that is paced.
    """

    __slots__ = ("next_at", "seconds", "turn")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.next_at = 0.0
        self.turn = asyncio.Lock()
