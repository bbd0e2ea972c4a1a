"""A write of an app that has to wait: in the app's own task, until the app is released."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest

from sse_middleware.stream.background_writer import DONE, BackgroundWriter
from sse_middleware.stream.releasable_write import ReleasableWrite
from tests.support.flushable import NAME, FakeFlushable, other_tasks, turns, writer_for

pytestmark = pytest.mark.anyio

Work = Callable[[], Awaitable[Any]]


class Write:
    """One write of a stream: `work` is what the server does.

    Attributes:
        rest: what the app has to await, `None` if the write has ended at once.
    """

    def __init__(
        self,
        work: Work,
        *,
        writer: BackgroundWriter | None = None,
        may_wait: bool = True,
        may_cancel: bool = False,
    ) -> None:
        self.work = work
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.names: list[str] = []
        self.ended: BaseException | str | None = "no"
        self.stream = FakeFlushable("stream", [])
        self.writer = writer or writer_for(streams=1)
        steps: Generator[Any, Any, None] = self.run().__await__()
        awaited = next(steps, DONE)
        self.rest: ReleasableWrite | None = None
        if awaited is not DONE:
            self.rest = ReleasableWrite(
                self.stream,
                self.writer,
                steps,
                awaited,
                may_wait=may_wait,
                may_cancel=may_cancel,
            )

    async def run(self) -> None:
        self.look()
        try:
            await self.work()
        except BaseException as exc:
            self.ended = exc
            raise
        else:
            self.ended = None
        finally:
            self.look()

    def look(self) -> None:
        self.tasks.append(asyncio.current_task())
        self.names.append(NAME.get())

    async def wait(self) -> None:
        assert self.rest is not None
        await self.rest


async def several_waits() -> None:
    loop = asyncio.get_running_loop()
    for number in range(3):
        future: asyncio.Future[int] = loop.create_future()
        loop.call_later(1, future.set_result, number)
        assert await future == number
        await asyncio.sleep(0)
    failing: asyncio.Future[int] = loop.create_future()
    loop.call_later(1, failing.set_exception, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await failing


async def locks_and_scopes() -> None:
    lock, asyncio_lock = anyio.Lock(), asyncio.Lock()
    async with asyncio.timeout(60), lock, asyncio_lock:
        with anyio.CancelScope(shield=True), anyio.fail_after(60):
            await asyncio.sleep(0.1)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0.1)


async def timeout_of_asyncio() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await asyncio.sleep(10)


async def timeout_of_anyio() -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(1):
        await anyio.sleep(10)


# In the task of the app


async def test_a_write_that_does_not_wait_ends_in_the_turn_of_its_call() -> None:
    async def work() -> None:
        pass

    before = other_tasks()
    write = Write(work)
    assert (write.rest, write.ended) == (None, None)
    assert write.tasks == [asyncio.current_task()] * 2
    assert other_tasks() == before


@pytest.mark.parametrize(
    "work",
    [
        several_waits,
        locks_and_scopes,
        timeout_of_asyncio,
        timeout_of_anyio,
    ],
)
async def test_a_write_runs_in_the_task_and_context_of_the_app_to_its_end(work: Work) -> None:
    before = other_tasks()

    async def app() -> Write:
        NAME.set("app")
        write = Write(work, may_cancel=True)
        await write.wait()
        return write

    task = asyncio.ensure_future(app())
    write = await task
    assert write.ended is None
    assert write.tasks == [task] * 2
    assert write.names == ["app", "app"]
    assert other_tasks() == before


async def test_locks_of_outer_middlewares_are_held_for_one_write_at_a_time() -> None:
    asyncio_lock, lock, inside = asyncio.Lock(), anyio.Lock(), list[int]()

    async def work() -> None:
        async with asyncio_lock, lock:
            inside.append(1)
            assert len(inside) == 1
            await asyncio.sleep(1)
            inside.pop()

    async def app() -> None:
        await asyncio.sleep(0)
        write = Write(work)
        await write.wait()
        assert write.ended is None

    await asyncio.gather(*(app() for _ in range(5)))


async def test_the_app_may_time_out_a_write_which_then_continues_without_it() -> None:
    gate = asyncio.Event()
    write = Write(gate.wait)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await write.wait()
    assert write.ended == "no"
    gate.set()
    await turns()
    assert write.ended is None
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_future_that_the_server_cancels_ends_the_write_in_the_call_of_the_app() -> None:
    future = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    write = Write(work)
    asyncio.get_running_loop().call_later(1, future.cancel)
    with pytest.raises(asyncio.CancelledError):
        await write.wait()
    assert isinstance(write.ended, asyncio.CancelledError)


async def test_an_exception_of_the_write_is_raised_in_the_call_of_the_app() -> None:
    async def work() -> None:
        await asyncio.sleep(1)
        raise ValueError

    with pytest.raises(ValueError):
        await Write(work).wait()


# Without the app


@pytest.mark.parametrize("how", ["release", "cancel the call", "may not wait", "hand over"])
async def test_the_writer_continues_a_write_for_which_the_app_does_not_wait(how: str) -> None:
    write = Write(several_waits, may_wait=how != "may not wait")
    assert write.rest is not None
    if how == "hand over":
        write.rest.hand_over()
    else:
        call = asyncio.ensure_future(write.wait())
        await turns()
        if how == "release":
            write.rest.release()
        elif how == "cancel the call":
            call.cancel()
        await turns()
        assert call.done()
    assert write.ended == "no"
    await asyncio.sleep(10)
    assert write.ended is None
    assert write.tasks[1] is write.stream.write_task
    assert write.names[1] == "stream"


async def test_the_task_of_such_a_write_ends_with_it() -> None:
    before = other_tasks()
    write = Write(several_waits)
    assert write.rest is not None
    write.rest.hand_over()
    assert len(other_tasks() - before) == 1
    await asyncio.sleep(10)
    assert other_tasks() == before


async def test_it_does_not_delay_other_streams() -> None:
    writer = writer_for(streams=2)
    gate = asyncio.Event()
    write = Write(gate.wait, writer=writer)
    assert write.rest is not None
    write.rest.hand_over()
    other = FakeFlushable("other", [])
    writer.write_soon(other)
    await turns()
    assert other.written == 1
    gate.set()
    await turns()
    assert write.ended is None


@pytest.mark.parametrize("after", [0, 1, 5], ids=["before it has run", "at its begin", "later"])
async def test_a_cancelled_task_cancels_its_write(after: int) -> None:
    write = Write(asyncio.Event().wait)
    assert write.rest is not None
    write.rest.hand_over()
    await turns(after)
    task = write.stream.write_task
    assert task is not None
    task.cancel()
    await turns()
    assert task.done()
    assert isinstance(write.ended, asyncio.CancelledError)


async def test_a_write_that_is_cancelled_is_cancelled_also_if_the_app_waits_for_it() -> None:
    write = Write(asyncio.Event().wait)
    assert write.rest is not None
    call = asyncio.ensure_future(write.wait())
    await turns()
    write.rest.cancel()
    await turns(10)
    assert call.done()
    assert not call.cancelled()
    assert isinstance(write.ended, asyncio.CancelledError)


async def test_a_release_at_the_moment_of_the_end_ends_the_write_once() -> None:
    gate = asyncio.Event()
    write = Write(gate.wait)
    assert write.rest is not None
    call = asyncio.ensure_future(write.wait())
    await turns()
    gate.set()
    write.rest.release()
    await turns()
    assert call.done()
    assert write.ended is None
    assert len(write.tasks) == 2


async def test_a_release_after_the_end_has_no_effect() -> None:
    write = Write(several_waits)
    await write.wait()
    assert write.rest is not None
    write.rest.release()
    await turns()
    assert write.ended is None


# Writes inside of writes


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "does not wait"])
async def test_a_server_may_write_another_stream_inside_of_a_write(*, waits: bool) -> None:
    gate = asyncio.Event()
    if not waits:
        gate.set()
    inner: list[Write] = []

    async def outer_work() -> None:
        inner.append(Write(gate.wait))
        if inner[0].rest is not None:
            await inner[0].rest

    outer = Write(outer_work)
    if waits:
        call = asyncio.ensure_future(outer.wait())
        await turns()
        gate.set()
        await call
    assert (outer.ended, inner[0].ended) == (None, None)


async def test_the_writer_may_write_a_stream_whose_server_writes_another_one() -> None:
    writer = writer_for(streams=2)
    inner = FakeFlushable("inner", [])

    async def work() -> None:
        writer.write_soon(inner)
        await asyncio.sleep(0)
        nested = Write(several_waits, writer=writer)
        await nested.wait()

    outer = FakeFlushable("outer", [], work)
    writer.write_soon(outer)
    await asyncio.sleep(10)
    assert (outer.written, inner.written) == (1, 1)
