"""The contract of a store, retention: within its bounds, for its time, with holes reported."""

from contextlib import aclosing

from sse_middleware.stores.base import Batch, EventStore, LogState
from sse_middleware.testing.streams import FakeStream, Reader
from sse_middleware.testing.trials import TTL_SECONDS, StoreTrials, trial

_EVENTS = 100
_BYTES = 10_000
_SIZE = 100
"""Size of an event, in bytes."""


class BoundsTrials(StoreTrials):
    """The latest events are kept, at least half of the bound; the others are reported as holes."""

    @trial(max_events=_EVENTS)
    async def test_the_bound_of_events_holds(self, store: EventStore) -> None:
        """The latest events are kept."""
        stream = FakeStream(store)
        stream.write(10 * _EVENTS)
        await self._check_kept(store, stream, _EVENTS)

    @trial(max_bytes=_BYTES)
    async def test_the_bound_of_bytes_holds(self, store: EventStore) -> None:
        """The latest events are kept."""
        stream = FakeStream(store)
        stream.write(10 * _BYTES // _SIZE, size=_SIZE)
        await self._check_kept(store, stream, _BYTES // _SIZE)

    @trial(max_events=_EVENTS)
    async def test_a_log_within_its_bounds_is_kept_whole(self, store: EventStore) -> None:
        """Nothing is dropped before it has to be."""
        stream = FakeStream(store)
        stream.write(_EVENTS)
        stream.log.end(LogState.FINISHED)
        reader = await Reader(store, stream.id).read_all()
        assert (len(reader.numbers), reader.holes) == (_EVENTS, [])

    @trial(max_bytes=_BYTES)
    async def test_an_event_larger_than_the_bound_leaves_a_hole(self, store: EventStore) -> None:
        """It leaves a hole, and the next one is kept again."""
        stream = FakeStream(store)
        stream.write(3)
        stream.write(1, size=2 * _BYTES)
        stream.write(2)
        stream.log.end(LogState.FINISHED)
        reader = await Reader(store, stream.id, 3).read_all()
        assert (reader.holes, reader.numbers) == ([(4, 4)], [5, 6])

    @trial(max_events=20)
    async def test_a_reader_that_keeps_up_sees_no_hole(self, store: EventStore) -> None:
        """Events that are dropped after they were read leave no hole."""
        stream = FakeStream(store)
        async with Reader(store, stream.id) as reader:
            for _ in range(70):
                stream.write()
                await reader.until(stream.last)
        assert reader.numbers == list(range(1, 71))
        assert reader.holes == []

    @trial(max_events=_EVENTS)
    async def test_a_reader_that_is_too_slow_sees_the_hole(self, store: EventStore) -> None:
        """The hole ends at the first event that is still kept."""
        stream = FakeStream(store)
        reader = Reader(store, stream.id)
        async with aclosing(store.follow(stream.id, 0)) as batches:
            stream.write()
            reader.take(await anext(batches))
            stream.write(10 * _EVENTS)
            stream.log.end(LogState.FINISHED)
            async for batch in batches:
                reader.take(batch)
        assert reader.holes
        assert reader.last == stream.last
        assert len(reader.numbers) + sum(b - a + 1 for a, b in reader.holes) == stream.last

    @trial(ttl=3 * TTL_SECONDS)  # a busy machine reads within two of them
    async def test_an_ended_log_is_kept_for_its_time(self, store: EventStore) -> None:
        """After that it cannot be found, followed, cancelled or named."""
        stream, name = FakeStream(store), "kept"
        stream.log.set_name(name + stream.id)
        stream.write(3)
        stream.log.end(LogState.FINISHED)
        await self.found(store, stream.id, state=LogState.FINISHED)
        await self.pass_time(TTL_SECONDS)
        assert (await Reader(store, stream.id).read_all()).numbers == [1, 2, 3]
        assert await store.find_named(name + stream.id) is not None
        await self.pass_time(3 * TTL_SECONDS)
        await self.lost(store, stream.id)
        assert await store.find_named(name + stream.id) is None
        assert not await store.cancel(stream.id)
        reader = await Reader(store, stream.id, 2).read_all()
        assert reader.end == Batch(LogState.GONE, 2, b"")

    @trial(ttl=3 * TTL_SECONDS)
    async def test_a_log_with_app_ids_is_kept_for_its_time(self, store: EventStore) -> None:
        """Although it contains nothing."""
        stream = FakeStream(store)
        stream.write(3)
        stream.log.use_app_ids()
        await self.found(store, stream.id, state=LogState.APP_OWNS_IDS)
        await self.pass_time(4 * TTL_SECONDS)
        await self.lost(store, stream.id)

    @trial(ttl=2 * TTL_SECONDS)
    async def test_a_running_log_is_kept_however_old_and_silent(self, store: EventStore) -> None:
        """Its time begins with its end."""
        stream = FakeStream(store)
        stream.write(3)
        async with Reader(store, stream.id) as reader:
            await reader.until(3)
            await self.pass_time(3 * TTL_SECONDS)
            await self.found(store, stream.id, state=LogState.RUNNING, last=3)
            stream.write()
            await reader.until(4)
        await self.pass_time(3 * TTL_SECONDS)
        stream.log.end(LogState.FINISHED)
        assert (await Reader(store, stream.id).read_all()).numbers == [1, 2, 3, 4]

    @trial(ttl=TTL_SECONDS)
    async def test_a_reader_too_slow_for_the_time_receives_no_false_end(
        self, store: EventStore
    ) -> None:
        """It receives the rest, or `GONE`; an end would mean that it has received everything."""
        stream = FakeStream(store)
        stream.write(40, size=100_000)
        stream.log.end(LogState.FINISHED)
        reader = Reader(store, stream.id)
        async with aclosing(store.follow(stream.id, 0)) as batches:
            reader.take(await anext(batches))
            await self.pass_time(2 * TTL_SECONDS)
            async for batch in batches:
                reader.take(batch)
        assert reader.end is not None
        assert reader.last == stream.last or reader.end.state is LogState.GONE

    async def _check_kept(self, store: EventStore, stream: FakeStream, bound: int) -> None:
        stream.log.end(LogState.FINISHED)
        reader = await Reader(store, stream.id).read_all()
        assert bound // 2 <= len(reader.numbers) <= bound, f"{len(reader.numbers)} events are kept"
        first = reader.numbers[0]
        assert reader.numbers == list(range(first, stream.last + 1))
        assert reader.holes == [(1, first - 1)]
        await self.found(store, stream.id, first=first)
        for after, holes in ((first - 2, [(first - 1, first - 1)]), (first - 1, [])):
            reader = await Reader(store, stream.id, after).read_all()
            assert (reader.holes, reader.numbers[0]) == (holes, first)
