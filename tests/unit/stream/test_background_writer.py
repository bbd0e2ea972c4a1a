"""The writer alone: it writes for many, in order, and who has to wait holds nobody up."""

import asyncio
import contextvars
import gc
import logging
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from sse_middleware.stream.background_writer import BackgroundWriter
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.anyio

WHO: ContextVar[str] = ContextVar("who", default="nobody")


async def nothing() -> None:
    pass


class Author:
    """Whoever writes: in which `tasks`, what was `seen` there, and how often it was `written` for.

    Each write looks at its task and context twice, at its begin and at its end.
    """

    def __init__(
        self, name: str, log: list[str], write: Callable[[], Awaitable[Any]] = nothing
    ) -> None:
        self.name = name
        self.log = log
        self.write = write
        self.app_context = contextvars.copy_context()
        self.app_context.run(WHO.set, name)
        self.write_task: asyncio.Task[Any] | None = None
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.seen: list[str] = []
        self.written = 0

    async def flush_pending(self) -> None:
        self.log.append(f"{self.name} begins")
        self.look()
        try:
            await self.write()
            self.written += 1
        finally:
            self.look()
            self.log.append(f"{self.name} ends")

    def look(self) -> None:
        self.tasks.append(asyncio.current_task())
        self.seen.append(WHO.get())


def writer_for(*, streams: int) -> BackgroundWriter:
    writer = BackgroundWriter(asyncio.get_running_loop())
    for _ in range(streams):
        writer.attach()
    return writer


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def other_tasks() -> set[asyncio.Task[Any]]:
    task = asyncio.current_task()
    assert task is not None
    return asyncio.all_tasks() - {task}


def cancel_tasks_of(author: Author) -> None:
    """Cancel the task that has written for `author`, as asyncio.run does with all at its end."""
    for task in set(author.tasks):
        assert task is not None
        task.cancel()


def eager() -> None:
    """Let tasks begin at once, as some apps have it."""
    if sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    else:
        pytest.skip("tasks begin eagerly from Python 3.12 on")


# Order and turns


async def test_authors_are_written_for_in_the_order_they_asked_in() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=3)
    for name in ("a", "b", "a", "c"):
        writer.write_soon(Author(name, log))
    assert log == []
    await asyncio.sleep(0)
    assert log == [f"{name} {what}" for name in "abac" for what in ("begins", "ends")]
    assert len(other_tasks() - before) == 1  # one task for all of them


async def test_a_write_comes_in_the_very_next_turn_of_the_loop() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    author = Author("a", log)
    for number in range(1, 6):
        writer.write_soon(author)
        await asyncio.sleep(0)
        if number == 1:
            await turns()  # the first one has to come to work
        await asyncio.sleep(0)
        assert author.written == number


async def test_who_asks_while_it_is_written_for_is_written_for_again() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)

    async def again() -> None:
        if author.written < 3:
            writer.write_soon(author)

    author = Author("a", log, again)
    writer.write_soon(author)
    await turns(10)
    assert author.written == 4


async def test_a_thousand_authors_let_the_loop_turn_in_between() -> None:
    log: list[str] = []
    writer = writer_for(streams=1000)
    authors = [Author(str(number), log) for number in range(1000)]
    for author in authors:
        writer.write_soon(author)
    while not authors[-1].written:
        log.append("other")
        await asyncio.sleep(0)
    runs = " ".join(log).replace("begins", "").replace("ends", "").split("other")
    assert max(len(set(run.split())) for run in runs) <= 64
    assert [author.written for author in authors] == [1] * 1000


async def test_an_author_that_always_has_more_leaves_turns_to_the_others() -> None:
    log: list[str] = []
    writer = writer_for(streams=2)

    async def more() -> None:
        if greedy.written < 500:
            writer.write_soon(greedy)

    greedy, modest = Author("greedy", log, more), Author("modest", log)
    writer.write_soon(greedy)
    await turns(3)
    writer.write_soon(modest)
    await turns(3)
    assert modest.written == 1
    assert greedy.written < 500


# Writes that wait


async def test_a_write_that_waits_keeps_its_task_and_another_goes_on() -> None:
    log: list[str] = []
    writer = writer_for(streams=3)
    gate = asyncio.Event()
    waiting, first, second = Author("w", log, gate.wait), Author("a", log), Author("b", log)
    for author in (waiting, first):
        writer.write_soon(author)
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
    authors = [Author(str(number), log, gate.wait) for number, gate in enumerate(gates)]
    for author in authors:
        writer.write_soon(author)
    await turns(110)
    assert len(log) == 100
    for gate in reversed(gates):
        gate.set()
    await turns()
    assert all(author.written == 1 for author in authors)
    assert all(author.tasks[0] is author.tasks[1] for author in authors)
    assert len({author.tasks[0] for author in authors}) == 100


