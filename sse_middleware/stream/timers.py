"""The timers of one event loop: its streams share them, in place of a timer and a clock each.

All streams that coalesce events are flushed after the same tick. All deadlines share one timer of
the loop: they are grouped in buckets of a few milliseconds, and a heap contains the times of the
buckets. A stream that writes an event stores a time and changes no timer; it computes its next
deadline when the last one is reached.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from typing import Protocol

from sse_middleware._once import OncePerLoop, call_in
from sse_middleware.stream.background_writer import BackgroundWriter
from sse_middleware.stream.shutdown import SHUTDOWN

logger = logging.getLogger("sse_middleware")

TICK_SECONDS = 0.002
"""How long a stream coalesces the events that directly follow one that it has sent."""
LONGEST_TICK_SECONDS = 0.01
_TURNS_PER_TICK = 4
"""A tick lasts this many iterations of the loop, within the limits above.

If a hundred streams write, an iteration takes longer than a millisecond. With a tick shorter than a
few iterations each event would be written separately, although the load is highest.
"""

_BUCKET_SECONDS = 0.005
"""The resolution of the timers; no client notices a heartbeat that is 5 ms late."""

_EPOCH_TOLERANCE_SECONDS = 0.001
"""If the system clock deviates more, `epoch` is computed again."""

_BLOCKED_SECONDS = 2.0
"""A delay of the event loop that is logged: clients notice late heartbeats."""
_WARNING_INTERVAL_SECONDS = 60.0

_MAX_CALLBACKS_PER_TURN = 64
"""A limit per iteration of the loop, so that a thousand heartbeats do not delay other tasks."""


class TimerTarget(Protocol):
    """An object with deadlines."""

    def on_timer(self, now: float) -> None:
        """Perform the actions that are due, without blocking; one call may follow `cancel`."""


class TickTarget(Protocol):
    """An object that coalesces events for a tick."""

    def on_tick(self) -> None:
        """Flush the events: the tick is over."""


class LoopTimers:
    """The clock and the timers of the streams of `loop`.

    Attributes:
        clock: the time in seconds on the scale of `loop.time()`.
        empty_context: an empty context; targets that need one bring their own.
        drain: the drain of the loop, which outlives this object.
        background_writer: the background writer of the loop.
        tick_seconds: the length of a tick, adapted to the load of the loop.
    """

    __slots__ = (
        "__weakref__",
        "_bucket_heap",
        "_buckets",
        "_due",
        "_epoch",
        "_fires_at",
        "_latest_bucket",
        "_loop",
        "_tick_targets",
        "_timer",
        "_timer_bucket",
        "_warns_at",
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
        self._latest_bucket = 0  # as used by the last `call_at`
        # Of dicts, not sets, so that targets are called in the order of their calls.
        self._buckets: dict[int, dict[TimerTarget, None]] = {}
        self._bucket_heap: list[int] = []  # includes buckets that are deleted already
        self._due: deque[TimerTarget] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_bucket = math.inf
        self._fires_at = 0.0  # of the timer, if there is one
        self._warns_at = -math.inf

    def epoch(self) -> float:
        """Return the seconds since 1970 at which `clock` was 0: one object for many streams.

        If the system clock is set, later calls return the new value.
        """
        epoch = time.time() - self.clock()
        if abs(epoch - self._epoch) > _EPOCH_TOLERANCE_SECONDS:
            self._epoch = epoch
        return self._epoch

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the event loop of the timers: at once if it is the running one."""
        call_in(self._loop, function, *args)

    def flush_after_tick(self, target: TickTarget) -> None:
        """Call `target.on_tick` after the tick."""
        if not self._tick_targets:
            self._loop.call_later(self.tick_seconds, self._on_tick, context=self.empty_context)
        self._tick_targets.append(target)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in the next iteration of the loop, without the current context."""
        self._loop.call_soon(function, context=self.empty_context)

    def call_at(self, target: TimerTarget, at: float) -> int:
        """Call `target.on_timer` once, at the time `at` or a few milliseconds later.

        Returns:
            The bucket, an argument of `cancel`.
        """
        bucket = math.ceil(at / _BUCKET_SECONDS)
        if bucket * _BUCKET_SECONDS < at:  # a rounding error of one bit
            bucket += 1
        if bucket == self._latest_bucket:
            bucket = self._latest_bucket  # one int object for all streams
        self._latest_bucket = bucket
        targets = self._buckets.get(bucket)
        if targets is not None:
            targets[target] = None
            return bucket
        self._buckets[bucket] = {target: None}
        if len(self._bucket_heap) > 2 * len(self._buckets) + _MAX_CALLBACKS_PER_TURN:
            self._bucket_heap[:] = self._buckets
            heapify(self._bucket_heap)
        else:
            heappush(self._bucket_heap, bucket)
        if bucket < self._timer_bucket:
            self._arm(bucket)
        return bucket

    def move(self, target: TimerTarget, bucket: int | None, at: float) -> int | None:
        """Call `target.on_timer` at the time `at` in place of `bucket`; never if `at` is infinite.

        Returns:
            The bucket, `None` if the call is cancelled.
        """
        if bucket is not None:
            self.cancel(target, bucket)
        return self.call_at(target, at) if at < math.inf else None

    def cancel(self, target: TimerTarget, bucket: int) -> None:
        """Cancel the call; no effect if it has already been made."""
        targets = self._buckets.get(bucket)
        if targets is not None:
            targets.pop(target, None)
            if not targets:
                del self._buckets[bucket]  # the heap and the timer keep its time

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
        self._fires_at = max(when, self.clock())  # a deadline may have passed already
        self._timer = self._loop.call_at(when, self._on_timer, context=self.empty_context)

    def _disarm(self) -> None:
        self._timer_bucket = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        now = self.clock()
        if now - self._fires_at > _BLOCKED_SECONDS:
            self._warn_of_delay(now, now - self._fires_at)
        self._disarm()
        self._timer_bucket = -math.inf  # calls of `call_at` meanwhile arm no timer
        heap, due = self._bucket_heap, self._due
        while heap and heap[0] * _BUCKET_SECONDS <= now:
            due.extend(self._buckets.pop(heappop(heap), ()))
        for _ in range(min(len(due), _MAX_CALLBACKS_PER_TURN)):
            self._notify(due.popleft().on_timer, now)
        self._timer_bucket = math.inf
        if due:
            self._arm(0)
            return
        while heap and heap[0] not in self._buckets:
            heappop(heap)
        if heap:
            self._arm(heap[0])

    def _warn_of_delay(self, now: float, late: float) -> None:
        if now >= self._warns_at:
            self._warns_at = now + _WARNING_INTERVAL_SECONDS
            logger.warning(
                "The event loop was blocked for %.1f s: all streams of this process were late, and "
                "their heartbeats too. A handler blocks it, such as by a call of a synchronous "
                "client in an async function (PYTHONASYNCIODEBUG=1 logs it), or the machine is "
                "overloaded. This is logged at most once a minute.",
                late,
            )

    def _notify(self, callback: Callable[..., None], *args: float) -> None:
        try:
            callback(*args)
        except Exception as exc:  # noqa: BLE001 - an error in one stream must not stop the others
            self._loop.call_exception_handler(
                {
                    "message": "an event stream failed at its deadline; others continue",
                    "exception": exc,
                }
            )


def _select_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    # asyncio reads this clock too. uvloop's does not advance while code runs, so that a handler
    # that blocks the loop would see no time pass. The loop of a test has its own clock.
    same = abs(loop.time() - time.monotonic()) < 1
    return time.monotonic if same else loop.time


current_timers = OncePerLoop(lambda: LoopTimers(asyncio.get_running_loop()))
"""Return the timers of the running loop."""
