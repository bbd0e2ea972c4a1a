"""An event loop whose clock stands still while code runs and jumps when all code waits."""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

_START = 1e7
"""Unlike the uptime of any machine: `LoopTimers` recognizes the loop of a test by its clock."""


class _JumpingSelector(selectors.SelectSelector):
    """Advance the clock by the time that a real selector would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            message = "every task waits, and no timer is set"
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

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]  # noqa: ARG002
        """Call a function here: no time passes while a thread runs."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:  # noqa: BLE001 - the caller gets it
            future.set_exception(exc)
        return future

    def pass_time(self, seconds: float) -> None:
        """Let time go by while the running code holds the loop, as a blocking call does."""
        self._jumping.now += seconds
