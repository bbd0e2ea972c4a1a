"""The contract of a store, the end of a log and how it is found: once, the same for all."""

from contextlib import aclosing

from sse_middleware.stores.base import Batch, EventStore, LogState
from sse_middleware.testing.streams import FakeStream, Reader, eventually, log_info
from sse_middleware.testing.trials import StoreTrials, trial

_KEPT = (LogState.FINISHED, LogState.FAILED, LogState.CANCELLED, LogState.LOST)
_END = b"event: complete\ndata: {}\n\n"


class EndTrials(StoreTrials):
    """A log has one end, of one kind; anything after it is ignored."""

    @trial()
    async def test_every_reader_gets_the_end_last(self, store: EventStore) -> None:
        """The last batch has the state in which the stream ended, with a frame or without one."""
        for state in _KEPT:
            for frame in (_END, b""):
                stream = FakeStream(store)
                stream.write(3)
                async with Reader(store, stream.id) as waiting:
                    await waiting.until(3)
                    stream.log.end(state, frame)
                    await waiting.until_end()
                late = await Reader(store, stream.id).read_all()
                at_end = await Reader(store, stream.id, 3).read_all()
                for reader in (waiting, late, at_end):
                    assert reader.end == Batch(state, 3, frame)
                assert waiting.frames == late.frames
                await self.found(store, stream.id, state=state, last=3, has_end_frame=bool(frame))

    @trial()
    async def test_nothing_follows_the_end(self, store: EventStore) -> None:
        """The last batch is the last one."""
        stream = FakeStream(store)
        stream.write(2)
        stream.log.end(LogState.FINISHED, _END)
        async with aclosing(store.follow(stream.id, 0)) as batches:
            states = [batch.state async for batch in batches]
        assert states[-1] is LogState.FINISHED
        assert set(states[:-1]) == {LogState.RUNNING}

    @trial()
    async def test_a_log_without_events_has_an_end_as_well(self, store: EventStore) -> None:
        """There need not be an event before it."""
        stream = FakeStream(store)
        stream.log.end(LogState.FINISHED, _END)
        assert (await Reader(store, stream.id).read_all()).end == Batch(LogState.FINISHED, 0, _END)

    @trial()
    async def test_a_log_ends_once(self, store: EventStore) -> None:
        """The first end counts, and anything later is ignored."""
        stream = FakeStream(store)
        stream.write(2)
        stream.log.end(LogState.FINISHED, _END)
        stream.log.append(3, b"id: 3\ndata: late\n\n")
        stream.log.end(LogState.CANCELLED, b"event: late\n\n")
        stream.log.end(LogState.GONE)
        stream.log.use_app_ids()
        stream.log.set_name(f"late:{stream.id}")
        reader = await Reader(store, stream.id).read_all()
        assert reader.numbers == [1, 2]
        assert reader.end == Batch(LogState.FINISHED, 2, _END)
        assert await store.find_named(f"late:{stream.id}") is None

    @trial()
    async def test_an_unknown_log_is_gone(self, store: EventStore) -> None:
        """It cannot be found, followed or cancelled."""
        unknown = log_info().stream_id
        assert await store.find(unknown) is None
        assert await store.find_named(unknown) is None
        assert not await store.cancel(unknown)
        for after in (0, 7):
            reader = await Reader(store, unknown, after).read_all()
            assert reader.end == Batch(LogState.GONE, after, b"")

    @trial()
    async def test_a_dropped_log_is_gone_for_all_readers(self, store: EventStore) -> None:
        """It is dropped, and waiting readers receive `GONE`."""
        stream = FakeStream(store)
        stream.log.set_name(f"name:{stream.id}")
        stream.write(3)
        async with Reader(store, stream.id) as waiting:
            await waiting.until(3)
            stream.log.end(LogState.GONE, _END)
            assert await waiting.until_end() is LogState.GONE
        stream.log.append(4, b"id: 4\ndata: late\n\n")
        stream.log.end(LogState.FINISHED, _END)
        await self.lost(store, stream.id)
        assert await store.find_named(f"name:{stream.id}") is None
        assert not await store.cancel(stream.id)
        reader = await Reader(store, stream.id).read_all()
        assert reader.end == Batch(LogState.GONE, 0, b"")

    @trial()
    async def test_the_events_of_a_log_with_app_ids_are_dropped(self, store: EventStore) -> None:
        """It is still found, so that event ids of it are recognised."""
        stream = FakeStream(store)
        stream.write(3)
        async with Reader(store, stream.id) as waiting:
            await waiting.until(3)
            stream.log.use_app_ids()
            await waiting.until_end()
        stream.log.append(4, b"id: 4\ndata: late\n\n")
        stream.log.end(LogState.FINISHED, _END)
        await self.found(store, stream.id, state=LogState.APP_OWNS_IDS)
        late = await Reader(store, stream.id).read_all()
        for reader in (waiting, late):
            assert reader.end is not None
            assert reader.end.state is LogState.APP_OWNS_IDS
            assert not reader.end.frames
        assert late.numbers == []

    @trial()
    async def test_a_log_is_found_as_it_is(self, store: EventStore) -> None:
        """With all data of the stream, and its last event."""
        stream = FakeStream(store)
        await self.found(
            store,
            stream.id,
            info=stream.info,
            state=LogState.RUNNING,
            last=0,
            has_end_frame=False,
            first=1,
        )
        stream.write(3)
        await self.found(
            store,
            stream.id,
            info=stream.info,
            state=LogState.RUNNING,
            last=3,
            has_end_frame=False,
            first=1,
        )
        stream.log.end(LogState.FINISHED, _END)
        await self.found(
            store,
            stream.id,
            info=stream.info,
            state=LogState.FINISHED,
            last=3,
            has_end_frame=True,
            first=1,
        )

    @trial()
    async def test_the_data_of_a_stream_is_returned_unchanged(self, store: EventStore) -> None:
        """Each field, with any content."""
        bare = FakeStream(
            store,
            identity="",
            body_digest=None,
            origin="",
            headers=b"",
            route="",
            app_ids=True,
            max_seconds=None,
            rotates=True,
            heartbeat_interval=None,
            silence_threshold=0.25,
        )
        odd = FakeStream(store, path="/\x00\r\n\ud7ff\U0001f600", headers=bytes(range(256)))
        for stream in (bare, odd):
            await self.found(store, stream.id, info=stream.info)

    @trial()
    async def test_the_latest_log_of_a_name_counts(self, store: EventStore) -> None:
        """A name leads to one log, and to none if that log is gone."""
        first, second = FakeStream(store), FakeStream(store)
        name = f"chat:{first.id}"
        first.log.set_name(name)
        await self._named(store, name, first.id)
        second.log.set_name(name)
        await self._named(store, name, second.id)
        second.write(2)
        second.log.end(LogState.FINISHED)
        await self._named(store, name, second.id)
        third = FakeStream(store)
        third.log.set_name(name)
        await self._named(store, name, third.id)
        third.log.end(LogState.GONE)
        await self._named(store, name, None)
        assert await store.find_named(f"other:{first.id}") is None

    async def _named(self, store: EventStore, name: str, stream_id: str | None) -> None:
        async def ask() -> str | None:
            found = await store.find_named(name)
            return None if found is None else found.info.stream_id

        await eventually(ask, lambda got: got == stream_id, f"{name} was to lead to {stream_id}")
