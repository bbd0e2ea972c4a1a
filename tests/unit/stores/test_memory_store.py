"""The memory store: the contract of all stores, and what only memory has: bounds in all, a truth
about its size, and several event loops."""

import asyncio
import gc
import secrets
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sse_middleware.stores.base import Batch, Log, LogInfo, LogState
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.testing import FakeClock, FakeProducer, FakeStream, Reader, StoreContract
from sse_middleware.testing.streams import log_info
from tests.support.clock import VirtualClockLoop

KIB = 1 << 10
MIB = 1 << 20


class TestContract(StoreContract):
    def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> MemoryStore:
        self.clock = FakeClock()
        return MemoryStore(max_events=max_events, max_bytes=max_bytes, ttl=ttl, clock=self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


pytestmark = pytest.mark.anyio


async def reading(store: MemoryStore, stream_id: str, after: int = 0) -> Reader:
    return await Reader(store, stream_id, after).read_all()


# What it costs


def realistic() -> LogInfo:
    """Return what is known of a usual stream, in strings of its own: 300 bytes of headers."""
    names = ["cache-control", "content-type", "server", "x-request-id", "vary", "set-something"]
    lines = b"".join(b"%s: %s\r\n" % (n.encode(), secrets.token_hex(20).encode()) for n in names)
    return log_info(
        path=f"/stream/search/{secrets.token_hex(4)}",
        origin=f"https://{secrets.token_hex(4)}.example",
        headers=lines[:300],
        route="/stream/search/{number}",
        method="GET",
    )


class Measured:
    """What a store says that it takes, and what it takes."""

    def __init__(self, said: int, real: int) -> None:
        self.said = said
        self.real = real

    def is_true(self) -> bool:
        return abs(self.said - self.real) <= 0.15 * self.real


def measure(
    logs: int, events: int, *, size: int = 100, ended: bool, named: bool = False
) -> Measured:
    """Write logs into a store and measure it."""

    async def write() -> Measured:
        store, producer = MemoryStore(ttl=600), FakeProducer()
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(logs):
                log = store.create(realistic(), producer)
                for seq in range(1, events + 1):
                    log.append(seq, b"data: ".ljust(size - 2, b"x") + b"\n\n")
                if named:
                    log.set_name(f"chat:{number}")
                if ended:
                    log.end(LogState.FINISHED, bytes(bytearray(150)))
            del log
            gc.collect()
            return Measured(store.total_bytes, tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
            await store.close()

    return asyncio.run(write())


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_an_empty_log_costs_what_it_is_counted_as(*, ended: bool, named: bool) -> None:
    measured = measure(2000, 0, ended=ended, named=named)
    assert measured.is_true(), (measured.said / 2000, measured.real / 2000)


@pytest.mark.parametrize(
    ("logs", "events", "ended"),
    [(1, 10_000, True), (2000, 20, True), (2000, 20, False), (200, 150, False)],
)
def test_the_bytes_that_are_counted_are_those_that_are_paid(
    logs: int,
    events: int,
    ended: bool,  # noqa: FBT001
) -> None:
    measured = measure(logs, events, ended=ended)
    assert measured.is_true(), (measured.said / measured.real, measured.real)


def test_what_was_trimmed_is_not_paid_for() -> None:
    measured = measure(1, 35_000, size=300, ended=True)
    assert measured.is_true(), (measured.said, measured.real)
    assert measured.said < 1.25 * (4 << 20)


@pytest.mark.parametrize(("logs", "events"), [(1, 10_000), (100, 100), (500, 20)])
def test_a_byte_recorded_costs_two_at_most(logs: int, events: int) -> None:
    recorded = logs * events * 120
    assert measure(logs, events, size=120, ended=True).real <= 2 * recorded


# Bounds in all


async def test_the_oldest_finished_log_goes_first_and_running_ones_stay() -> None:
    store = MemoryStore(max_total_bytes=100 * KIB)
    running = FakeStream(store)
    running.write(10, size=KIB)
    finished = [FakeStream(store) for _ in range(4)]
    for stream in reversed(finished):  # the last one made is the first one to end
        stream.write(15, size=KIB)
        stream.log.end(LogState.FINISHED)
    assert len(store) == 5
    running.write(20, size=KIB)
    assert [await store.find(stream.id) is not None for stream in finished] == [
        True,
        True,
        True,
        False,
    ]
    running.write(40, size=KIB)
    assert await store.find(finished[0].id) is not None
    assert await store.find(finished[1].id) is None
    running.log.end(LogState.FINISHED)
    assert (await reading(store, running.id)).holes == []
    await store.close()


async def test_an_evicted_log_is_gone_for_its_reader_and_its_name() -> None:
    store = MemoryStore(max_total_bytes=50 * KIB)
    finished = FakeStream(store)
    finished.log.set_name("name")
    finished.write(10, size=KIB)
    finished.log.end(LogState.FINISHED)
    reader = Reader(store, finished.id, 10)
    async with aclosing(store.follow(finished.id, 0)) as batches:
        await anext(batches)
        FakeStream(store).write(45, size=KIB)
        reader.take(await anext(batches))
    assert reader.end == Batch(LogState.GONE, 10, b"")
    assert await store.find_named("name") is None
    await store.close()


async def test_where_none_has_ended_the_log_that_grows_loses_its_own_oldest_events() -> None:
    store = MemoryStore(max_total_bytes=200 * KIB)
    still, growing = FakeStream(store), FakeStream(store)
    kept = still.write(50, size=KIB)
    most = 0
    for _ in range(1000):
        growing.write(size=KIB)
        most = max(most, store.total_bytes)
    assert 150 * KIB < most <= 200 * KIB
    growing.log.end(LogState.FINISHED)
    reader = await reading(store, growing.id)
    assert reader.numbers[-1] == 1000
    assert len(reader.numbers) > 75
    assert reader.holes == [(1, reader.numbers[0] - 1)]
    still.log.end(LogState.FINISHED)
    assert (await reading(store, still.id)).frames == kept
    await store.close()


async def test_the_bound_in_all_holds_with_running_logs_only() -> None:
    store = MemoryStore(max_total_bytes=256 * KIB)
    streams = [FakeStream(store) for _ in range(100)]
    for number in range(200):
        for stream in streams:
            stream.write(size=50 + number)
            assert store.total_bytes <= 256 * KIB
    for stream in streams:
        stream.log.end(LogState.FINISHED, b"x" * 1000)
        assert store.total_bytes <= 256 * KIB
    await store.close()


async def test_a_log_for_which_there_is_no_room_is_not_kept() -> None:
    store = MemoryStore(max_total_bytes=20 * KIB)
    streams = [FakeStream(store) for _ in range(100)]
    assert store.total_bytes <= 20 * KIB
    assert 5 < len(store) < 20
    late = streams[-1]
    late.log.set_name("late")
    late.write(3)
    late.log.end(LogState.FINISHED)
    assert await store.find(late.id) is None
    assert await store.find_named("late") is None
    assert not await store.cancel(late.id)
    assert (await reading(store, late.id)).end == Batch(LogState.GONE, 0, b"")
    for stream in streams:
        stream.log.end(LogState.GONE)
    assert (len(store), store.total_bytes) == (0, 0)
    again = FakeStream(store)
    again.write()
    assert await store.find(again.id) is not None
    await store.close()


async def test_a_log_at_the_bound_is_seldom_copied() -> None:
    """Dropping one event for each that comes would copy the log each time."""
    store = MemoryStore(max_total_bytes=4 * MIB)
    stream = FakeStream(store)
    stream.write(4000, size=KIB)
    first = await store.find(stream.id)
    stream.write(100, size=KIB)
    second = await store.find(stream.id)
    assert first is not None
    assert second is not None
    drops = set()
    for _ in range(2000):
        stream.write(size=KIB)
        found = await store.find(stream.id)
        assert found is not None
        drops.add(found.first)
    assert 2 <= len(drops) <= 12
    stream.log.end(LogState.GONE)


async def test_nothing_is_kept_where_no_event_may_be() -> None:
    store = MemoryStore(max_events=0)
    stream = FakeStream(store)
    stream.write(5)
    stream.log.end(LogState.FINISHED, b"end")
    reader = await reading(store, stream.id)
    assert (reader.holes, reader.numbers, reader.end) == (
        [(1, 5)],
        [],
        Batch(LogState.FINISHED, 5, b"end"),
    )
    await store.close()


async def test_a_second_log_of_an_id_takes_the_place_of_the_first() -> None:
    store = MemoryStore()
    first = FakeStream(store)
    first.write(5, size=KIB)
    async with Reader(store, first.id) as reader:
        await reader.until(5)
        second = FakeStream(store, stream_id=first.id)
        assert await reader.until_end() is LogState.GONE
    second.write(1)
    first.write(1)
    first.log.end(LogState.GONE)
    assert len(store) == 1
    second.log.end(LogState.FINISHED)
    assert (await reading(store, second.id)).numbers == [1]
    await store.close()


async def test_a_log_with_another_name_has_no_other_one() -> None:
    store = MemoryStore()
    stream = FakeStream(store)
    for name in ("a", "b"):
        stream.log.set_name(name)
    assert await store.find_named("a") is None
    assert await store.find_named("b") is not None
    stream.log.end(LogState.GONE)
    assert await store.find_named("b") is None
    assert store._names == {}


async def test_a_number_that_does_not_grow_is_ignored() -> None:
    store = MemoryStore()
    stream = FakeStream(store)
    frames = stream.write(3)
    for number in (3, 1):
        stream.log.append(number, b"id: %d\ndata: again\n\n" % number)
    stream.log.end(LogState.FINISHED)
    assert (await reading(store, stream.id)).frames == frames
    await store.close()


async def test_a_batch_is_small() -> None:
    store = MemoryStore()
    stream = FakeStream(store)
    stream.write(5000, size=200)
    async with aclosing(store.follow(stream.id, 0)) as batches:
        sizes = [len((await anext(batches)).frames) for _ in range(10)]
    assert max(sizes) <= 64 * KIB
    assert min(sizes) > 32 * KIB
    stream.log.end(LogState.GONE)


# Time


def leftovers(store: MemoryStore) -> tuple[object, ...]:
    return (store.total_bytes, store._logs, store._names, dict(store._ended), store._timers)


async def test_after_its_time_nothing_is_left_though_nobody_asks() -> None:
    store = MemoryStore(ttl=60, clock=asyncio.get_running_loop().time)
    for number in range(1000):
        stream = FakeStream(store)
        stream.log.set_name(f"chat:{number}")
        stream.write(5)
        await asyncio.sleep(0.01)
        if number % 3:
            stream.log.end(LogState.FINISHED)
        else:
            stream.log.use_app_ids()
    assert len(store._logs) == 1000
    await asyncio.sleep(55)
    assert 400 < len(store._logs) < 600
    await asyncio.sleep(5.1)
    assert leftovers(store) == (0, {}, {}, {}, {})
    assert len(store) == 0


async def test_there_is_one_timer_for_all_logs_and_none_without_an_ended_one() -> None:
    store = MemoryStore(ttl=0.05)
    streams = [FakeStream(store) for _ in range(50)]
    assert store._timers == {}
    handles = set[asyncio.TimerHandle]()
    for stream in streams:
        stream.log.end(LogState.FINISHED)
        handles.update(store._timers.values())
    assert len(handles) == 1
    await store.close()
    assert handles.pop().cancelled()
    assert store._timers == {}
    FakeStream(store).log.end(LogState.GONE)
    assert store._timers == {}


async def test_a_clock_that_stands_still_is_not_asked_all_the_time() -> None:
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return 1000.0

    store = MemoryStore(ttl=0.001, clock=clock)
    FakeStream(store).log.end(LogState.FINISHED)
    await asyncio.sleep(1)
    assert asked < 80
    await store.close()


# Several event loops


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


def test_a_reader_whose_loop_was_closed_holds_nobody_up() -> None:
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


def test_each_loop_frees_what_is_over_though_another_one_stands_still() -> None:
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


# Against a model

WRITES = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 40), st.integers(20, 400)),
    st.tuples(st.just("skip"), st.integers(1, 5), st.just(0)),
)
READS = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 100), st.just(0)),
    st.tuples(st.just("read"), st.integers(0, 7), st.integers(1, 5)),
    st.tuples(st.just("leave"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("turn"), st.just(0), st.just(0)),
    st.tuples(st.just("press"), st.integers(1, 30), st.just(0)),
)


