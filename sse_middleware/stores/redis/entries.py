"""The entries of a log in Redis: each contains several frames, and each id has one content.

The id of an entry is the number of its LAST event; a field contains the number of its first. A
reader that continues after an event in the middle of an entry therefore gets that entry, and gaps
between entries are visible. An entry that was returned once is returned again unchanged until its
write has succeeded. A write with an unknown outcome can be repeated, because Redis refuses an id
that it already has.

This module does no I/O.
"""

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sse_middleware.stores.base import Batch, LogState, split_frames

_ENTRY_BYTES: Final = 1 << 15
"""The size of an entry, so that a reader gets a bounded amount at a time."""
_MIN_ENTRIES: Final = 8
"""The limits of a log are divided into so many entries, because Redis trims whole entries."""
_MAX_IN_FLIGHT: Final = 8
"""The most entries of one log that are being written at the same time."""
_ENDS: Final = frozenset(LogState) - {LogState.RUNNING, LogState.GONE, LogState.TRUNCATED}
_BATCH_BYTES: Final = 1 << 16
"""The approximate size of a batch that a reader gets."""


class LogEntry(NamedTuple):
    """One entry of a Redis stream.

    Attributes:
        id: its id.
        fields: its fields, names and values in turn.
        oldest: the id of the oldest entry that Redis keeps from now on, `b""` if it drops none.
        first: the number of its first event, `last + 1` if it has none.
        last: the number of its last event, or of the last event before it.
        size: the size of its frames in bytes.
    """

    id: bytes
    fields: tuple[bytes, ...]
    oldest: bytes
    first: int
    last: int
    size: int

    @property
    def ends(self) -> bool:
        """Whether it contains the end of the log."""
        return self.fields[:1] == (b"s",)


