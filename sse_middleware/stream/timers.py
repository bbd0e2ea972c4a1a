"""The ticker of one event loop: what its streams share instead of a timer and a clock each.

It tells the streams that hold events back for a moment when that is over, and wakes those whose
time has come, by one timer each for all of them. A stream that writes an event stores a time and
touches no timer: it is asked when its last deadline has come.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Protocol

from sse_middleware._once import OncePerLoop
from sse_middleware.stream.background_writer import BackgroundWriter
from sse_middleware.stream.shutdown import SHUTDOWN

TICK_SECONDS = 0.002
"""How long a stream holds events back that come right behind one that it has sent."""
LONGEST_TICK_SECONDS = 0.01
_TURNS = 4
"""How many turns of the loop a tick has at least, up to the longest one.

Where a hundred streams write, a turn takes longer than a millisecond: who held back for less than
a few of them would write each event by itself, just where that costs most.
"""

_SLOT_SECONDS = 0.005
"""How coarse the timers are; a heartbeat that is 5 ms late is on time for everybody."""

_EPOCH_SECONDS = 0.001
"""How far the time of day may drift off before it is looked at anew."""

_AT_ONCE = 64
"""How many sleepers wake in one turn of the loop, so that a thousand heartbeats delay nobody."""


class TimerTarget(Protocol):
    """What can be woken."""

    def on_time(self, now: float) -> None:
        """Do what time has made due, without waiting; it may be called once behind `forget`."""


class TickTarget(Protocol):
    """Whoever holds something back for a tick."""

    def on_tick(self) -> None:
        """Hear that it is over."""


class LoopTimers:
    """Keep the time for the streams of `loop`.

    Attributes:
        clock: the time in seconds on the scale of `loop.time()`.
        context: nobody's; sleepers and authors bring their own.
        drain: the loop's, which outlives the ticker.
        scribe: who writes in the background.
        tick_seconds: how long to hold events back, as the loop is now.
    """

    __slots__ = (
        "__weakref__",
        "_due",
        "_epoch",
        "_holding",
        "_latest",
        "_loop",
        "_slot_numbers",
        "_slots",
        "_timer",
        "_timer_slot",
        "clock",
        "context",
        "drain",
        "scribe",
        "tick_seconds",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.clock = _clock_of(loop)
        self.drain = SHUTDOWN.drain_of(loop)
        self.scribe = BackgroundWriter(loop)
        self._loop = loop
        self.context = Context()
        self.tick_seconds = TICK_SECONDS
        self._holding: list[TickTarget] = []
        self._epoch = 0.0
        self._latest = 0  # of the slots, by who was to be woken last
        self._slots: dict[int, set[TimerTarget]] = {}
        self._slot_numbers: list[int] = []  # a heap; some of them may be gone
        self._due: deque[TimerTarget] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = math.inf

    def epoch(self) -> float:
        """Return the seconds since 1970 at which `clock` stood at 0: one object for many streams.

        It follows a clock that is set, for those who ask behind that.
        """
        epoch = time.time() - self.clock()
        if abs(epoch - self._epoch) > _EPOCH_SECONDS:
            self._epoch = epoch
        return self._epoch

    def hold(self, holder: TickTarget) -> None:
        """Tell `holder` when the tick is over."""
        if not self._holding:
            self._loop.call_later(self.tick_seconds, self._end_tick, context=self.context)
        self._holding.append(holder)

    def wake(self, sleeper: TimerTarget, at: float) -> int:
        """Wake `sleeper` once, at the time `at` or a few milliseconds later.

        Returns:
            The number that `forget` asks for.
        """
        slot = math.ceil(at / _SLOT_SECONDS)
        if slot * _SLOT_SECONDS < at:  # by the last bit
            slot += 1
        if slot == self._latest:
            slot = self._latest  # one object for all who keep it
        self._latest = slot
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

    def forget(self, sleeper: TimerTarget, slot: int) -> None:
        """Let `sleeper` sleep; harmless where it was woken already."""
        sleepers = self._slots.get(slot)
        if sleepers is not None:
            sleepers.discard(sleeper)
            if not sleepers:
                del self._slots[slot]  # its number goes with the timer, which need not be moved

    def _end_tick(self) -> None:
        holding, self._holding = self._holding, []
        self._loop.call_soon(self._measure_turn, self.clock(), context=self.context)
        for holder in holding:
            self._tell(holder.on_tick)

    def _measure_turn(self, began: float) -> None:
        turn = self.clock() - began
        self.tick_seconds = min(max(TICK_SECONDS, _TURNS * turn), LONGEST_TICK_SECONDS)

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
            self._tell(due.popleft().on_time, now)
        self._timer_slot = math.inf
        if due:
            self._arm(0)
            return
        while numbers and numbers[0] not in self._slots:
            heappop(numbers)
        if numbers:
            self._arm(numbers[0])

    def _tell(self, hear: Callable[..., None], *args: float) -> None:
        try:
            hear(*args)
        except Exception as exc:  # noqa: BLE001 - a fault of one stream must not stop the others
            self._loop.call_exception_handler(
                {"message": "an event stream failed when its time came", "exception": exc}
            )


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    # asyncio's loop reads this very clock; uvloop's stands still while code runs, so that a
    # handler that holds the loop would never see time go by. A test's is its own.
    same = abs(loop.time() - time.monotonic()) < 1
    return time.monotonic if same else loop.time


current_timers = OncePerLoop(lambda: LoopTimers(asyncio.get_running_loop()))
"""The ticker of the loop that runs."""
