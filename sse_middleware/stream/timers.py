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
_TURNS_PER_TICK = 4
"""How many turns of the loop a tick has at least, up to the longest one.

Where a hundred streams write, a turn takes longer than a millisecond: who held back for less than
a few of them would write each event by itself, just where that costs most.
"""

_BUCKET_SECONDS = 0.005
"""How coarse the timers are; a heartbeat that is 5 ms late is on time for everybody."""

_EPOCH_TOLERANCE_SECONDS = 0.001
"""How far the time of day may drift off before it is looked at anew."""

_MAX_CALLBACKS_PER_TURN = 64
"""How many sleepers wake in one turn of the loop, so that a thousand heartbeats delay nobody."""


class TimerTarget(Protocol):
    """What can be woken."""

    def on_timer(self, now: float) -> None:
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
        "_bucket_heap",
        "_buckets",
        "_due",
        "_epoch",
        "_latest_bucket",
        "_loop",
        "_tick_targets",
        "_timer",
        "_timer_bucket",
        "background_writer",
        "clock",
        "drain",
        "empty_context",
        "tick_seconds",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.clock = _select_clock(loop)
        self.drain = SHUTDOWN.drain_for(loop)
        self.background_writer = BackgroundWriter(loop)
        self._loop = loop
        self.empty_context = Context()
        self.tick_seconds = TICK_SECONDS
        self._tick_targets: list[TickTarget] = []
        self._epoch = 0.0
        self._latest_bucket = 0  # of the slots, by who was to be woken last
        self._buckets: dict[int, set[TimerTarget]] = {}
        self._bucket_heap: list[int] = []  # a heap; some of them may be gone
        self._due: deque[TimerTarget] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_bucket = math.inf

    def epoch(self) -> float:
        """Return the seconds since 1970 at which `clock` stood at 0: one object for many streams.

        It follows a clock that is set, for those who ask behind that.
        """
        epoch = time.time() - self.clock()
        if abs(epoch - self._epoch) > _EPOCH_TOLERANCE_SECONDS:
            self._epoch = epoch
        return self._epoch

    def flush_after_tick(self, target: TickTarget) -> None:
        """Tell `holder` when the tick is over."""
        if not self._tick_targets:
            self._loop.call_later(self.tick_seconds, self._on_tick, context=self.empty_context)
        self._tick_targets.append(target)

    def call_at(self, target: TimerTarget, at: float) -> int:
        """Wake `sleeper` once, at the time `at` or a few milliseconds later.

        Returns:
            The number that `forget` asks for.
        """
        bucket = math.ceil(at / _BUCKET_SECONDS)
        if bucket * _BUCKET_SECONDS < at:  # by the last bit
            bucket += 1
        if bucket == self._latest_bucket:
            bucket = self._latest_bucket  # one object for all who keep it
        self._latest_bucket = bucket
        targets = self._buckets.get(bucket)
        if targets is not None:
            targets.add(target)
            return bucket
        self._buckets[bucket] = {target}
        if len(self._bucket_heap) > 2 * len(self._buckets) + _MAX_CALLBACKS_PER_TURN:
            self._bucket_heap[:] = self._buckets
            heapify(self._bucket_heap)
        else:
            heappush(self._bucket_heap, bucket)
        if bucket < self._timer_bucket:
            self._arm(bucket)
        return bucket

    def cancel(self, target: TimerTarget, bucket: int) -> None:
        """Let `sleeper` sleep; harmless where it was woken already."""
        targets = self._buckets.get(bucket)
        if targets is not None:
            targets.discard(target)
            if not targets:
                del self._buckets[bucket]  # its number goes with the timer, which need not be moved

    def _on_tick(self) -> None:
        targets, self._tick_targets = self._tick_targets, []
        self._loop.call_soon(self._measure_turn, self.clock(), context=self.empty_context)
        for target in targets:
            self._notify(target.on_tick)

    def _measure_turn(self, started: float) -> None:
        turn = self.clock() - started
        self.tick_seconds = min(max(TICK_SECONDS, _TURNS_PER_TICK * turn), LONGEST_TICK_SECONDS)

    def _arm(self, bucket: int) -> None:
        self._disarm()
        self._timer_bucket = bucket
        when = bucket * _BUCKET_SECONDS
        self._timer = self._loop.call_at(when, self._on_timer, context=self.empty_context)

    def _disarm(self) -> None:
        self._timer_bucket = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._disarm()
        self._timer_bucket = -math.inf  # who wants to be woken again meanwhile arms none
        now, numbers, due = self.clock(), self._bucket_heap, self._due
        while numbers and numbers[0] * _BUCKET_SECONDS <= now:
            due.extend(self._buckets.pop(heappop(numbers), ()))
        for _ in range(min(len(due), _MAX_CALLBACKS_PER_TURN)):
            self._notify(due.popleft().on_timer, now)
        self._timer_bucket = math.inf
        if due:
            self._arm(0)
            return
        while numbers and numbers[0] not in self._buckets:
            heappop(numbers)
        if numbers:
            self._arm(numbers[0])

    def _notify(self, callback: Callable[..., None], *args: float) -> None:
        try:
            callback(*args)
        except Exception as exc:  # noqa: BLE001 - a fault of one stream must not stop the others
            self._loop.call_exception_handler(
                {"message": "an event stream failed when its time came", "exception": exc}
            )


def _select_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    # asyncio's loop reads this very clock; uvloop's stands still while code runs, so that a
    # handler that holds the loop would never see time go by. A test's is its own.
    same = abs(loop.time() - time.monotonic()) < 1
    return time.monotonic if same else loop.time


current_timers = OncePerLoop(lambda: LoopTimers(asyncio.get_running_loop()))
"""The ticker of the loop that runs."""
