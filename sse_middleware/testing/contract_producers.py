"""The contract of a store, notifications of a producer: a cancel, and its readers."""

import asyncio
from contextlib import AsyncExitStack, aclosing, suppress

from sse_middleware.stores.base import EventStore, LogState
from sse_middleware.testing.streams import FakeStream, Reader
from sse_middleware.testing.trials import StoreTrials, trial


class ProducerTrials(StoreTrials):
    """A producer is called in its own event loop, and not after its end."""

    @trial()
    async def test_a_cancel_reaches_the_producer(self, store: EventStore) -> None:
        """The store notifies the producer, which then ends the log."""
        stream, other = FakeStream(store), FakeStream(store)
        stream.write(2)
        await self.found(store, stream.id, last=2)
        async with Reader(store, stream.id) as reader:
            await reader.until(2)
            assert await store.cancel(stream.id)
            await stream.producer.until_cancelled()
            assert reader.end is None
            stream.write()
            stream.log.end(LogState.CANCELLED, b"event: complete\n\n")
            assert await reader.until_end() is LogState.CANCELLED
        assert reader.numbers == [1, 2, 3]
        assert stream.producer.loops == {asyncio.get_running_loop()}
        assert other.producer.cancels == 0

    @trial()
    async def test_a_cancel_may_come_again_and_late(self, store: EventStore) -> None:
        """If the log exists, the result is the same; an ended producer is not called again."""
        stream = FakeStream(store)
        await self.found(store, stream.id, last=0)
        assert await store.cancel(stream.id)
        assert await store.cancel(stream.id)
        await stream.producer.until_cancelled()
        stream.log.end(LogState.CANCELLED)
        await self.found(store, stream.id, state=LogState.CANCELLED)
        await asyncio.sleep(0.01)
        before = stream.producer.cancels
        assert await store.cancel(stream.id)
        await asyncio.sleep(0.1)
        assert stream.producer.cancels == before
        assert (await Reader(store, stream.id).read_all()).end is not None

    @trial()
    async def test_the_first_reader_and_the_end_of_the_last_are_notified(
        self, store: EventStore
    ) -> None:
        """Readers in between are not."""
        stream = FakeStream(store)
        stream.write(2)
        assert stream.producer.notifications == []
        async with Reader(store, stream.id) as first:
            await first.until(2)
            await stream.producer.until_notified("followed")
            async with Reader(store, stream.id, 1) as second:
                await second.until(2)
            await asyncio.sleep(0.1)
            await stream.producer.until_notified("followed")
        await stream.producer.until_notified("followed", "left")
        async with Reader(store, stream.id, 2):
            await stream.producer.until_notified("followed", "left", "followed")
        await stream.producer.until_notified("followed", "left", "followed", "left")
        assert stream.producer.loops == {asyncio.get_running_loop()}

    @trial()
    async def test_every_way_to_stop_reading_counts(self, store: EventStore) -> None:
        """The reader closes, raises, or is cancelled."""
        stream = FakeStream(store)
        stream.write(1)
        async with aclosing(store.follow(stream.id, 0)) as batches:
            await anext(batches)
            await stream.producer.until_notified("followed")
        await stream.producer.until_notified("followed", "left")
        with suppress(LookupError):
            async with aclosing(store.follow(stream.id, 0)) as batches:
                async for batch in batches:
                    raise LookupError(batch)
        await stream.producer.until_notified(*["followed", "left"] * 2)
        async with Reader(store, stream.id, 1) as reader:
            await stream.producer.until_notified(*["followed", "left"] * 2, "followed")
            assert reader.task is not None
            reader.task.cancel()
            await asyncio.wait([reader.task])
        await stream.producer.until_notified(*["followed", "left"] * 3)

    @trial()
    async def test_a_generator_that_was_never_started_is_no_reader(self, store: EventStore) -> None:
        """It does not have to be closed either."""
        stream = FakeStream(store)
        stream.write(1)
        await store.follow(stream.id, 0).aclose()
        store.follow(stream.id, 0)
        async with Reader(store, stream.id) as reader:
            await reader.until(1)
            await stream.producer.until_notified("followed")
        await stream.producer.until_notified("followed", "left")

    @trial()
    async def test_many_readers_count_as_one(self, store: EventStore) -> None:
        """Only the first one and the last one cause a notification."""
        stream = FakeStream(store)
        async with AsyncExitStack() as stack:
            readers = [Reader(store, stream.id) for _ in range(20)]
            for reader in readers:
                await stack.enter_async_context(reader)
            stream.write(3)
            for reader in readers:
                await reader.until(3)
        await stream.producer.until_notified("followed", "left")

    @trial()
    async def test_writing_does_not_wait(self, store: EventStore) -> None:
        """Appending, naming and ending are plain calls, also thousands of them at once."""
        streams = [FakeStream(store) for _ in range(100)]
        for stream in streams:
            stream.log.set_name(f"name:{stream.id}")
            stream.write(50)
            stream.log.end(LogState.FINISHED)
        for stream in streams[::20]:
            reader = await Reader(store, stream.id).read_all()
            assert (len(reader.numbers), reader.holes) == (50, [])