async def test_a_write_that_waits_again_and_again_gets_what_it_waited_for() -> None:
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

    author = Author("a", log, write)
    writer.write_soon(author)
    await asyncio.sleep(10)
    assert got == [0, 1, 2, "no"]
    assert author.written == 1


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

    authors = [Author(str(number), log, write) for number in range(20)]
    for author in authors:
        writer.write_soon(author)
    await asyncio.sleep(20)
    assert [author.written for author in authors] == [1] * 20
    assert sorted(timed_out) == ["anyio"] * 20 + ["asyncio"] * 20


# Contexts


async def test_each_write_runs_in_the_context_of_its_author_to_its_end() -> None:
    log: list[str] = []
    writer = writer_for(streams=10)
    WHO.set("whoever asks")

    async def change() -> None:
        WHO.set(f"{WHO.get()}, changed")
        await asyncio.sleep(1)
        await asyncio.sleep(0)

    waiting = [Author(f"w{number}", log, change) for number in range(5)]
    quick = [Author(f"q{number}", log) for number in range(5)]
    for pair in zip(waiting, quick, strict=True):
        for author in pair:
            writer.write_soon(author)
    await asyncio.sleep(5)
    assert [author.seen for author in waiting] == [
        [f"w{number}", f"w{number}, changed"] for number in range(5)
    ]
    assert [author.seen for author in quick] == [[f"q{number}"] * 2 for number in range(5)]
    assert WHO.get() == "whoever asks"


async def test_the_task_itself_knows_nothing_of_who_made_it() -> None:
    log: list[str] = []
    WHO.set("the first to ask")
    writer = writer_for(streams=1)
    author = Author("a", log)
    writer.write_soon(author)
    await turns()
    (task,) = {task for task in author.tasks if task is not None}
    if sys.version_info >= (3, 12):
        assert WHO not in task.get_context()
    else:
        assert task.get_name()  # there is no way to ask


# Cancellations and faults


async def test_a_cancelled_write_ends_alone() -> None:
    log: list[str] = []
    writer = writer_for(streams=3)
    gate = asyncio.Event()
    one, other, later = Author("1", log, gate.wait), Author("2", log, gate.wait), Author("3", log)
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


async def test_a_write_that_survives_its_cancellation_goes_on_to_its_end() -> None:
    log: list[str] = []
    writer = writer_for(streams=2)

    async def stubborn() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(1)

    author, other = Author("a", log, stubborn), Author("b", log)
    writer.write_soon(author)
    await turns()
    assert author.tasks[0] is not None
    author.tasks[0].cancel()
    await asyncio.sleep(2)
    assert author.written == 1
    writer.write_soon(other)
    await turns()
    assert other.written == 1


async def test_an_author_that_is_cancelled_at_once_stops_no_later_one() -> None:
    log: list[str] = []
    writer = writer_for(streams=3)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    authors = [Author("a", log, cancelled), Author("b", log), Author("c", log)]
    for author in authors:
        writer.write_soon(author)
    await turns(10)
    assert [author.written for author in authors] == [0, 1, 1]


async def test_the_one_who_asks_behind_a_cancelled_author_is_written_for() -> None:
    log: list[str] = []
    writer = writer_for(streams=2)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    last = Author("b", log)
    for _ in range(3):
        writer.write_soon(Author("a", log, cancelled))
        await turns()
    writer.write_soon(last)
    await turns()
    assert last.written == 1


async def test_cancelled_while_asleep_it_comes_back_to_work() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    author = Author("a", log)
    for number in range(1, 4):
        writer.write_soon(author)
        await turns()
        assert author.written == number
        cancel_tasks_of(author)
        await turns()


async def test_who_asks_at_the_moment_of_such_a_cancellation_is_written_for() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    author = Author("a", log)
    writer.write_soon(author)
    await turns()
    cancel_tasks_of(author)
    writer.write_soon(author)
    await turns()
    assert author.written == 2


async def test_cancelled_between_two_lots_of_authors_it_comes_back_for_the_second() -> None:
    log: list[str] = []
    writer = writer_for(streams=200)
    authors = [Author(str(number), log) for number in range(200)]
    for author in authors:
        writer.write_soon(author)
    await asyncio.sleep(0)
    assert 0 < len(log) < 400
    cancel_tasks_of(authors[0])
    await turns()
    last = Author("last", log)
    writer.write_soon(last)
    await turns(10)
    assert last.written == 1
    assert all(author.written for author in authors)


