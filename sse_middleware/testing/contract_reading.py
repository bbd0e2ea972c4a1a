"""The contract of a store, reading: every event, in order, once."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from sse_middleware.stores.base import Batch, EventStore, LogState
from sse_middleware.testing.streams import FakeStream, Reader
from sse_middleware.testing.trials import StoreTrials, trial

_MANY = 20_000
_LARGE = 1 << 20
_TOKENS = 7


class ReadingTrials(StoreTrials):
    """Replay and new events are one sequence; holes in it are reported."""

    @trial()
    async def test_a_reader_gets_the_kept_events_and_then_the_new_ones(
        self, store: EventStore
    ) -> None:
        """Both are one sequence."""
        stream = FakeStream(store)
        frames = stream.write(3)
        async with Reader(store, stream.id) as reader:
            await reader.until(3)
            frames += stream.write(2)
            await reader.until(5)
            frames += stream.write(1)
            stream.log.end(LogState.FINISHED, b"event: complete\n\n")
            assert await reader.until_end() is LogState.FINISHED
        assert reader.frames == frames
        assert reader.holes == []

    @trial()
    async def test_a_reader_may_begin_after_any_event(self, store: EventStore) -> None:
        """It receives the events after its event id, and none before it."""
        stream = FakeStream(store)
        stream.write(7)
        stream.log.end(LogState.FINISHED)
        for after in range(8):
            reader = await Reader(store, stream.id, after).read_all()
            assert reader.numbers == list(range(after + 1, 8))
            assert reader.holes == []

    @trial()
    async def test_events_kept_together_are_events_like_others(self, store: EventStore) -> None:
        """A reader may begin after any of them, and sees a hole in front of them."""
        stream = FakeStream(store)
        stream.write(2)
        stream.write_together(5)
        stream.write(1)
        stream.write_together(3)
        stream.log.end(LogState.FINISHED)
        for after in range(12):
            reader = await Reader(store, stream.id, after).read_all()
            assert reader.numbers == list(range(after + 1, 12))
            assert reader.holes == []
        other = FakeStream(store)
        other.write(1)
        other.last += 2
        other.write_together(3)
        other.log.end(LogState.FINISHED)
        reader = await Reader(store, other.id, 1).read_all()
        assert (reader.numbers, reader.holes) == ([4, 5, 6], [(2, 3)])

    @trial()
    async def test_a_reader_before_the_first_event_waits_for_it(self, store: EventStore) -> None:
        """A log without events can be followed."""
        stream = FakeStream(store)
        async with Reader(store, stream.id) as reader:
            await stream.producer.until_notified("followed")
            assert reader.end is None
            stream.write()
            await reader.until(1)

    @trial()
    async def test_an_event_between_two_batches_is_not_missed(self, store: EventStore) -> None:
        """There is no gap between the events read and the events awaited."""
        stream = FakeStream(store)
        stream.write(2)
        reader = Reader(store, stream.id)
        async with aclosing(store.follow(stream.id, 0)) as batches:
            for number in range(3, 30):
                while reader.last < number - 1:
                    reader.take(await anext(batches))
                stream.write(1)
            stream.log.end(LogState.FINISHED)
            async for batch in batches:
                reader.take(batch)
        assert reader.numbers == list(range(1, 30))
        assert reader.end is not None

    @trial()
    async def test_many_readers_of_a_growing_log_each_get_all_of_it(
        self, store: EventStore
    ) -> None:
        """They begin at any time, after any event."""
        stream, count, dice = FakeStream(store), 300, random.Random(1)  # noqa: S311
        readers: dict[Reader, int] = {}
        frames: list[bytes] = []
        async with AsyncExitStack() as stack:
            while stream.last < count:
                frames += [stream.write() for _ in range(dice.randrange(4))]
                if not dice.randrange(10):
                    after = dice.randrange(len(frames) + 1)
                    reader = await stack.enter_async_context(Reader(store, stream.id, after))
                    readers[reader] = after
                await asyncio.sleep(dice.choice((0, 0, 0, 0.001)))
            stream.log.end(LogState.FINISHED)
            for reader in readers:
                await reader.until_end()
        for reader, after in readers.items():
            assert reader.frames == b"".join(frames[after:])
            assert reader.holes == []

    @trial()
    async def test_frames_come_back_byte_for_byte(self, store: EventStore) -> None:
        """The store does not interpret frames."""
        stream = FakeStream(store)
        frames = [
            b"id: 1\r\ndata: carriage returns\r\n\r\n",
            b"id: 2\rdata: and alone\r\r",
            b"id: 3\ndata: \x00\xff\xfe \xef\xbb\xbf \xc3\xa4\n\n",
            b": a comment\nid: 4\nretry: 5\nevent: x\ndata: 1\ndata\n\n",
            b"id: 5\ndata: " + bytes(set(range(256)) - set(b"\r\n")) + b"\n\n",
        ]
        for number, frame in enumerate(frames, 1):
            stream.log.append(number, frame)
        end = b"event: complete\r\ndata: \x00\xff\r\n\r\n"
        stream.log.end(LogState.FINISHED, end)
        reader = await Reader(store, stream.id).read_all()
        assert reader.frames == b"".join(frames)
        assert reader.end == Batch(LogState.FINISHED, len(frames), end)

    @trial()
    async def test_a_large_log_is_read_back_in_order(self, store: EventStore) -> None:
        """With any number of events."""
        stream = FakeStream(store)
        frames = stream.write(_MANY, size=100)
        stream.log.end(LogState.FINISHED)
        reader = await Reader(store, stream.id).read_all()
        assert reader.frames == frames
        reader = await Reader(store, stream.id, _MANY - 1).read_all()
        assert reader.numbers == [_MANY]

    @trial()
    async def test_a_large_event_is_read_back_whole(self, store: EventStore) -> None:
        """A batch has whole frames of any length."""
        stream = FakeStream(store)
        frames = b"".join(stream.write(size=size) for size in (100, _LARGE, 100, _LARGE))
        stream.log.end(LogState.FINISHED)
        assert (await Reader(store, stream.id).read_all()).frames == frames

    @trial()
    async def test_a_slow_reader_gets_all_as_well(self, store: EventStore) -> None:
        """The log does not wait for its readers, and slow readers miss nothing."""
        stream = FakeStream(store)
        reader = Reader(store, stream.id)
        async with aclosing(store.follow(stream.id, 0)) as batches:
            stream.write(10)
            reader.take(await anext(batches))
            frames = stream.write(500, size=1000)
            stream.log.end(LogState.FINISHED)
            async for batch in batches:
                await asyncio.sleep(0)
                reader.take(batch)
        assert reader.last == stream.last
        assert reader.frames.endswith(frames)
        assert reader.holes == []

    @trial()
    async def test_logs_do_not_mix(self, store: EventStore) -> None:
        """Each reader reads one log."""
        streams = [FakeStream(store) for _ in range(3)]
        frames = [b""] * 3
        for _ in range(20):
            for index, stream in enumerate(streams):
                frames[index] += stream.write(size=30 + index)
        for index, stream in enumerate(streams):
            stream.log.end(LogState.FINISHED, b"%d" % index)
        for index, stream in enumerate(streams):
            reader = await Reader(store, stream.id).read_all()
            assert reader.frames == frames[index]
            assert reader.end == Batch(LogState.FINISHED, 20, b"%d" % index)

    @trial()
    async def test_a_cursor_ahead_of_the_log_waits_for_it(self, store: EventStore) -> None:
        """An event is delivered first and stored soon after, so a reader may be ahead."""
        stream = FakeStream(store)
        stream.write(2)
        async with Reader(store, stream.id, 5) as reader:
            await stream.producer.until_notified("followed")
            for _ in range(3):
                stream.write()
                await asyncio.sleep(0.01)
            assert reader.numbers == []
            stream.write(2)
            await reader.until(7)
            stream.log.end(LogState.FINISHED)
            await reader.until_end()
        assert reader.numbers == [6, 7]
        assert reader.holes == []

    @trial()
    async def test_a_cursor_ahead_of_an_ended_log_gets_the_end(self, store: EventStore) -> None:
        """Events that the log does not have will never arrive."""
        stream = FakeStream(store)
        stream.write(2)
        stream.log.end(LogState.LOST, b"event: error\n\n")
        reader = await Reader(store, stream.id, 5).read_all()
        assert reader.end == Batch(LogState.LOST, 5, b"event: error\n\n")

    @trial()
    async def test_a_missing_number_is_reported(self, store: EventStore) -> None:
        """Every reader sees the hole, and then the events after it."""
        stream = FakeStream(store)
        stream.write(2)
        stream.write_number(5)
        after_hole = stream.write_number(6)
        stream.log.end(LogState.FINISHED)
        for after in range(4):
            reader = await Reader(store, stream.id, after).read_all()
            assert reader.holes[-1][1:] == (4,)
            assert reader.numbers[-2:] == [5, 6]
        for after in (4, 5):
            reader = await Reader(store, stream.id, after).read_all()
            assert reader.holes == []
            assert reader.frames.endswith(after_hole)

    @trial()
    async def test_a_hole_before_the_first_event_is_reported(self, store: EventStore) -> None:
        """A log may begin with any number."""
        stream = FakeStream(store)
        stream.write_number(3)
        stream.log.end(LogState.FINISHED)
        reader = await Reader(store, stream.id).read_all()
        assert (reader.holes, reader.numbers) == ([(1, 2)], [3])
        reader = await Reader(store, stream.id, 2).read_all()
        assert (reader.holes, reader.numbers) == ([], [3])

    @trial()
    async def test_a_waiting_reader_sees_a_hole(self, store: EventStore) -> None:
        """Also a reader that has read everything before the hole."""
        stream = FakeStream(store)
        stream.write(2)
        async with Reader(store, stream.id) as reader:
            await reader.until(2)
            stream.write_number(9)
            await reader.until(9)
        assert reader.numbers == [1, 2, 9]
        assert reader.holes == [(3, 8)]

    @trial()
    async def test_the_tokens_of_the_app_come_with_the_next_event(self, store: EventStore) -> None:
        """For readers of new events and of kept ones."""
        stream = FakeStream(store)
        stream.write(1)
        async with aclosing(store.follow(stream.id, 0)) as log:
            assert (await anext(log)).tokens == 0
            stream.log.count_tokens(_TOKENS)
            stream.write(1)
            assert await _tokens_at(log, 2) == _TOKENS
        stream.log.count_tokens(2 * _TOKENS)
        stream.write(1)
        async with aclosing(store.follow(stream.id, 0)) as log:
            assert await _tokens_at(log, 3) == 2 * _TOKENS


async def _tokens_at(log: AsyncGenerator[Batch, None], last: int) -> int:
    """Read a log up to an event, and return the tokens of its batch."""
    while True:
        batch = await anext(log)
        if batch.frames and batch.last >= last:
            return batch.tokens