class Pending:
    """The entries of one log that may not be in Redis yet.

    Args:
        max_events: the most events that are kept, here and in Redis.
        max_bytes: the most bytes of events that are kept here, and in Redis. The oldest events
            are dropped first.

    Attributes:
        last: the number of the last event.
        has_end_frame: whether a frame follows it that contains the end of the stream.
        dropped: the number of events that were dropped before Redis took them, since the last
            `take_dropped`.
        ended: the entry with the end, once `freeze` has returned it.
        tokens: the number of tokens that the app has counted.
    """

    __slots__ = (
        "_end",
        "_in_flight",
        "_kept",
        "_kept_bytes",
        "_max_bytes",
        "_max_events",
        "_queue",
        "_size",
        "dropped",
        "ended",
        "has_end_frame",
        "last",
        "tokens",
    )

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max(1, max_events)
        self._max_bytes = max_bytes
        self._queue: deque[tuple[int, bytes | None]] = deque()  # `None`: not kept
        self._size = 0
        self._in_flight: deque[LogEntry] = deque()
        self._kept: deque[LogEntry] = deque()  # in Redis or in flight; without frames
        self._kept_bytes = 0
        self._end: tuple[LogState, bytes] | None = None
        self.ended: LogEntry | None = None
        self.last = self.tokens = 0
        self.has_end_frame = False
        self.dropped = 0

    @property
    def first(self) -> int:
        """The number of the oldest event that is kept, or will be."""
        if self._kept:
            return self._kept[0].first
        if self._queue:
            seq, frame = self._queue[0]
            return seq + (frame is None)
        return self.last + 1

    def bounds(self) -> tuple[int, bool, int]:
        """Return `last`, `has_end_frame` and `first`."""
        return self.last, self.has_end_frame, self.first

    @property
    def is_empty(self) -> bool:
        """Whether all entries are in Redis."""
        return not self._in_flight and self.is_in_flight

    @property
    def is_in_flight(self) -> bool:
        """Whether `freeze` has returned all entries."""
        return not self._queue and self._end is None

    def append(self, seq: int, frame: bytes) -> None:
        """Add the frame of the event `seq`; a number that does not grow is ignored."""
        if len(frame) > self._max_bytes:
            self.skip(seq)
        elif seq > self.last:
            self.last = seq
            self._queue.append((seq, frame))
            self._size += len(frame)
            while self._size > self._max_bytes or len(self._queue) > self._max_events:
                self._drop_oldest()

    def extend(self, first: int, data: bytes, count: int) -> None:
        """Add the frames of `count` events from `first` on, as for `Log.append`."""
        for seq, frame in enumerate(split_frames(data, count), first):
            self.append(seq, frame)

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept."""
        if seq > self.last:
            self.last = seq
            if self._queue and self._queue[-1][1] is None:
                self._queue.pop()
            self._queue.append((seq, None))

    def end(self, state: LogState, frame: bytes) -> None:
        """Add the end. It drops all events of a log that is gone or contains the app's own ids."""
        if state in (LogState.APP_OWNS_IDS, LogState.GONE):
            self._queue.clear()
            self._in_flight.clear()
            self._kept.clear()
        if state is not LogState.GONE:
            self._end = state, frame
            self.has_end_frame = bool(frame)

    def freeze(self) -> Sequence[LogEntry]:
        """Return the entries to be written next: those in flight, unchanged, and new ones."""
        while len(self._in_flight) < _MAX_IN_FLIGHT and not self.is_in_flight:
            self._in_flight.append(self._next_entry())
        return tuple(self._in_flight)

    def mark_written(self, entry: LogEntry) -> None:
        """Record that the oldest entry in flight is in Redis."""
        if self._in_flight and self._in_flight[0] is entry:
            self._in_flight.popleft()

    def unwritten(self, after: int, *, is_next: bool = False) -> list[Batch] | None:
        """Return the next batches after an event, of entries that Redis may not have yet.

        Args:
            after: the number of the event.
            is_next: whether Redis has no entry after it, so that a gap before the first of these
                entries is one of the log.

        Returns:
            An empty list if the log has no more; `None` if Redis may have entries before these.
        """
        first = next((start for start, _, _ in self._unwritten_entries()), self.last + 1)
        if after + 1 < first and not is_next:
            return None
        found: list[tuple[bytes, Mapping[bytes, bytes]]] = []
        size = 0
        for _, entry_id, fields in self._unwritten_entries():
            if size > _BATCH_BYTES:
                break
            if last_number(entry_id) > after or b"s" in fields:
                found.append((entry_id, fields))
                size += len(fields.get(b"d", b""))
        if not found and after < self.last:
            return [Batch(LogState.TRUNCATED, self.last, b"")]
        return list(batches(found, after))

    def _unwritten_entries(self) -> Iterator[tuple[int, bytes, Mapping[bytes, bytes]]]:
        """Yield entries with the number of the first event that each is known to follow."""
        for entry in self._in_flight:
            yield min(entry.first, entry.last + entry.ends), entry.id, _fields_of(entry)
        for seq, frame in self._queue:
            if frame is None:
                yield seq, b"%d-0" % seq, {b"h": b""}
            else:
                entry = _frames_entry(seq, [frame], len(frame), self.tokens)
                yield seq, entry.id, _fields_of(entry)
        if self._end is not None:
            end = self._end_entry(*self._end)
            yield self.last + 1, end.id, _fields_of(end)

    def take_dropped(self) -> int:
        """Return the number of events that were dropped since the last call."""
        dropped, self.dropped = self.dropped, 0
        return dropped

    def forget_written(self) -> None:
        """Record that Redis has lost all entries."""
        self._kept = deque(_without_frames(one) for one in self._in_flight if not one.ends)
        self._kept_bytes = sum(entry.size for entry in self._kept)

    def _next_entry(self) -> LogEntry:
        if not self._queue:
            assert self._end is not None
            end, self._end = self._end, None
            self.ended = self._end_entry(*end)
            return self.ended
        seq, frame = self._queue.popleft()
        if frame is None:
            return self._record(LogEntry(b"%d-0" % seq, (b"h", b""), b"", seq + 1, seq, 0))
        frames, size = [frame], len(frame)
        max_events = max(1, self._max_events // _MIN_ENTRIES)
        max_bytes = min(_ENTRY_BYTES, self._max_bytes // _MIN_ENTRIES)
        while self._queue and len(frames) < max_events:
            number, frame = self._queue[0]
            if frame is None or number != seq + len(frames) or size + len(frame) > max_bytes:
                break
            self._queue.popleft()
            frames.append(frame)
            size += len(frame)
        self._size -= size
        return self._record(_frames_entry(seq, frames, size, self.tokens))

    def _record(self, entry: LogEntry) -> LogEntry:
        """Count an entry, and return it with the id of the oldest entry that is kept with it."""
        self._kept.append(_without_frames(entry))
        self._kept_bytes += entry.size
        trims = False
        while len(self._kept) > 1 and (
            self._kept_bytes > self._max_bytes
            or entry.last - self._kept[0].first >= self._max_events
        ):
            self._kept_bytes -= self._kept.popleft().size
            trims = True
        return entry._replace(oldest=self._kept[0].id) if trims else entry

    def _end_entry(self, state: LogState, frame: bytes) -> LogEntry:
        own_id = b"%d-1" % self.last
        oldest = b"" if self._kept else own_id
        fields = (b"s", state.encode(), b"e", frame)
        return LogEntry(own_id, fields, oldest, self.last + 1, self.last, 0)

    def _drop_oldest(self) -> None:
        _, frame = self._queue.popleft()
        if frame is not None:
            self._size -= len(frame)
            self.dropped += 1


def batches(entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]], after: int) -> Iterator[Batch]:
    """Return the batches that a reader gets from some entries.

    Args:
        entries: their ids and fields, in order.
        after: the number of the last event that the reader has.

    Raises:
        ValueError: the content of an entry is unknown.
    """
    frames: list[bytes] = []
    size = tokens = 0
    for entry_id, fields in entries:
        first, last, data = _parse(entry_id, fields, after)
        if frames and (first > after + 1 or not data or size > _BATCH_BYTES):
            yield Batch(LogState.RUNNING, after, b"".join(frames), tokens)
            frames, size = [], 0
        if b"s" in fields:
            ended = state_of(fields)
            if last > after and ended is not LogState.APP_OWNS_IDS:
                yield Batch(LogState.TRUNCATED, last, b"")
                after = last
            yield Batch(ended, after, fields[b"e"])
            return
        if last <= after:
            continue
        if first > after + 1:
            yield Batch(LogState.TRUNCATED, first - 1, b"")
        if data:
            frames.append(data)
            size += len(data)
        after, tokens = last, max(tokens, int(fields.get(b"t", b"0")))
    if frames:
        yield Batch(LogState.RUNNING, after, b"".join(frames), tokens)


