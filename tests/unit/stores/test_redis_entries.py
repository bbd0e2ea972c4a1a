"""The entries of a log in Redis: a reader gets each event once, in order, and is notified of each
gap, although commands and answers are lost and repeated."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sse_middleware.stores.base import Batch, LogState
from sse_middleware.stores.redis.entries import (
    LogEntry,
    Pending,
    batches,
    end_of,
    first_number,
)
from sse_middleware.testing import Reader
from tests.support.samples import sampled

MAX_EVENTS = 40
MAX_BYTES = 2000


def frame_of(seq: int, size: int = 0) -> bytes:
    return (b"id: %d\ndata: " % seq).ljust(size, b"x") + b"\n\n"


def id_key(entry_id: bytes) -> tuple[int, int]:
    time, _, number = entry_id.partition(b"-")
    return int(time), int(number)


class StreamOfRedis:
    """What Redis does with XADD MINID and XRANGE."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Mapping[bytes, bytes]] = {}
        self.last_id = (0, 0)

    def add(self, entry: LogEntry) -> bool:
        """Take an entry, or refuse its id."""
        if id_key(entry.id) <= self.last_id:
            return False
        self.last_id = id_key(entry.id)
        fields = entry.fields
        self.entries[entry.id] = dict(zip(fields[::2], fields[1::2], strict=True))
        oldest = id_key(entry.oldest or b"0-0")
        for entry_id in [one for one in self.entries if id_key(one) < oldest]:
            del self.entries[entry_id]
        return True

    def behind(self, after: int, count: int) -> list[tuple[bytes, Mapping[bytes, bytes]]]:
        later = [one for one in self.entries.items() if id_key(one[0]) > (after, 0)]
        return later[:count]


class UnbelievingReader:
    """The reader of the contract, without a store."""

    def __init__(self, after: int) -> None:
        self.reader = Reader(None, "", after)  # type: ignore[arg-type]

    def read(self, redis: StreamOfRedis, count: int) -> None:
        if self.reader.end is None:
            for batch in batches(redis.behind(self.reader.last, count), self.reader.last):
                self.reader.take(batch)


