"""One memory store in several event loops."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sse_middleware.stores.base import Log, LogState
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.testing import FakeProducer, FakeStream, Reader
from sse_middleware.testing.streams import log_info
from tests.support.clock import VirtualClockLoop
from tests.support.memory_store import KIB, reading

pytestmark = pytest.mark.anyio


Elsewhere = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]


@asynccontextmanager
async def other_loop() -> AsyncIterator[Elsewhere]:
    """Run coroutines in the loop of another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))

    try:
        yield run
    finally:
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()


def test_a_log_of_one_loop_is_followed_in_another() -> None:
    async def run() -> None:
        async with other_loop() as elsewhere:
            store = MemoryStore()
            stream = FakeStream(store)
            following = asyncio.ensure_future(elsewhere(reading(store, stream.id)))
            await stream.producer.until_notified("followed")
            for _ in range(3000):
                stream.write(size=200)
                if stream.last % 7 == 0:
                    await asyncio.sleep(0)
            assert await elsewhere(store.cancel(stream.id))
            await stream.producer.until_cancelled()
            stream.log.end(LogState.CANCELLED)
            reader = await following
            assert (len(reader.numbers), reader.holes) == (3000, [])
            assert stream.producer.loops == {asyncio.get_running_loop()}
            await store.close()

    asyncio.run(run())


def test_no_wake_up_is_lost_between_two_loops() -> None:
    async def run() -> None:
        async with other_loop() as elsewhere:
            store = MemoryStore()
            ping, pong = FakeStream(store), FakeStream(store)

            async def answer() -> None:
                async with Reader(store, ping.id) as reader:
                    for number in range(1, 1001):
                        await reader.until(number)
                        pong.write()

            answering = asyncio.ensure_future(elsewhere(answer()))
            async with Reader(store, pong.id) as reader:
                for number in range(1, 1001):
                    ping.write()
                    await reader.until(number)
            await answering

    asyncio.run(run())


def test_a_trimmed_log_is_read_in_order_in_many_loops() -> None:
    async def run() -> None:
        store = MemoryStore(max_events=50, max_bytes=20 * KIB, max_total_bytes=100 * KIB)
        stream = FakeStream(store)
        async with other_loop() as one, other_loop() as other:
            following = [
                asyncio.ensure_future(run(reading(store, stream.id))) for run in (one, other)
            ]
            await stream.producer.until_notified("followed")
            for _ in range(20_000):
                stream.write(size=100)
                if stream.last % 100 == 0:
                    await asyncio.sleep(0)
            stream.log.end(LogState.FINISHED)
            for reader in await asyncio.gather(*following):
                missed = sum(last - first + 1 for first, last in reader.holes)
                assert len(reader.numbers) + missed == 20_000
        await store.close()

    asyncio.run(run())


def test_the_largest_log_of_another_loop_is_dropped_and_not_changed_during_a_write() -> None:
    """Its producer appends without the lock, so that its buffer must not change meanwhile."""

    async def write_large(store: MemoryStore, count: int) -> FakeStream:
        stream = FakeStream(store)
        for _ in range(count):
            stream.write(size=KIB)
            await asyncio.sleep(0)
        return stream

    async def run() -> None:
        store = MemoryStore(max_total_bytes=100 * KIB)
        small = FakeStream(store)
        async with other_loop() as elsewhere:
            kept = small.write(20, size=100)
            large = await elsewhere(write_large(store, 95))
            while await store.find(large.id) is not None:
                kept += small.write(size=100)
                with store.lock:  # the other thread may be about to drop the oldest events
                    assert store.total_bytes <= 100 * KIB
            small.log.end(LogState.FINISHED)
            assert (await reading(store, small.id)).frames == kept
            writing = [asyncio.ensure_future(elsewhere(write_large(store, 500))) for _ in range(3)]
            another = FakeStream(store)
            while not all(task.done() for task in writing):
                another.write(size=100)
                with store.lock:  # the other thread may be about to drop the oldest events
                    assert store.total_bytes <= 100 * KIB
                await asyncio.sleep(0)
        await store.close()

    asyncio.run(run())


def in_a_thread(run: Callable[[], Any]) -> Any:
    done: Future[Any] = Future()

    def call() -> None:
        try:
            done.set_result(run())
        except BaseException as exc:  # noqa: BLE001
            done.set_exception(exc)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return done.result()


def test_a_log_outlives_the_loop_that_made_it() -> None:
    store = MemoryStore(ttl=60)

    async def leave_behind() -> tuple[FakeStream, FakeStream]:
        ended, running = FakeStream(store), FakeStream(store)
        for stream in (ended, running):
            stream.write(3)
        ended.log.end(LogState.FINISHED)
        return ended, running

    ended, running = in_a_thread(lambda: asyncio.run(leave_behind()))

    async def look() -> None:
        assert (await reading(store, ended.id)).numbers == [1, 2, 3]
        async with Reader(store, running.id) as reader:
            await reader.until(3)
            assert await store.cancel(running.id)
            running.write()
            await reader.until(4)
            running.log.end(LogState.LOST)
            assert await reader.until_end() is LogState.LOST
        assert (running.producer.cancels, running.producer.notifications) == (0, [])
        assert list(store._timers) == [asyncio.get_running_loop()]
        await store.close()

    asyncio.run(look())


def test_a_reader_of_a_closed_loop_delays_no_other_reader() -> None:
    store = MemoryStore(ttl=60)

    async def make() -> FakeStream:
        return FakeStream(store)

    async def use(stream: FakeStream) -> None:
        stream.write(3)
        stream.log.end(LogState.FINISHED)
        assert (await reading(store, stream.id)).numbers == [1, 2, 3]

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(make())
    other = asyncio.new_event_loop()
    batches = store.follow(stream.id, 0)
    waiting = other.create_task(anext(batches))
    other.run_until_complete(asyncio.sleep(0))
    other.close()
    loop.run_until_complete(use(stream))
    loop.run_until_complete(store.close())
    loop.close()
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    del waiting, batches


def test_each_loop_drops_ended_logs_although_another_loop_is_blocked() -> None:
    store = MemoryStore(ttl=60, clock=lambda: asyncio.get_running_loop().time())

    async def end_one() -> None:
        FakeStream(store).log.end(LogState.FINISHED)

    async def wait() -> None:
        await end_one()
        await asyncio.sleep(61)

    standing = VirtualClockLoop()
    standing.run_until_complete(end_one())
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(wait())
    assert (store._logs, store.total_bytes) == ({}, 0)
    standing.close()


def test_loops_that_take_turns_have_a_timer_each_and_closed_ones_none() -> None:
    store = MemoryStore(ttl=60)

    async def end_one() -> None:
        FakeStream(store).log.end(LogState.FINISHED)

    loops = [asyncio.new_event_loop() for _ in range(2)]
    for _ in range(5):
        for loop in loops:
            loop.run_until_complete(end_one())
    assert set(store._timers) == set(loops)
    for loop in loops:
        loop.close()
    for _ in range(5):
        asyncio.run(end_one())
    assert len(store._timers) == 1


def test_a_log_may_end_where_no_loop_runs() -> None:
    store = MemoryStore(ttl=60)

    async def make() -> Log:
        return store.create(log_info(), FakeProducer())

    log = asyncio.run(make())
    log.append(1, b"data: 1\n\n")
    log.end(LogState.LOST)
    assert len(store) == 1
