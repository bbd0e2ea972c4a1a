"""The timers by themselves: targets are called once and in time, and ticks end in time."""

import asyncio
import gc
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_middleware.stream.timers import (
    LONGEST_TICK_SECONDS,
    TICK_SECONDS,
    LoopTimers,
    current_timers,
)
from tests.support.clock import VirtualClockLoop
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio

LATEST = 0.005 + 1e-6  # how late a target may be called; asyncio's own clock is a little coarse


class Target:
    """A timer target; `calls` has the times of its calls, and each call runs `on_call`."""

    def __init__(self, on_call: Callable[[], None] = lambda: None) -> None:
        self.calls: list[float] = []
        self.on_call = on_call

    def on_timer(self, now: float) -> None:
        self.calls.append(now)
        self.on_call()


def new_timers() -> tuple[LoopTimers, float]:
    """Return new timers of the running loop, and the time."""
    timers = LoopTimers(asyncio.get_running_loop())
    return timers, timers.clock()


def pending_timers() -> list[asyncio.TimerHandle]:
    """Return the timers of the running loop that will fire."""
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if not handle.cancelled()]


# Set


@pytest.mark.parametrize("after", [-1.0, 0.0, 0.0001, 0.005, 0.0074, 1.0, 5.0, 3600.001])
async def test_a_target_is_called_once_and_neither_early_nor_late(after: float) -> None:
    timers, began = new_timers()
    target = Target()
    timers.call_at(target, began + after)
    await asyncio.sleep(max(0.0, after) + 10)
    (calls,) = target.calls
    assert began + after <= calls <= max(began, began + after) + LATEST
    assert pending_timers() == []


@pytest.mark.parametrize("number", [200005, 200006, 200011])
async def test_a_target_is_never_called_before_its_time(number: int) -> None:
    timers, _ = new_timers()
    target = Target()
    at = math.nextafter(number * 0.005, math.inf)
    timers.call_at(target, at)
    await asyncio.sleep(1)
    (calls,) = target.calls
    assert (
        calls >= at
    )  # otherwise it would set a new timer again and again while the clock stands still


@settings(deadline=None, max_examples=sampled(60))
@given(waits=st.lists(st.floats(0, 20) | st.integers(0, 400).map(lambda n: n / 20), max_size=30))
def test_all_of_many_sleepers_wake_once_and_in_time(waits: list[float]) -> None:
    async def sleep_all() -> None:
        timers, began = new_timers()
        targets = [(began + wait, Target()) for wait in waits]
        for at, target in targets:
            timers.call_at(target, at)
        await asyncio.sleep(25)
        for at, target in targets:
            (calls,) = target.calls
            assert at <= calls <= at + LATEST

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(sleep_all())


async def test_an_earlier_wake_moves_the_timer_and_the_later_one_still_comes() -> None:
    timers, began = new_timers()
    late, early, earliest = Target(), Target(), Target()
    timers.call_at(late, began + 60)
    await asyncio.sleep(1)
    timers.call_at(early, began + 5)
    timers.call_at(earliest, began + 2)
    assert len(pending_timers()) == 1
    await asyncio.sleep(100)
    calls = [target.calls[0] - began for target in (earliest, early, late)]
    assert calls == pytest.approx([2, 5, 60], abs=LATEST)


async def test_a_later_time_does_not_move_the_loop_timer() -> None:
    timers, began = new_timers()
    timers.call_at(Target(), began + 5)
    (timer,) = pending_timers()
    for after in (5, 6, 60):
        timers.call_at(Target(), began + after)
    assert pending_timers() == [timer]


async def test_a_target_may_set_a_new_timer_while_it_is_called() -> None:
    timers, began = new_timers()

    def again() -> None:
        if len(target.calls) < 20:
            timers.call_at(target, began + len(target.calls) + 1)

    target = Target(again)
    timers.call_at(target, began + 1)
    await asyncio.sleep(100)
    assert [at - began for at in target.calls] == pytest.approx(range(1, 21), abs=LATEST)
    assert pending_timers() == []


async def test_a_target_with_a_past_time_is_called_in_the_next_turns() -> None:
    timers, began = new_timers()

    def again() -> None:
        if len(target.calls) < 5:
            timers.call_at(target, began - 10)

    target = Target(again)
    timers.call_at(target, began)
    await asyncio.sleep(0.01)
    assert len(target.calls) == 5


async def test_targets_are_called_late_but_once_after_a_blocked_loop() -> None:
    timers, began = new_timers()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    targets = [Target() for _ in range(10)]
    for number, target in enumerate(targets):
        timers.call_at(target, began + number)
    loop.pass_time(20)
    await asyncio.sleep(1)
    assert [target.calls for target in targets] == [[began + 20]] * 10


# Cancel


async def test_a_cancelled_timer_does_not_fire_and_others_do() -> None:
    timers, began = new_timers()
    forgotten, neighbour, later = Target(), Target(), Target()
    bucket = timers.call_at(forgotten, began + 5)
    timers.call_at(neighbour, began + 5)
    timers.call_at(later, began + 6)
    timers.cancel(forgotten, bucket)
    await asyncio.sleep(20)
    assert [len(target.calls) for target in (forgotten, neighbour, later)] == [0, 1, 1]


