"""A clock that a test advances."""


class FakeClock:
    """A clock that stands still until it is advanced; call it for the time in seconds.

    Args:
        now: its first time, in seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Advance the clock.

        Args:
            seconds: how far, 0 or more.

        Raises:
            ValueError: `seconds` is less than 0; monotonic clocks never go back.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds is {seconds}, allowed is 0 or more")
        self._now += seconds
