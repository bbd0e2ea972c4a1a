"""The background writer by itself: cancelled writes, its own end, and eager tasks."""

import asyncio
import gc
import logging
import sys
from typing import Any

import pytest

from tests.support.clock import VirtualClockLoop
from tests.support.flushable import FakeFlushable, nothing, other_tasks, turns, writer_for

pytestmark = pytest.mark.anyio


def cancel_tasks_of(flushable: FakeFlushable) -> None:
    """Cancel the task that has written for `flushable`, as asyncio.run does with all at its end."""
    for task in set(flushable.tasks):
        assert task is not None
        task.cancel()


def eager() -> None:
    """Start tasks eagerly, as some apps do."""
    if sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    else:
        pytest.skip("tasks begin eagerly from Python 3.12 on")


# Cancellations and faults


async def test_a_cancelled_write_ends_alone() -> None:
    log: list[str] = []
    writer = writer_for(streams=3)
    gate = asyncio.Event()
    one, other, later = (
        FakeFlushable("1", log, gate.wait),
        FakeFlushable("2", log, gate.wait),
        FakeFlushable("3", log),
    )
    writer.write_soon(one)
    writer.write_soon(other)
    await turns()
    assert one.tasks[0] is not None
    one.tasks[0].cancel()
    await turns()
    assert log[-1] == "1 ends"
    writer.write_soon(later)
    gate.set()
    await turns()
    assert (one.written, other.written, later.written) == (0, 1, 1)


async def test_a_write_that_survives_its_cancellation_runs_to_its_end() -> None:
    log: list[str] = []
    writer = writer_for(streams=2)

    async def stubborn() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(1)

    flushable, other = FakeFlushable("a", log, stubborn), FakeFlushable("b", log)
    writer.write_soon(flushable)
    await turns()
    assert flushable.tasks[0] is not None
    flushable.tasks[0].cancel()
    await asyncio.sleep(2)
    assert flushable.written == 1
    writer.write_soon(other)
    await turns()
    assert other.written == 1


async def test_a_write_that_is_cancelled_at_once_stops_no_later_one() -> None:
    log: list[str] = []
    writer = writer_for(streams=3)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    flushables = [
        FakeFlushable("a", log, cancelled),
        FakeFlushable("b", log),
        FakeFlushable("c", log),
    ]
    for flushable in flushables:
        writer.write_soon(flushable)
    await turns(10)
    assert [flushable.written for flushable in flushables] == [0, 1, 1]


async def test_a_request_after_a_cancelled_write_is_served() -> None:
    log: list[str] = []
    writer = writer_for(streams=2)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    last = FakeFlushable("b", log)
    for _ in range(3):
        writer.write_soon(FakeFlushable("a", log, cancelled))
        await turns()
    writer.write_soon(last)
    await turns()
    assert last.written == 1


async def test_a_writer_that_is_cancelled_while_idle_continues() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    flushable = FakeFlushable("a", log)
    for number in range(1, 4):
        writer.write_soon(flushable)
        await turns()
        assert flushable.written == number
        cancel_tasks_of(flushable)
        await turns()


async def test_a_request_at_the_moment_of_such_a_cancellation_is_served() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    flushable = FakeFlushable("a", log)
    writer.write_soon(flushable)
    await turns()
    cancel_tasks_of(flushable)
    writer.write_soon(flushable)
    await turns()
    assert flushable.written == 2


async def test_a_writer_cancelled_between_two_batches_makes_the_second() -> None:
    log: list[str] = []
    writer = writer_for(streams=200)
    flushables = [FakeFlushable(str(number), log) for number in range(200)]
    for flushable in flushables:
        writer.write_soon(flushable)
    await asyncio.sleep(0)
    assert 0 < len(log) < 400
    cancel_tasks_of(flushables[0])
    await turns()
    last = FakeFlushable("last", log)
    writer.write_soon(last)
    await turns(10)
    assert last.written == 1
    assert all(flushable.written for flushable in flushables)


def test_the_end_of_its_loop_takes_it_along_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def leave_it_waiting() -> None:
        log: list[str] = []
        writer = writer_for(streams=3)
        writer.write_soon(FakeFlushable("w", log, asyncio.Event().wait))
        await turns()
        writer.write_soon(FakeFlushable("a", log))
        await turns()
        writer.write_soon(FakeFlushable("b", log))

    asyncio.run(leave_it_waiting())
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Streams that join and leave