def end_of(entry_id: bytes, fields: Mapping[bytes, bytes], after: int) -> Batch | None:
    """Return the end of a log from its newest entry, for a reader that has a later event."""
    if b"s" not in fields or last_number(entry_id) >= after:
        return None
    return Batch(state_of(fields), after, fields[b"e"])


def state_of(fields: Mapping[bytes, bytes]) -> LogState:
    """Return the state of a log by its newest entry.

    Raises:
        ValueError: the state is unknown.
    """
    if b"s" not in fields:
        return LogState.RUNNING
    state = LogState(fields[b"s"].decode())
    if state not in _ENDS:
        raise ValueError(f"a log has ended in the state {state}")
    return state


def last_number(entry_id: bytes) -> int:
    """Return the number of the last event of an entry."""
    return int(entry_id.partition(b"-")[0])


def first_number(entry_id: bytes, fields: Mapping[bytes, bytes]) -> int:
    """Return the number of the first event of an entry, its last plus one if it has none."""
    return int(fields[b"f"]) if b"f" in fields else last_number(entry_id) + 1


def _frames_entry(first: int, frames: list[bytes], size: int, tokens: int) -> LogEntry:
    last = first + len(frames) - 1
    lengths = struct.pack(f">{len(frames)}I", *map(len, frames))
    fields: tuple[bytes, ...] = (b"f", b"%d" % first, b"l", lengths, b"d", b"".join(frames))
    if tokens:
        fields += (b"t", b"%d" % tokens)
    return LogEntry(b"%d-0" % last, fields, b"", first, last, size)


def _fields_of(entry: LogEntry) -> Mapping[bytes, bytes]:
    return dict(zip(entry.fields[::2], entry.fields[1::2], strict=True))


def _without_frames(entry: LogEntry) -> LogEntry:
    return LogEntry(entry.id, (), b"", entry.first, entry.last, entry.size)


def _parse(entry_id: bytes, fields: Mapping[bytes, bytes], after: int) -> tuple[int, int, bytes]:
    """Return the first and last event of an entry, and its frames after the event `after`."""
    last, first = last_number(entry_id), first_number(entry_id, fields)
    if b"f" not in fields:
        if b"h" not in fields and not {b"s", b"e"} <= fields.keys():
            raise ValueError(f"an entry has the fields {sorted(fields)}")
        return first, last, b""
    lengths, data = fields.get(b"l", b""), fields.get(b"d", b"")
    if len(lengths) != 4 * (last + 1 - first):
        raise ValueError(f"an entry from {first} to {last} has {len(lengths)} bytes of lengths")
    skipped = max(0, min(after, last) + 1 - first)
    start = sum(struct.unpack(f">{skipped}I", lengths[: 4 * skipped]))
    return first, last, data[start:] if start else data