def test_the_end_of_its_loop_takes_it_along_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def leave_it_behind() -> None:
        log: list[str] = []
        writer = writer_for(streams=3)
        writer.write_soon(Author("w", log, asyncio.Event().wait))
        await turns()
        writer.write_soon(Author("a", log))
        await turns()
        writer.write_soon(Author("b", log))

    asyncio.run(leave_it_behind())
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Coming and going


async def test_there_is_no_task_before_anybody_asks() -> None:
    before = other_tasks()
    writer = writer_for(streams=2)
    writer.detach()
    writer.detach()
    await turns()
    assert other_tasks() == before


async def test_the_task_ends_with_the_last_who_leaves_and_not_before() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=2)
    author = Author("a", log)
    writer.write_soon(author)
    await turns()
    writer.detach()
    await turns()
    assert len(other_tasks() - before) == 1
    writer.detach()
    await turns()
    assert other_tasks() == before


async def test_who_joins_behind_the_last_who_left_is_written_for() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=0)
    for number in range(5):
        writer.attach()
        author = Author("a", log)
        writer.write_soon(author)
        await turns()
        assert author.written == 1
        writer.detach()
        await turns(number)  # also in the turn in which the task is about to end
    await turns()
    assert other_tasks() == before


async def test_what_was_asked_for_is_written_though_its_author_leaves() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=1)
    author = Author("a", log)
    writer.write_soon(author)
    writer.detach()
    await turns()
    assert author.written == 1
    assert other_tasks() == before


async def test_a_write_that_still_waits_when_all_have_left_ends_by_itself() -> None:
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=1)
    gate = asyncio.Event()
    author = Author("a", log, gate.wait)
    writer.write_soon(author)
    await turns()
    writer.detach()
    await turns()
    assert len(other_tasks() - before) == 1
    gate.set()
    await turns()
    assert author.written == 1
    assert other_tasks() == before


async def test_a_scribe_that_nobody_holds_is_no_garbage_while_a_write_waits() -> None:
    log: list[str] = []
    writer = writer_for(streams=1)
    gate = asyncio.Event()
    author = Author("a", log, gate.wait)
    writer.write_soon(author)
    await turns()
    writer.detach()
    del writer
    gc.collect()
    gate.set()
    await turns()
    assert author.written == 1


# Tasks that begin at once


async def test_eager_tasks_write_in_order_and_keep_their_task_and_context() -> None:
    eager()
    before, log = other_tasks(), list[str]()
    writer = writer_for(streams=6)
    gate = asyncio.Event()
    authors = [
        Author(str(number), log, gate.wait if number % 2 else nothing) for number in range(6)
    ]
    for author in authors:
        writer.write_soon(author)
    await turns()
    assert [author.written for author in authors] == [1, 0] * 3
    gate.set()
    await turns()
    for author in authors:
        writer.detach()
        assert author.written == 1
        assert author.tasks[0] is author.tasks[1]
        assert author.seen == [author.name] * 2
    await turns()
    assert other_tasks() == before
    begins = [line.split()[0] for line in log if line.endswith("begins")]
    assert begins == [str(number) for number in range(6)]


async def test_a_thousand_eager_writes_that_all_wait_are_no_recursion() -> None:
    eager()
    log: list[str] = []
    writer = writer_for(streams=1001)
    gate, first = asyncio.Event(), asyncio.Event()
    blocker = Author("first", log, first.wait)
    writer.write_soon(Author("awake", log))
    writer.write_soon(blocker)
    authors = [Author(str(number), log, gate.wait) for number in range(1000)]
    for author in authors:
        writer.write_soon(author)
    await turns(1100)
    gate.set()
    first.set()
    await turns(1100)
    assert [author.written for author in authors] == [1] * 1000


async def test_an_eager_write_that_asks_again_behind_its_waiting_is_not_written_twice_at_once() -> (
    None
):
    eager()
    log: list[str] = []
    writer = writer_for(streams=1)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    gate = asyncio.Event()

    async def write() -> None:
        await gate.wait()
        if not author.written:
            writer.write_soon(author)

    author = Author("a", log, write)
    writer.write_soon(author)
    await turns()
    gate.set()
    await turns(10)
    gc.collect()
    assert author.written == 2
    assert told == []


def test_each_loop_has_its_own() -> None:
    async def write() -> list[str]:
        log: list[str] = []
        writer = writer_for(streams=1)
        writer.write_soon(Author("a", log))
        await turns()
        writer.detach()
        return log

    for loop_factory in (asyncio.SelectorEventLoop, VirtualClockLoop, asyncio.SelectorEventLoop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(write()) == ["a begins", "a ends"]
