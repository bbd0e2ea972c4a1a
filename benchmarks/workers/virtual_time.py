"""Time that only the event loop advances, so that no figure depends on the speed of the machine."""

import asyncio
import selectors
import time
from functools import partial

_UPTIME = 100_000.0
_EPOCH = 1_700_000_000.0
TURN_SECONDS = 0.02
"""The duration of a turn of the loop: longer than any tick for which events are held back."""


class VirtualTime:
    """The clocks of a process.

    They are C functions, as the real ones are: a Python function would cost more instructions.
    """

    def __init__(self) -> None:
        self._monotonic = [_UPTIME]
        self._wall = [_EPOCH]

    def install(self) -> None:
        """Replace the clocks in `time`; call it before the import of code that keeps them."""
        time.monotonic = time.perf_counter = partial(self._monotonic.__getitem__, 0)
        time.time = partial(self._wall.__getitem__, 0)

    def advance(self, seconds: float) -> None:
        """Advance all clocks."""
        self._monotonic[0] += seconds
        self._wall[0] = _EPOCH - _UPTIME + self._monotonic[0]

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return an asyncio loop that jumps to its next timer."""
        return asyncio.SelectorEventLoop(_JumpingSelector(self))


class _JumpingSelector(selectors.SelectSelector):
    """Advance the time by the timeout, and by a turn at least, instead of waiting.

    No socket is ever looked at.
    """

    def __init__(self, virtual_time: VirtualTime) -> None:
        super().__init__()
        self._time = virtual_time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("all tasks wait, and there is no timer that could wake one")
        self._time.advance(max(timeout, TURN_SECONDS))
        return []
