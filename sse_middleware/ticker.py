"""The ticker of one event loop: what its streams share instead of a timer and a clock each.

It sends the scribe to the streams that hold events back for a moment, and wakes those whose time
has come, by one timer each for all of them. A stream that writes an event stores a time and touches
no timer: it is asked when its last deadline has come.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Protocol

from sse_middleware.loops import OncePerLoop
from sse_middleware.process import SHUTDOWN
from sse_middleware.scribe import Author, Scribe

TICK_SECONDS = 0.002
"""How long a stream holds events back that come right behind one that it has sent.

It is longer than a turn of the loop takes in which a hundred streams write.
"""

_SLOT_SECONDS = 0.005
"""How coarse the timers are; a heartbeat that is 5 ms late is on time for everybody."""

_AT_ONCE = 64
"""How many sleepers wake in one turn of the loop, so that a thousand heartbeats delay nobody."""


class Sleeper(Protocol):
    """What can be woken."""

    def on_time(self, now: float) -> None:
        """Do what time has made due, without waiting; it may be called once behind `forget`."""


class Ticker:
    """Keep the time for the streams of `loop`.

    Attributes:
        clock: the time in seconds on the scale of `loop.time()`.
        context: nobody's; sleepers and authors bring their own.
        drain: the loop's, which outlives the ticker.
        scribe: who writes in the background.
    """

    __slots__ = (
        "__weakref__",
        "_due",
        "_holding",
        "_loop",
        "_slot_numbers",
        "_slots",
        "_timer",
        "_timer_slot",
        "clock",
        "context",
        "drain",
        "scribe",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.clock = _clock_of(loop)
        self.drain = SHUTDOWN.drain_of(loop)
        self.scribe = Scribe(loop)
        self._loop = loop
        self.context = Context()
        self._holding: list[Author] = []
        self._slots: dict[int, set[Sleeper]] = {}
        self._slot_numbers: list[int] = []  # a heap; some of them may be gone
        self._due: deque[Sleeper] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = math.inf

    def hold(self, author: Author) -> None:
        """Send the scribe to `author` when the tick is over."""
        if not self._holding:
            self._loop.call_later(TICK_SECONDS, self._end_tick, context=self.context)
        self._holding.append(author)

    def wake(self, sleeper: Sleeper, at: float) -> int:
        """Wake `sleeper` once, at the time `at` or a few milliseconds later.

        Returns:
            The number that `forget` asks for.
        """
        slot = math.ceil(at / _SLOT_SECONDS)
        if slot * _SLOT_SECONDS < at:  # by the last bit
            slot += 1
        sleepers = self._slots.get(slot)
        if sleepers is not None:
            sleepers.add(sleeper)
            return slot
        self._slots[slot] = {sleeper}
        if len(self._slot_numbers) > 2 * len(self._slots) + _AT_ONCE:
            self._slot_numbers[:] = self._slots
            heapify(self._slot_numbers)
        else:
            heappush(self._slot_numbers, slot)
        if slot < self._timer_slot:
            self._arm(slot)
        return slot

    def forget(self, sleeper: Sleeper, slot: int) -> None:
        """Let `sleeper` sleep; harmless where it was woken already."""
        sleepers = self._slots.get(slot)
        if sleepers is not None:
            sleepers.discard(sleeper)
            if not sleepers:
                del self._slots[slot]  # its number goes with the timer, which need not be moved

    def _end_tick(self) -> None:
        holding, self._holding = self._holding, []
        for author in holding:
            if author.is_owing():  # or its app has written meanwhile
                self.scribe.write_soon(author)

    def _arm(self, slot: int) -> None:
        self._disarm()
        self._timer_slot = slot
        when = slot * _SLOT_SECONDS
        self._timer = self._loop.call_at(when, self._on_timer, context=self.context)

    def _disarm(self) -> None:
        self._timer_slot = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._disarm()
        self._timer_slot = -math.inf  # who wants to be woken again meanwhile arms none
        now, numbers, due = self.clock(), self._slot_numbers, self._due
        while numbers and numbers[0] * _SLOT_SECONDS <= now:
            due.extend(self._slots.pop(heappop(numbers), ()))
        for _ in range(min(len(due), _AT_ONCE)):
            self._wake_now(due.popleft(), now)
        self._timer_slot = math.inf
        if due:
            self._arm(0)
            return
        while numbers and numbers[0] not in self._slots:
            heappop(numbers)
        if numbers:
            self._arm(numbers[0])

    def _wake_now(self, sleeper: Sleeper, now: float) -> None:
        try:
            sleeper.on_time(now)
        except Exception as exc:  # noqa: BLE001 - a fault of one stream must not stop the others
            self._loop.call_exception_handler(
                {"message": "an event stream failed when its time came", "exception": exc}
            )


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    # asyncio's loop reads this very clock; uvloop's stands still while code runs, so that a
    # handler that holds the loop would never see time go by. A test's is its own.
    same = abs(loop.time() - time.monotonic()) < 1
    return time.monotonic if same else loop.time


current_ticker = OncePerLoop(lambda: Ticker(asyncio.get_running_loop()))
"""The ticker of the loop that runs."""