class Slow(Reader):
    """A reader that takes a batch when it is allowed to."""

    def __init__(self, store: MemoryStore, stream_id: str, after: int) -> None:
        super().__init__(store, stream_id, after)
        self.after = after
        self.allowed = asyncio.Semaphore(0)

    async def _read(self) -> None:
        async with aclosing(self._store.follow(self._stream_id, self.last)) as batches:
            await self.allowed.acquire()
            async for batch in batches:
                self.take(batch)
                await self.allowed.acquire()


class Model:
    """All events ever written by their numbers, and the rule: what is not given is told."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.stream = FakeStream(store)
        self.written: dict[int, bytes] = {}
        self.readers: list[Slow] = []
        self.whole = True
        """Whether nothing can be missing yet."""

    async def do(self, what: str, count: int, more: int) -> None:
        if what == "write":
            for _ in range(count):
                number = self.stream.last + 1
                self.written[number] = self.stream.write(size=more)
        elif what == "skip":
            self.whole = False
            number = self.stream.last + 1 + count
            self.written[number] = self.stream.write_number(number)
        elif what == "join":
            reader = Slow(self.store, self.stream.id, self.stream.last * count // 100)
            self.readers.append(await reader.__aenter__())
        elif what == "read" and self.readers:
            for _ in range(more):
                self.readers[count % len(self.readers)].allowed.release()
        elif what == "leave" and self.readers:
            await self.readers.pop(count % len(self.readers)).__aexit__(None, None, None)
        elif what == "press":
            self.whole = False
            FakeStream(self.store).write(count, size=KIB)
        await asyncio.sleep(0)

    async def finish(self) -> None:
        self.stream.log.end(LogState.FINISHED, b"end")
        for reader in self.readers:
            for _ in range(10_000):
                reader.allowed.release()
            await reader.until_end()
            await reader.__aexit__(None, None, None)
            self.check(reader)

    def check(self, reader: Slow) -> None:
        told = {n for first, last in reader.holes for n in range(first, last + 1)}
        given = set(reader.numbers)
        assert given | told == set(range(reader.after + 1, self.stream.last + 1))
        assert not given & told
        assert reader.numbers == sorted(given)
        assert reader.frames == b"".join(self.written[n] for n in reader.numbers)
        assert reader.end == Batch(LogState.FINISHED, self.stream.last, b"end")
        if self.whole and len(self.written) <= 60 and sum(map(len, self.written.values())) <= 8000:
            assert told == set()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(WRITES, READS), max_size=40))
def test_no_reader_gets_a_hole_untold_an_event_twice_or_out_of_order(
    steps: list[tuple[str, int, int]],
) -> None:
    async def run() -> None:
        store = MemoryStore(max_events=60, max_bytes=8000, max_total_bytes=60 * KIB)
        model = Model(store)
        for step in steps:
            await model.do(*step)
            assert store.total_bytes <= 60 * KIB
        if (await store.find(model.stream.id)) is not None:
            await model.finish()
        assert store.total_bytes == sum(log.measure() for log in store._logs.values())
        await store.close()

    asyncio.run(run())


async def test_what_is_kept_together_is_kept_within_the_same_bounds() -> None:
    store = MemoryStore(max_events=10, max_bytes=1000)
    together, one_by_one = FakeStream(store), FakeStream(store)
    for count in (3, 9, 1, 40, 2, 7):
        together.write_together(count, size=40)
        one_by_one.write(count, size=40)
        last = [await store.find(stream.id) for stream in (together, one_by_one)]
        assert [found.last for found in last if found] == [together.last] * 2
        assert all(found.last - found.first < 10 for found in last if found)
    together.log.end(LogState.FINISHED)
    reader = await Reader(store, together.id, together.last - 5).read_all()
    assert reader.numbers == list(range(together.last - 4, together.last + 1))


async def test_numbers_that_do_not_grow_are_ignored_one_by_one() -> None:
    store = MemoryStore()
    stream = FakeStream(store)
    stream.write(3)
    stream.log.append(2, *(b"id: %d\ndata: x\n\n" % number for number in (2, 3, 4, 5)))
    stream.log.end(LogState.FINISHED)
    assert (await Reader(store, stream.id).read_all()).numbers == [1, 2, 3, 4, 5]
