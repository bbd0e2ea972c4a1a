"""The memory store against a model."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sse_middleware.stores.base import Batch, LogState
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.testing import FakeStream, Reader
from tests.support.memory_store import KIB
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio


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
    """All events by their numbers. The rule: a reader gets an event, or is notified of its loss."""

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


@settings(max_examples=sampled(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(WRITES, READS), max_size=40))
def test_no_reader_gets_an_unreported_gap_or_an_event_twice_or_out_of_order(
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


async def test_frames_appended_together_are_kept_within_the_same_limits() -> None:
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
    stream.log.append(2, b"".join(b"id: %d\ndata: x\n\n" % seq for seq in (2, 3, 4, 5)), 4)
    stream.log.end(LogState.FINISHED)
    assert (await Reader(store, stream.id).read_all()).numbers == [1, 2, 3, 4, 5]