async def test_a_second_cancel_or_one_after_the_call_is_harmless() -> None:
    timers, began = new_timers()
    one, other = Target(), Target()
    bucket = timers.call_at(one, began + 1)
    timers.cancel(one, bucket)
    timers.cancel(one, bucket)
    bucket = timers.call_at(one, began + 2)
    await asyncio.sleep(3)
    timers.cancel(one, bucket)
    timers.call_at(other, began + 4)
    timers.cancel(one, bucket)
    await asyncio.sleep(3)
    assert [len(target.calls) for target in (one, other)] == [1, 1]


async def test_a_cancelled_target_may_be_set_to_the_same_time_again() -> None:
    timers, began = new_timers()
    target = Target()
    for _ in range(3):
        timers.cancel(target, timers.call_at(target, began + 5))
    timers.call_at(target, began + 5)
    await asyncio.sleep(20)
    assert len(target.calls) == 1


async def test_a_target_may_cancel_another_while_it_is_called() -> None:
    timers, began = new_timers()
    buckets: dict[Target, int] = {}

    def forget_all() -> None:
        for target, bucket in buckets.items():
            timers.cancel(target, bucket)

    targets = [Target(forget_all) for _ in range(3)]
    buckets.update((target, timers.call_at(target, began + 1)) for target in targets)
    other = Target()
    timers.call_at(other, began + 2)
    await asyncio.sleep(3)
    assert all(len(target.calls) <= 1 for target in targets)  # it may be called once after that
    assert len(other.calls) == 1


async def test_when_all_were_forgotten_one_timer_is_left_and_runs_out_in_its_time() -> None:
    timers, began = new_timers()
    targets = [Target() for _ in range(100)]
    buckets = [timers.call_at(target, began + 5 + i / 10) for i, target in enumerate(targets)]
    for target, bucket in zip(targets, buckets, strict=True):
        timers.cancel(target, bucket)
    (timer,) = pending_timers()
    assert timer.when() <= began + 5 + LATEST
    await asyncio.sleep(5.01)
    assert pending_timers() == []


async def test_short_streams_with_a_distant_cap_leave_no_timers() -> None:
    timers, began = new_timers()
    target = Target()
    for _ in range(10_000):  # one after another, each of them cancelled before its time
        timers.cancel(target, timers.call_at(target, began + 3600))
    assert len(timers._bucket_heap) + len(timers._buckets) < 100


async def test_a_target_among_many_cancelled_ones_is_called_in_time() -> None:
    timers, began = new_timers()
    targets: list[tuple[float, Target]] = []
    for number in range(2000):
        at = began + 1 + number * 7919 % 1999 / 10
        target = Target()
        bucket = timers.call_at(target, at)
        if number % 40:
            timers.cancel(target, bucket)
        else:
            targets.append((at, target))
    await asyncio.sleep(300)
    for at, target in targets:
        (calls,) = target.calls
        assert at <= calls <= at + LATEST


async def test_unused_timers_are_freed_after_the_last_one_has_fired() -> None:
    timers, began = new_timers()
    target = Target()
    timers.cancel(target, timers.call_at(target, began + 5))
    gone = weakref.ref(timers)
    del timers
    await asyncio.sleep(1)
    gc.collect()
    assert gone() is not None
    await asyncio.sleep(5)
    gc.collect()
    assert gone() is None


# Faults and fairness


async def test_a_target_that_raises_is_reported_and_stops_no_other() -> None:
    timers, began = new_timers()
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    fault = ValueError("a fault")

    def fail() -> None:
        raise fault

    targets = [Target(fail if number in {0, 2} else lambda: None) for number in range(4)]
    for target in targets:
        timers.call_at(target, began + 1)
    later = Target()
    timers.call_at(later, began + 2)
    await asyncio.sleep(3)
    assert [len(target.calls) for target in [*targets, later]] == [1] * 5
    assert [context["exception"] for context in reported] == [fault] * 2


async def test_a_thousand_targets_of_one_moment_yield_to_the_event_loop() -> None:
    timers, began = new_timers()
    order: list[str] = []
    for _ in range(1000):
        timers.call_at(Target(lambda: order.append("target")), began + 1)
    await asyncio.sleep(1)
    for _ in range(30):
        order.append("other")
        await asyncio.sleep(0)
    runs = "".join("s" if one == "target" else "o" for one in order).split("o")
    assert max(map(len, runs)) <= 64
    assert sum(map(len, runs)) == 1000


async def test_a_target_that_is_due_during_a_thousand_calls_is_called_too() -> None:
    timers, began = new_timers()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    crowd = [Target(lambda: loop.pass_time(0.001)) for _ in range(1000)]
    for target in crowd:
        timers.call_at(target, began + 1)
    others = [Target() for _ in range(10)]
    for number, target in enumerate(others):
        timers.call_at(target, began + 1.05 + number / 10)
    await asyncio.sleep(5)
    assert {len(target.calls) for target in [*crowd, *others]} == {1}
    for number, target in enumerate(others):
        assert began + 1.05 + number / 10 <= target.calls[0] <= began + 2.1