class Writing(RuleBasedStateMachine):
    """A log that is written over a network that loses commands and answers."""

    def __init__(self) -> None:
        super().__init__()
        self.pending = Pending(MAX_EVENTS, MAX_BYTES)
        self.redis = StreamOfRedis()
        self.readers = [UnbelievingReader(0)]
        self.sent: dict[bytes, tuple[bytes, ...]] = {}
        self.shown: dict[int, bytes] = {}
        self.seq = 0
        self.has_ended = False

    running = precondition(lambda self: not self.has_ended)

    @running
    @rule(count=st.integers(1, 30), size=st.integers(0, 300), hole=st.integers(0, 3))
    def append(self, count: int, size: int, hole: int) -> None:
        self.seq += hole
        for _ in range(count):
            self.seq += 1
            self.shown[self.seq] = frame_of(self.seq, size)
            self.pending.append(self.seq, self.shown[self.seq])

    @running
    @rule()
    def append_what_is_too_long(self) -> None:
        self.seq += 1
        self.pending.append(self.seq, frame_of(self.seq, 2 * MAX_BYTES))

    @running
    @rule(count=st.integers(1, 3))
    def skip(self, count: int) -> None:
        for _ in range(count):
            self.seq += 1
            self.pending.skip(self.seq)

    @running
    @rule()
    def repeat(self) -> None:
        self.pending.append(self.seq, b"id: 0\ndata: never\n\n")
        self.pending.skip(self.seq)

    @running
    @rule(frame=st.sampled_from([b"", b"event: complete\n\n"]))
    def end(self, frame: bytes) -> None:
        self.has_ended = True
        self.pending.end(LogState.FINISHED, frame)

    @rule(arrive=st.integers(0, 8), known=st.integers(0, 8))
    def flush(self, arrive: int, known: int) -> None:
        """Some entries arrive, and the answers to some of those come back."""
        for number, entry in enumerate(self.pending.freeze()):
            assert self.sent.setdefault(entry.id, entry.fields) == entry.fields
            if number < arrive:
                self.redis.add(entry)
                if number < known:
                    self.pending.mark_written(entry)

    @precondition(lambda self: not (self.has_ended and self.pending.is_empty))
    @rule()
    def empty_redis(self) -> None:
        self.redis = StreamOfRedis()
        self.pending.forget_written()

    @rule(back=st.integers(0, 60))
    def come(self, back: int) -> None:
        self.readers.append(UnbelievingReader(max(0, self.seq - back)))

    @rule(count=st.integers(1, 5))
    def read(self, count: int) -> None:
        for reader in self.readers:
            reader.read(self.redis, count)

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        held = [fields for fields in self.redis.entries.values() if b"d" in fields]
        assert sum(len(fields[b"d"]) for fields in held) <= MAX_BYTES
        assert sum(len(fields[b"l"]) // 4 for fields in held) <= MAX_EVENTS
        assert all(len(fields[b"l"]) // 4 <= MAX_EVENTS // 8 for fields in held)

    def teardown(self) -> None:
        if not self.has_ended:
            self.end(b"event: complete\n\n")
        while not self.pending.is_empty:
            self.flush(8, 8)
        for reader in [*self.readers, UnbelievingReader(0)]:
            reader.read(self.redis, 1000)
            told = reader.reader
            if told.end is None:  # it is ahead of a log that was not written so far
                entry_id, fields = list(self.redis.entries.items())[-1]
                assert end_of(entry_id, fields, told.last) is not None
            assert told.frames == b"".join(self.shown[seq] for seq in told.numbers)


TestWriting = Writing.TestCase
TestWriting.settings = settings(max_examples=sampled(100), stateful_step_count=30, deadline=None)


def written(pending: Pending) -> StreamOfRedis:
    redis = StreamOfRedis()
    while not pending.is_empty:
        for entry in pending.freeze():
            assert redis.add(entry)
            pending.mark_written(entry)
    return redis


def read(redis: StreamOfRedis, after: int = 0) -> list[Batch]:
    return list(batches(redis.behind(after, 1000), after))


def test_the_id_of_an_entry_is_its_last_event_and_a_field_contains_its_first() -> None:
    pending = Pending(100, 1000)
    for seq in (1, 2, 3):
        pending.append(seq, frame_of(seq))
    (entry,) = pending.freeze()
    assert (entry.id, entry.fields[:2]) == (b"3-0", (b"f", b"1"))


def test_an_entry_in_flight_does_not_grow() -> None:
    pending = Pending(100, 1000)
    pending.append(1, frame_of(1))
    (entry,) = pending.freeze()
    pending.append(2, frame_of(2))
    again, more = pending.freeze()
    assert again is entry
    assert (more.id, more.first) == (b"2-0", 2)


def test_a_reader_in_the_middle_of_an_entry_gets_the_rest_of_it() -> None:
    pending = Pending(100, 1000)
    for seq in range(1, 8):
        pending.append(seq, frame_of(seq))
    redis = written(pending)
    for after in range(7):
        frames = b"".join(frame_of(seq) for seq in range(after + 1, 8))
        assert read(redis, after) == [Batch(LogState.RUNNING, 7, frames)]
    assert read(redis, 7) == []


def test_entries_that_follow_each_other_are_one_batch_up_to_a_size() -> None:
    pending = Pending(10_000, 1 << 20)
    redis = StreamOfRedis()
    for seq in range(1, 201):
        pending.append(seq, frame_of(seq, 1000))
        for entry in pending.freeze():
            redis.add(entry)
            pending.mark_written(entry)
    found = read(redis)
    assert len(redis.entries) == 200
    assert [batch.last for batch in found] == [66, 132, 198, 200]


def test_a_waiting_reader_is_notified_of_a_skipped_event() -> None:
    pending = Pending(100, 1000)
    pending.append(1, frame_of(1))
    pending.skip(2)
    pending.skip(3)
    redis = written(pending)
    hole = Batch(LogState.TRUNCATED, 3, b"")
    assert read(redis) == [Batch(LogState.RUNNING, 1, frame_of(1)), hole]
    assert read(redis, 2) == [hole]
    assert read(redis, 3) == []


def test_the_end_follows_the_last_event() -> None:
    pending = Pending(100, 1000)
    pending.append(1, frame_of(1))
    pending.end(LogState.CANCELLED, b"event: complete\n\n")
    redis = written(pending)
    end = Batch(LogState.CANCELLED, 1, b"event: complete\n\n")
    assert read(redis) == [Batch(LogState.RUNNING, 1, frame_of(1)), end]
    assert read(redis, 1) == [end]
    assert read(redis, 2) == []
    (entry_id, fields) = list(redis.entries.items())[-1]
    assert end_of(entry_id, fields, 2) == end._replace(last=2)
    assert end_of(entry_id, fields, 1) is None


def test_a_disowned_log_has_nothing_but_its_end() -> None:
    pending = Pending(100, 1000)
    redis = StreamOfRedis()
    pending.append(1, frame_of(1))
    for entry in pending.freeze():
        redis.add(entry)
    pending.append(2, frame_of(2))
    pending.end(LogState.APP_OWNS_IDS, b"")
    for entry in pending.freeze():
        redis.add(entry)
    assert list(redis.entries) == [b"2-1"]
    assert read(redis) == [Batch(LogState.APP_OWNS_IDS, 0, b"")]


def test_the_oldest_pending_events_are_dropped_first_and_counted() -> None:
    pending = Pending(100, 1000)
    for seq in range(1, 31):
        pending.append(seq, frame_of(seq, 98))
    assert (pending.first, pending.take_dropped(), pending.take_dropped()) == (21, 20, 0)
    found = read(written(pending))
    assert found[0] == Batch(LogState.TRUNCATED, 20, b"")
    assert found[-1].last == 30


def test_the_oldest_event_is_the_same_here_and_in_redis() -> None:
    pending = Pending(MAX_EVENTS, MAX_BYTES)
    assert pending.first == 1
    pending.skip(1)
    assert pending.first == 2
    redis = StreamOfRedis()
    for seq in range(2, 120):
        pending.append(seq, frame_of(seq))
        for entry in pending.freeze():
            redis.add(entry)
            pending.mark_written(entry)
        entry_id, fields = next(iter(redis.entries.items()))
        assert first_number(entry_id, fields) == pending.first
    assert pending.first == 120 - MAX_EVENTS


@given(
    fields=st.dictionaries(
        st.sampled_from([b"f", b"l", b"d", b"h", b"s", b"e", b"?"]),
        st.one_of(st.binary(max_size=20), st.integers(-5, 5).map(lambda number: b"%d" % number)),
    ),
    last=st.integers(0, 5),
    after=st.integers(0, 5),
)
def test_an_entry_of_unknown_origin_is_refused_or_harmless(
    fields: dict[bytes, bytes], last: int, after: int
) -> None:
    try:
        found = list(batches([(b"%d-0" % last, fields)], after))
    except ValueError:
        return
    assert all(batch.last >= after for batch in found)


def numbers_of(found: list[Batch] | None) -> list[tuple[str, int, bytes]] | None:
    return (
        None
        if found is None
        else [(batch.state.value, batch.last, batch.frames) for batch in found]
    )


def test_entries_that_are_not_written_are_read_from_memory() -> None:
    log = Pending(100, 1 << 20)
    assert log.unwritten(0) == []
    for seq in (1, 2):
        log.append(seq, b"data: %d\n\n" % seq)
    (entry,) = log.freeze()
    log.append(3, b"data: 3\n\n")
    log.skip(5)
    log.end(LogState.FINISHED, b"event: complete\n\n")
    whole = [
        ("running", 3, b"data: 1\n\ndata: 2\n\ndata: 3\n\n"),
        ("truncated", 5, b""),
        ("finished", 5, b"event: complete\n\n"),
    ]
    assert numbers_of(log.unwritten(0)) == whole
    assert numbers_of(log.unwritten(1)) == [("running", 3, b"data: 2\n\ndata: 3\n\n"), *whole[1:]]
    assert numbers_of(log.unwritten(5)) == whole[2:]
    log.mark_written(entry)
    assert log.unwritten(0) is None  # Redis has the first ones
    assert log.unwritten(1) is None
    assert numbers_of(log.unwritten(2)) == [("running", 3, b"data: 3\n\n"), *whole[1:]]
    missing = log.unwritten(0, is_next=True)
    assert numbers_of(missing) == [
        ("truncated", 2, b""),
        ("running", 3, b"data: 3\n\n"),
        *whole[1:],
    ]
    while log.freeze():
        for entry in log.freeze():
            log.mark_written(entry)
    assert log.unwritten(3) is None
    assert numbers_of(log.unwritten(3, is_next=True)) == [("truncated", 5, b"")]


def test_entries_that_are_not_written_are_read_in_parts() -> None:
    log = Pending(10_000, 1 << 22)
    for seq in range(1, 1001):
        log.append(seq, b"data: %500d\n\n" % seq)
    log.freeze()
    found, after = list[Batch](), 0
    while batches := log.unwritten(after):
        assert sum(len(batch.frames) for batch in batches) < 1 << 18
        found += batches
        after = batches[-1].last
    assert b"".join(batch.frames for batch in found) == b"".join(
        b"data: %500d\n\n" % seq for seq in range(1, 1001)
    )
