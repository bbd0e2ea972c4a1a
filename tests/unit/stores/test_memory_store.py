"""The memory store: the contract of all stores, its size, its bounds over all logs, and time."""

import asyncio
import gc
import secrets
import tracemalloc
from contextlib import aclosing
from random import Random

import pytest

from sse_middleware.stores.base import Batch, LogInfo, LogState
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stores.size_ranking import SizeRanking
from sse_middleware.testing import FakeClock, FakeProducer, FakeStream, Reader, StoreContract
from sse_middleware.testing.streams import log_info
from tests.support.memory_store import KIB, reading

pytestmark = pytest.mark.anyio


MIB = 1 << 20


class TestContract(StoreContract):
    def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> MemoryStore:
        self.clock = FakeClock()
        return MemoryStore(max_events=max_events, max_bytes=max_bytes, ttl=ttl, clock=self.clock)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


# Memory


def realistic() -> LogInfo:
    """Return the metadata of a usual stream, in strings of its own: 300 bytes of headers."""
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
    """The memory that a store counts, and the memory that it uses."""

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


@pytest.mark.python_only
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_an_empty_log_costs_what_it_is_counted_as(*, ended: bool, named: bool) -> None:
    measured = measure(2000, 0, ended=ended, named=named)
    assert measured.is_true(), (measured.said / 2000, measured.real / 2000)


@pytest.mark.parametrize(
    ("logs", "events", "ended"),
    [(1, 10_000, True), (2000, 20, True), (2000, 20, False), (200, 150, False)],
)
@pytest.mark.python_only
def test_the_bytes_that_are_counted_are_those_that_are_paid(
    logs: int,
    events: int,
    ended: bool,  # noqa: FBT001
) -> None:
    measured = measure(logs, events, ended=ended)
    assert measured.is_true(), (measured.said / measured.real, measured.real)


@pytest.mark.python_only
def test_trimmed_frames_use_no_memory() -> None:
    measured = measure(1, 35_000, size=300, ended=True)
    assert measured.is_true(), (measured.said, measured.real)
    assert measured.said < 1.25 * (4 << 20)


@pytest.mark.python_only
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


async def test_small_running_logs_stay_whole_whatever_large_ones_do() -> None:
    """As with 64 streams of 4 MiB of one client, beside short answers to others."""
    store = MemoryStore(max_total_bytes=512 * KIB, max_bytes=64 * KIB)
    small = [FakeStream(store) for _ in range(20)]
    large = [FakeStream(store) for _ in range(16)]
    kept = {stream.id: b"" for stream in small}
    for round_number in range(100):
        for stream in large:
            stream.write(4, size=KIB)
        stream = small[round_number % len(small)]
        kept[stream.id] += stream.write(size=100)
    late = FakeStream(store)
    kept[late.id] = late.write(20, size=100)
    for stream in (*small, late):
        batches = store.follow(stream.id, 0)
        async with aclosing(batches):
            batch = await anext(batches)
            assert batch.frames == kept[stream.id]
    for stream in large:
        found = await store.find(stream.id)
        assert found is not None
        assert found.first > 300
        assert found.last == 400
    await store.close()


async def test_a_large_log_loses_its_oldest_events_to_a_small_one_that_grows() -> None:
    store = MemoryStore(max_total_bytes=100 * KIB)
    large, small = FakeStream(store), FakeStream(store)
    large.write(90, size=KIB)
    kept = small.write(30, size=KIB)
    found = await store.find(large.id)
    assert found is not None
    assert found.first > 20
    small.log.end(LogState.FINISHED)
    assert (await reading(store, small.id)).frames == kept
    await store.close()


def test_the_largest_of_many_logs_is_known_after_any_change() -> None:
    sizes, random = dict[str, int](), Random(7)
    ranking = SizeRanking(lambda: dict(sizes))
    for number in range(20_000):
        key = str(random.randrange(100))
        size = 0 if random.random() < 0.1 else random.randrange(1, 1000)
        sizes[key] = size
        if not size:
            del sizes[key]
        if ranking.is_active:
            ranking.update(key, size)
        assert len(ranking._heap) <= 2 * 100 + 64
        if number // 1000 % 2:  # at other times, memory is not short
            largest = ranking.largest()
            assert (sizes[largest] if largest else 0) == max(sizes.values(), default=0)
    ranking.largest()
    keys = list(sizes)
    sizes.clear()
    for key in keys:
        ranking.update(key, 0)
    assert ranking.largest() is None


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


async def test_no_name_of_a_log_outlives_it() -> None:
    store = MemoryStore()
    stream = FakeStream(store)
    for name in ("a", "b", "a"):
        stream.log.set_name(name)
    assert [await store.find_named(name) is not None for name in ("a", "b")] == [True, True]
    stream.log.end(LogState.GONE)
    assert [await store.find_named(name) is not None for name in ("a", "b")] == [False, False]
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
    return (store.total_bytes, store._logs, store._names, bool(store._ended), store._timers)


async def test_an_expired_log_is_dropped_although_the_store_is_not_used() -> None:
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
    assert leftovers(store) == (0, {}, {}, False, {})
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