# Ticks


class TickRecorder:
    """A tick target that records the end of each tick."""

    def __init__(self) -> None:
        self.reported: list[float] = []

    def on_tick(self) -> None:
        self.reported.append(asyncio.get_running_loop().time())


async def test_all_tick_targets_are_called_once_at_the_end_of_the_tick() -> None:
    timers, began = new_timers()
    holders = [TickRecorder() for _ in range(200)]
    for holder in holders:
        timers.flush_after_tick(holder)
    await asyncio.sleep(1)
    assert {len(holder.reported) for holder in holders} == {1}
    assert all(began + TICK_SECONDS <= holder.reported[0] < began + 0.01 for holder in holders)


async def test_one_that_fails_when_the_tick_is_over_keeps_it_from_no_other() -> None:
    timers, _ = new_timers()
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))

    class Broken(TickRecorder):
        def on_tick(self) -> None:
            raise ValueError("broken")

    holder = TickRecorder()
    timers.flush_after_tick(Broken())
    timers.flush_after_tick(holder)
    await asyncio.sleep(1)
    assert len(holder.reported) == 1
    assert [str(context["exception"]) for context in failed] == ["broken"]


class Busy(TickRecorder):
    """A tick target with `seconds` of work at the end of each tick."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def on_tick(self) -> None:
        super().on_tick()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        loop.pass_time(self.seconds)


async def test_a_tick_has_some_turns_of_a_busy_loop_and_that_of_an_idle_one_is_short() -> None:
    timers, _ = new_timers()
    longest = LONGEST_TICK_SECONDS
    for turn, tick in ((0.001, 0.004), (0.002, 0.008), (0.5, longest), (0, TICK_SECONDS)):
        timers.flush_after_tick(Busy(turn))
        await asyncio.sleep(1)
        assert timers.tick_seconds == pytest.approx(tick)


async def test_one_loop_timer_serves_all_tick_targets() -> None:
    timers, _ = new_timers()
    before = len(pending_timers())
    for _ in range(10):
        timers.flush_after_tick(TickRecorder())
    assert len(pending_timers()) == before + 1


# The time of day


async def test_the_time_of_day_is_one_object_until_a_clock_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers, _ = new_timers()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    monkeypatch.setattr(time, "time", lambda: 5000.0 + timers.clock())
    first = timers.epoch()
    loop.pass_time(100)
    assert timers.epoch() is first
    assert first == pytest.approx(5000.0)
    monkeypatch.setattr(time, "time", lambda: 4000.0 + timers.clock())
    assert timers.epoch() == pytest.approx(4000.0)


# One object for each loop


async def test_all_streams_of_a_loop_share_their_timers() -> None:
    assert current_timers() is current_timers()


def test_successive_loops_have_separate_timers_and_only_the_last_stay() -> None:
    seen: list[weakref.ref[LoopTimers]] = []

    async def look() -> None:
        timers = current_timers()
        timers.call_at(Target(), timers.clock() + 3600)  # it is not cancelled: the loop just ends
        assert all(one() is not timers for one in seen)
        seen.append(weakref.ref(timers))

    for _ in range(3):
        asyncio.run(look())
    gc.collect()
    assert [one() for one in seen[:-1]] == [None] * 2


def test_loops_in_two_threads_have_separate_timers() -> None:
    both = threading.Barrier(2)
    seen: list[tuple[LoopTimers, int]] = []

    async def look() -> None:
        timers = current_timers()
        calls = asyncio.Event()
        target = Target(calls.set)
        timers.call_at(target, timers.clock() + 0.01)
        await asyncio.to_thread(both.wait)
        async with asyncio.timeout(60):
            await calls.wait()
        seen.append((timers, len(target.calls)))

    threads = [threading.Thread(target=asyncio.run, args=(look(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one, first), (other, second) = seen
    assert one is not other
    assert (first, second) == (1, 1)


def test_the_clock_is_that_of_a_real_loop() -> None:
    async def look() -> tuple[float, float, float]:
        loop = asyncio.get_running_loop()
        timers = current_timers()
        return loop.time(), timers.clock(), loop.time()

    before, clock, after = asyncio.run(look())
    assert before <= clock <= after


# Warnings


async def test_a_blocked_event_loop_is_logged_at_most_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    timers, began = new_timers()

    async def block(seconds: float) -> None:
        timers.call_at(Target(), timers.clock() + 1)
        loop.pass_time(1 + seconds)
        await asyncio.sleep(0.1)

    for seconds in (1.9, 3.0, 9.0):
        await block(seconds)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "The event loop was blocked for 3.0 s"
    ]
    await asyncio.sleep(60)
    await block(4.0)
    assert len(caplog.records) == 2
    assert timers.clock() > began


async def test_a_deadline_that_has_passed_already_is_no_blocked_event_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    timers, began = new_timers()
    timers.call_at(Target(), began - 100)
    await asyncio.sleep(0.1)
    assert caplog.records == []
