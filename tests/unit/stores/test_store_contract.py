"""The contract of stores finds the faults of a store, and names them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from sse_middleware.stores.base import Batch, Log, LogInfo, LogListener, LogSnapshot, LogState
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.testing import FakeClock, FakeProducer, StoreContract, streams

Batches = AsyncGenerator[Batch, None]


class LeavesHolesUntold(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            if batch.state is not LogState.TRUNCATED:
                yield batch


class GivesEventsTwice(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            yield batch
            if batch.state is LogState.RUNNING:
                yield batch


class HasAGapBetweenReplayAndTail(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        found = await self.find(stream_id)
        async for batch in super().follow(stream_id, after):
            yield batch
            if found is None or batch.state is not LogState.RUNNING or batch.last >= found.last:
                break
        found = await self.find(stream_id)
        async for batch in super().follow(stream_id, found.last if found else after):
            yield batch


class CutsEventsInTwo(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            middle = len(batch.frames) // 2
            yield batch._replace(frames=batch.frames[:middle])
            if batch.state is LogState.RUNNING:
                yield batch._replace(frames=batch.frames[middle:])


class ChangesLineEnds(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            yield batch._replace(frames=batch.frames.replace(b"\r\n", b"\n"))


class NeverEnds(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            if batch.state not in (LogState.RUNNING, LogState.TRUNCATED):
                await asyncio.sleep(60)
            yield batch


class EndsTwice(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            yield batch
        yield batch


class TakesGoneForFinished(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            gone = batch.state is LogState.GONE
            yield batch._replace(state=LogState.FINISHED) if gone else batch


class DoesNotWaitForACursorAhead(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        found = await self.find(stream_id)
        async for batch in super().follow(stream_id, min(after, found.last if found else after)):
            yield batch


class LosesTheEndFrame(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        async for batch in super().follow(stream_id, after):
            yield batch if batch.state is LogState.RUNNING else batch._replace(frames=b"")


class KeepsLogsForEver(MemoryStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"ttl": 1e9})


class KeepsAllEvents(MemoryStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"max_events": 10**9})


class KeepsAllBytes(MemoryStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"max_bytes": 10**9})


class KeepsHalf(MemoryStore):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"max_events": options["max_events"] // 2})


class ForgetsRunningLogs(MemoryStore):
    def create(self, info: LogInfo, producer: LogListener) -> Log:
        log = super().create(info, producer)
        self.keep_ended(log)  # type: ignore[arg-type]
        return log


class CancelsAnything(MemoryStore):
    async def cancel(self, stream_id: str) -> bool:
        await super().cancel(stream_id)
        return True


class CancelsNothing(MemoryStore):
    async def cancel(self, stream_id: str) -> bool:
        return await self.find(stream_id) is not None


class TellsNobodyOfReaders(MemoryStore):
    def create(self, info: LogInfo, producer: LogListener) -> Log:
        del producer
        return super().create(info, FakeProducer())


class TellsOfEachReader(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        log: Any = self._logs.get(stream_id)
        log._producer.on_readers_changed(has_readers=True)
        async for batch in super().follow(stream_id, after):
            yield batch


class NeverLosesAReader(MemoryStore):
    async def follow(self, stream_id: str, after: int) -> Batches:
        log: Any = self._logs.get(stream_id)
        log.add_reader()
        async for batch in super().follow(stream_id, after):
            yield batch


class LetsTheFirstOfANameCount(MemoryStore):
    async def find_named(self, name: str) -> LogSnapshot | None:
        return next((log.snapshot() for log in self._logs.values() if name in log.names), None)


class KnowsLittleOfAStream(MemoryStore):
    async def find(self, stream_id: str) -> LogSnapshot | None:
        found = await super().find(stream_id)
        return found and found._replace(first=1, has_end_frame=False)


class KnowsTheLastNameOnly(MemoryStore):
    async def find_named(self, name: str) -> LogSnapshot | None:
        found = await super().find_named(name)
        log = None if found is None else self._logs[found.info.stream_id]
        return found if log is not None and log.names[-1] == name else None


class GivesAClaimToAll(MemoryStore):
    async def claim(self, name: str, stream_id: str) -> str:
        self._claims[name] = stream_id
        return stream_id


class LetsOthersRelease(MemoryStore):
    def release(self, name: str, stream_id: str) -> None:
        super().release(name, self._claims.get(name, stream_id))


class KeepsClaims(MemoryStore):
    def set_name(self, log: Any, name: str) -> None:
        claimed = self._claims.get(name)
        super().set_name(log, name)
        if claimed:
            self._claims[name] = claimed


class LeavesATask(MemoryStore):
    def create(self, info: LogInfo, producer: LogListener) -> Log:
        self.task = asyncio.ensure_future(asyncio.sleep(60))
        return super().create(info, producer)


class EndsAgain(MemoryStore):
    def create(self, info: LogInfo, producer: LogListener) -> Log:
        return LogThatEndsAgain(super().create(info, producer))


class LogThatEndsAgain:
    def __init__(self, log: Any) -> None:
        self.append, self.set_name, self.flush = log.append, log.set_name, log.flush
        self.log = log

    def end(self, state: LogState, frame: bytes = b"") -> None:
        self.log.state = LogState.RUNNING
        self.log.end(state, frame)

    def skip(self, seq: int) -> None:
        self.log.skip(seq)

    def count_tokens(self, total: int) -> None:
        self.log.count_tokens(total)

    def use_app_ids(self) -> None:
        self.log.use_app_ids()


class TakesManyEventsForOne(MemoryStore):
    def create(self, info: LogInfo, producer: LogListener) -> Log:
        log: Any = LogThatEndsAgain(super().create(info, producer))
        log.append = lambda first, data, _count=1: log.log.append(first, data)
        log.end = log.log.end
        return log  # type: ignore[no-any-return]


FAULTS: dict[type[MemoryStore], str] = {
    LeavesHolesUntold: "a_missing_number_is_reported",
    GivesEventsTwice: "a_reader_gets_the_kept_events_and_then_the_new_ones",
    HasAGapBetweenReplayAndTail: "an_event_between_two_batches_is_not_missed",
    CutsEventsInTwo: "a_reader_may_begin_after_any_event",
    ChangesLineEnds: "frames_come_back_byte_for_byte",
    NeverEnds: "every_reader_gets_the_end_last",
    EndsTwice: "nothing_follows_the_end",
    TakesGoneForFinished: "an_unknown_log_is_gone",
    DoesNotWaitForACursorAhead: "a_cursor_ahead_of_the_log_waits_for_it",
    LosesTheEndFrame: "every_reader_gets_the_end_last",
    KeepsLogsForEver: "an_ended_log_is_kept_for_its_time",
    KeepsAllEvents: "the_bound_of_events_holds",
    KeepsAllBytes: "the_bound_of_bytes_holds",
    KeepsHalf: "a_log_within_its_bounds_is_kept_whole",
    ForgetsRunningLogs: "a_running_log_is_kept_however_old_and_silent",
    CancelsAnything: "an_unknown_log_is_gone",
    CancelsNothing: "a_cancel_reaches_the_producer",
    TellsNobodyOfReaders: "the_first_reader_and_the_end_of_the_last_are_notified",
    TellsOfEachReader: "the_first_reader_and_the_end_of_the_last_are_notified",
    NeverLosesAReader: "every_way_to_stop_reading_counts",
    LetsTheFirstOfANameCount: "the_latest_log_of_a_name_counts",
    KnowsTheLastNameOnly: "a_log_may_have_several_names",
    GivesAClaimToAll: "the_first_claim_to_a_name_counts",
    LetsOthersRelease: "only_the_holder_gives_a_claim_up",
    KeepsClaims: "a_log_with_the_name_ends_a_claim",
    KnowsLittleOfAStream: "a_log_is_found_as_it_is",
    LeavesATask: "a_log_without_events_has_an_end_as_well",
    EndsAgain: "a_log_ends_once",
    TakesManyEventsForOne: "events_kept_together_are_events_like_others",
}


@pytest.mark.parametrize(
    ("store", "trial"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS]
)
def test_a_fault_is_found(
    store: Callable[..., MemoryStore], trial: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 0.2)
    clock = FakeClock()

    class Contract(StoreContract):
        def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> MemoryStore:
            return store(max_events=max_events, max_bytes=max_bytes, ttl=ttl, clock=clock)

        async def pass_time(self, seconds: float) -> None:
            clock.advance(seconds)

    with pytest.raises(AssertionError):
        getattr(Contract(), f"test_{trial}")()


def test_a_failure_contains_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 0.1)

    class Contract(StoreContract):
        def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> MemoryStore:
            return LeavesHolesUntold(max_events=max_events, max_bytes=max_bytes, ttl=ttl)

    with pytest.raises(AssertionError, match=r"a reader at 0 received \[5, 6\]"):
        Contract().test_a_missing_number_is_reported()


def test_time_goes_by_in_a_sleep_unless_it_is_faked() -> None:
    class Contract(StoreContract):
        def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> MemoryStore:
            return MemoryStore(max_events=max_events, max_bytes=max_bytes, ttl=ttl)

    Contract().test_an_ended_log_is_kept_for_its_time()


def test_a_contract_without_a_store_fails_with_a_reason() -> None:
    with pytest.raises(NotImplementedError):
        StoreContract().test_a_log_ends_once()


def test_the_trials_are_plain_methods_with_a_sentence_each() -> None:
    trials = [getattr(StoreContract, name) for name in dir(StoreContract) if name[:5] == "test_"]
    assert len(trials) > 30
    for trial in trials:
        assert trial.__doc__
        assert trial.__code__.co_varnames[: trial.__code__.co_argcount] == ("self",)
        assert not hasattr(trial, "__wrapped__")
