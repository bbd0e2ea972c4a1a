"""The background writer by itself: it writes for many streams in order; none delays another."""

import asyncio
import sys

import anyio
import pytest

from tests.support.flushable import NAME, FakeFlushable, other_tasks, turns, writer_for

pytestmark = pytest.mark.anyio


# Order and turns


async def test_writes_are_made_in_the_order_of_the_requests() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=3)
    for name in ("a", "b", "a", "c"):
        writer.write_soon(FakeFlushable(name, log))
    assert log == []
    await asyncio.sleep(0)
    assert log == [f"{name} {what}" for name in "abac" for what in ("begins", "ends")]
    assert len(other_tasks() - before) == 1  # one task for all of them


async def test_a_write_comes_in_the_very_next_turn_of_the_loop() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    flushable = FakeFlushable("a", log)
    for number in range(1, 6):
        writer.write_soon(flushable)
        await asyncio.sleep(0)
        if number == 1:
            await turns()  # the task has to start
        await asyncio.sleep(0)
        assert flushable.written == number


async def test_a_request_during_a_write_causes_another_write() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)

    async def again() -> None:
        if flushable.written < 3:
            writer.write_soon(flushable)

    flushable = FakeFlushable("a", log, again)
    writer.write_soon(flushable)
    await turns(10)
    assert flushable.written == 4


async def test_a_thousand_writes_yield_to_the_event_loop() -> None:
    log: list[str] = []
    writer = writer_for(streams=1000)
    flushables = [FakeFlushable(str(number), log) for number in range(1000)]
    for flushable in flushables:
        writer.write_soon(flushable)
    while not flushables[-1].written:
        log.append("other")
        await asyncio.sleep(0)
    runs = " ".join(log).replace("begins", "").replace("ends", "").split("other")
    assert max(len(set(run.split())) for run in runs) <= 64
    assert [flushable.written for flushable in flushables] == [1] * 1000


async def test_a_stream_that_always_has_more_to_write_does_not_starve_the_others() -> None:
    log: list[str] = []
    writer = writer_for(streams=2)

    async def more() -> None:
        if greedy.written < 500:
            writer.write_soon(greedy)

    greedy, modest = FakeFlushable("greedy", log, more), FakeFlushable("modest", log)
    writer.write_soon(greedy)
    await turns(3)
    writer.write_soon(modest)
    await turns(3)
    assert modest.written == 1
    assert greedy.written < 500


# Writes that wait


async def test_a_write_that_waits_keeps_its_task_and_others_continue() -> None:
    log: list[str] = []
    writer = writer_for(streams=3)
    gate = asyncio.Event()
    waiting, first, second = (
        FakeFlushable("w", log, gate.wait),
        FakeFlushable("a", log),
        FakeFlushable("b", log),
    )
    for flushable in (waiting, first):
        writer.write_soon(flushable)
    await turns()
    writer.write_soon(second)
    await turns()
    assert (waiting.written, first.written, second.written) == (0, 1, 1)
    gate.set()
    await turns()
    assert waiting.written == 1
    began_in, ended_in = waiting.tasks
    assert began_in is ended_in
    assert began_in not in first.tasks + second.tasks
    assert log[-1] == "w ends"


async def test_many_writes_wait_side_by_side_and_each_in_a_task_of_its_own() -> None:
    log: list[str] = []
    writer = writer_for(streams=100)
    gates = [asyncio.Event() for _ in range(100)]
    flushables = [FakeFlushable(str(number), log, gate.wait) for number, gate in enumerate(gates)]
    for flushable in flushables:
        writer.write_soon(flushable)
    await turns(110)
    assert len(log) == 100
    for gate in reversed(gates):
        gate.set()
    await turns()
    assert all(flushable.written == 1 for flushable in flushables)
    assert all(flushable.tasks[0] is flushable.tasks[1] for flushable in flushables)
    assert len({flushable.tasks[0] for flushable in flushables}) == 100


async def test_a_write_that_waits_several_times_gets_each_result() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    loop = asyncio.get_running_loop()
    got: list[object] = []

    async def write() -> None:
        for number in range(3):
            future: asyncio.Future[int] = loop.create_future()
            loop.call_later(1, future.set_result, number)
            got.append(await future)
        failing: asyncio.Future[int] = loop.create_future()
        loop.call_later(1, failing.set_exception, ValueError("no"))
        try:
            await failing
        except ValueError as exc:
            got.append(str(exc))
        await asyncio.sleep(0)

    flushable = FakeFlushable("a", log, write)
    writer.write_soon(flushable)
    await asyncio.sleep(10)
    assert got == [0, 1, 2, "no"]
    assert flushable.written == 1


async def test_a_write_may_time_out_lock_and_open_a_cancel_scope() -> None:
    log: list[str] = []
    writer = writer_for(streams=20)
    lock, asyncio_lock = anyio.Lock(), asyncio.Lock()
    timed_out: list[str] = []

    async def write() -> None:
        async with lock, asyncio_lock:
            await asyncio.sleep(0.1)
        try:
            async with asyncio.timeout(1):
                await asyncio.sleep(10)
        except TimeoutError:
            timed_out.append("asyncio")
        try:
            with anyio.fail_after(1):
                await anyio.sleep(10)
        except TimeoutError:
            timed_out.append("anyio")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep(10)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0.1)

    flushables = [FakeFlushable(str(number), log, write) for number in range(20)]
    for flushable in flushables:
        writer.write_soon(flushable)
    await asyncio.sleep(20)
    assert [flushable.written for flushable in flushables] == [1] * 20
    assert sorted(timed_out) == ["anyio"] * 20 + ["asyncio"] * 20


# Contexts


async def test_each_write_runs_in_the_context_of_its_stream_to_its_end() -> None:
    log: list[str] = []
    writer = writer_for(streams=10)
    NAME.set("the caller")

    async def change() -> None:
        NAME.set(f"{NAME.get()}, changed")
        await asyncio.sleep(1)
        await asyncio.sleep(0)

    waiting = [FakeFlushable(f"w{number}", log, change) for number in range(5)]
    quick = [FakeFlushable(f"q{number}", log) for number in range(5)]
    for pair in zip(waiting, quick, strict=True):
        for flushable in pair:
            writer.write_soon(flushable)
    await asyncio.sleep(5)
    assert [flushable.seen for flushable in waiting] == [
        [f"w{number}", f"w{number}, changed"] for number in range(5)
    ]
    assert [flushable.seen for flushable in quick] == [[f"q{number}"] * 2 for number in range(5)]
    assert NAME.get() == "the caller"


async def test_the_task_has_an_empty_context() -> None:
    log: list[str] = []
    NAME.set("the first caller")
    writer = writer_for(streams=1)
    flushable = FakeFlushable("a", log)
    writer.write_soon(flushable)
    await turns()
    (task,) = {task for task in flushable.tasks if task is not None}
    if sys.version_info >= (3, 12):
        assert NAME not in task.get_context()
    else:
        assert task.get_name()  # the task is not accessible