async def test_there_is_no_task_before_the_first_request() -> None:
    before = other_tasks()
    writer = writer_for(streams=2)
    writer.detach()
    writer.detach()
    await turns()
    assert other_tasks() == before


async def test_the_task_ends_with_the_last_stream_and_not_before() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=2)
    flushable = FakeFlushable("a", log)
    writer.write_soon(flushable)
    await turns()
    writer.detach()
    await turns()
    assert len(other_tasks() - before) == 1
    writer.detach()
    await turns()
    assert other_tasks() == before


async def test_a_stream_that_joins_after_the_last_one_left_is_served() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=0)
    for number in range(5):
        writer.stream_count += 1
        flushable = FakeFlushable("a", log)
        writer.write_soon(flushable)
        await turns()
        assert flushable.written == 1
        writer.detach()
        await turns(number)  # also in the turn in which the task is about to end
    await turns()
    assert other_tasks() == before


async def test_a_requested_write_is_made_though_its_stream_leaves() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=1)
    flushable = FakeFlushable("a", log)
    writer.write_soon(flushable)
    writer.detach()
    await turns()
    assert flushable.written == 1
    assert other_tasks() == before


async def test_a_write_that_still_waits_when_all_have_left_ends_by_itself() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=1)
    gate = asyncio.Event()
    flushable = FakeFlushable("a", log, gate.wait)
    writer.write_soon(flushable)
    await turns()
    writer.detach()
    await turns()
    assert len(other_tasks() - before) == 1
    gate.set()
    await turns()
    assert flushable.written == 1
    assert other_tasks() == before


async def test_an_unreferenced_writer_is_not_collected_while_a_write_waits() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    gate = asyncio.Event()
    flushable = FakeFlushable("a", log, gate.wait)
    writer.write_soon(flushable)
    await turns()
    writer.detach()
    del writer
    gc.collect()
    gate.set()
    await turns()
    assert flushable.written == 1


# Eager tasks


async def test_eager_tasks_write_in_order_and_keep_their_task_and_context() -> None:
    eager()
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=6)
    gate = asyncio.Event()
    flushables = [
        FakeFlushable(str(number), log, gate.wait if number % 2 else nothing) for number in range(6)
    ]
    for flushable in flushables:
        writer.write_soon(flushable)
    await turns()
    assert [flushable.written for flushable in flushables] == [1, 0] * 3
    gate.set()
    await turns()
    for flushable in flushables:
        writer.detach()
        assert flushable.written == 1
        assert flushable.tasks[0] is flushable.tasks[1]
        assert flushable.seen == [flushable.name] * 2
    await turns()
    assert other_tasks() == before
    begins = [line.split()[0] for line in log if line.endswith("begins")]
    assert begins == [str(number) for number in range(6)]


async def test_a_thousand_eager_writes_that_all_wait_are_no_recursion() -> None:
    eager()
    log: list[str] = []
    writer = writer_for(streams=1001)
    gate, first = asyncio.Event(), asyncio.Event()
    blocker = FakeFlushable("first", log, first.wait)
    writer.write_soon(FakeFlushable("awake", log))
    writer.write_soon(blocker)
    flushables = [FakeFlushable(str(number), log, gate.wait) for number in range(1000)]
    for flushable in flushables:
        writer.write_soon(flushable)
    await turns(1100)
    gate.set()
    first.set()
    await turns(1100)
    assert [flushable.written for flushable in flushables] == [1] * 1000


async def test_an_eager_write_requested_again_after_its_wait_never_overlaps_itself() -> None:
    eager()
    log: list[str] = []
    writer = writer_for(streams=1)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    gate = asyncio.Event()

    async def write() -> None:
        await gate.wait()
        if not flushable.written:
            writer.write_soon(flushable)

    flushable = FakeFlushable("a", log, write)
    writer.write_soon(flushable)
    await turns()
    gate.set()
    await turns(10)
    gc.collect()
    assert flushable.written == 2
    assert reported == []


def test_each_loop_has_its_own() -> None:
    async def write() -> list[str]:
        log: list[str] = []
        writer = writer_for(streams=1)
        writer.write_soon(FakeFlushable("a", log))
        await turns()
        writer.detach()
        return log

    for loop_factory in (asyncio.SelectorEventLoop, VirtualClockLoop, asyncio.SelectorEventLoop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(write()) == ["a begins", "a ends"]
