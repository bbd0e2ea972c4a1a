"""An event loop whose clock stands still while code runs and jumps when all code waits."""

import asyncio
import selectors


class _JumpingSelector(selectors.SelectSelector):
    """Advance the clock by what a real selector would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            message = "every task waits for something that no timer will ever bring"
            raise RuntimeError(message)
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An asyncio loop for tests without sockets or threads: an hour passes in no time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def pass_time(self, seconds: float) -> None:
        """Let time go by while the running code holds the loop, as a blocking call does."""
        self._jumping.now += seconds
