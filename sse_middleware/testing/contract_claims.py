"""The contract of a store, claims: one request at a time may open the stream of a name."""

from sse_middleware.stores.base import EventStore, LogState
from sse_middleware.testing.streams import FakeStream, eventually, log_info
from sse_middleware.testing.trials import StoreTrials, trial


class ClaimTrials(StoreTrials):
    """A claim has one holder, until a log has the name or the holder gives it up."""

    @trial()
    async def test_the_first_claim_to_a_name_counts(self, store: EventStore) -> None:
        """All others get its holder; other names are free."""
        first, second = log_info().stream_id, log_info().stream_id
        assert await store.claimant(f"chat:{first}") is None
        assert await store.claim(f"chat:{first}", first) == first
        assert await store.claim(f"chat:{first}", second) == first
        assert await store.claim(f"chat:{first}", first) == first
        assert await store.claimant(f"chat:{first}") == first
        assert await store.claim(f"chat:{second}", second) == second
        store.release(f"chat:{first}", first)
        store.release(f"chat:{second}", second)

    @trial()
    async def test_only_the_holder_gives_a_claim_up(self, store: EventStore) -> None:
        """After that, another stream may have it."""
        first, second = log_info().stream_id, log_info().stream_id
        name = f"chat:{first}"
        store.release(name, first)
        assert await store.claim(name, first) == first
        store.release(name, second)
        await self._claimed(store, f"free:{first}", second)  # the release above is over
        assert await store.claimant(name) == first
        store.release(name, first)
        await self._claimed(store, name, second)

    @trial()
    async def test_a_log_with_the_name_ends_a_claim(self, store: EventStore) -> None:
        """The log is found before the claim has ended."""
        stream = FakeStream(store)
        name = f"chat:{stream.id}"
        assert await store.claim(name, stream.id) == stream.id
        stream.log.set_name(name)

        async def claimant() -> str | None:
            return await store.claimant(name)

        await eventually(claimant, lambda got: got is None, "the claim was to end")
        found = await store.find_named(name)
        assert found is not None
        assert found.info.stream_id == stream.id
        stream.log.end(LogState.FINISHED)
        await self._claimed(store, name, log_info().stream_id)

    @trial()
    async def test_a_log_that_is_dropped_ends_its_claim(self, store: EventStore) -> None:
        """Another stream may have it."""
        stream = FakeStream(store)
        name = f"chat:{stream.id}"
        assert await store.claim(name, stream.id) == stream.id
        stream.log.set_name(name)
        stream.log.end(LogState.GONE)
        await self._claimed(store, name, log_info().stream_id)
        assert await store.find_named(name) is None

    @trial()
    async def test_a_log_may_have_several_names(self, store: EventStore) -> None:
        """It is found by each of them, as long as no other log has it."""
        first, second = FakeStream(store), FakeStream(store)
        names = [f"chat:{first.id}", f"answer:{first.id}"]
        for name in names:
            first.log.set_name(name)
        for name in names:
            await self._found(store, name, first.id)
        second.log.set_name(names[1])
        await self._found(store, names[1], second.id)
        await self._found(store, names[0], first.id)
        first.log.end(LogState.GONE)
        await self._found(store, names[0], None)
        await self._found(store, names[1], second.id)

    async def _found(self, store: EventStore, name: str, stream_id: str | None) -> None:
        async def ask() -> str | None:
            found = await store.find_named(name)
            return None if found is None else found.info.stream_id

        await eventually(ask, lambda got: got == stream_id, f"{name} was to lead to {stream_id}")

    async def _claimed(self, store: EventStore, name: str, stream_id: str) -> None:
        """Claim a name as soon as it is free."""

        async def ask() -> str:
            return await store.claim(name, stream_id)

        await eventually(ask, lambda got: got == stream_id, f"{name} was to be free")
        store.release(name, stream_id)
