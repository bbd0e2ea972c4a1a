"""Time that goes by when a test says so."""


class FakeClock:
    """A clock that stands still; call it for the time in seconds.

    Args:
        now: the time it shows first.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time go by.

        Args:
            seconds: how much of it, 0 or more.

        Raises:
            ValueError: it is less than 0, and no clock that is asked for durations goes back.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds is {seconds}, allowed is 0 or more")
        self._now += seconds
