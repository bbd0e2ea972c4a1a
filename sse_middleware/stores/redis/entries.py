"""The entries of a log in Redis: several frames in one, and never another one under the same id.

The id of an entry is the number of its LAST event, and its first stands in a field: whoever reads
behind an event in the middle of an entry gets that entry, and a hole between two entries is seen.
What was handed out once is handed out again unchanged until it is known to be there, so that a
write whose outcome is unknown can be repeated: Redis refuses an id that it has already.

Nothing here does I/O.
"""

import json
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Final, NamedTuple

from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stores.base import Batch, LogInfo, LogState

_ENTRY_BYTES: Final = 1 << 15
"""What one entry holds, so that a reader is given no more at once than it can take."""
_SHARE: Final = 8
"""An entry holds no more than this part of what is kept, since whole entries are trimmed."""
_ENTRIES_AT_ONCE: Final = 8
"""How many entries of one log are on their way together."""
_BATCH_BYTES: Final = 1 << 16
"""Entries are read as one batch up to about this size."""


class LogEntry(NamedTuple):
    """One entry of a Redis stream.

    Attributes:
        id: its id.
        fields: its fields, names and values by turns.
        oldest: the id of the oldest entry that is kept with this one, `b""` where none has to go.
        first: the number of its first event, one behind `last` where it has none.
        last: the number of its last event, or of the last one before it.
        size: of its frames, in bytes.
    """

    id: bytes
    fields: tuple[bytes, ...]
    oldest: bytes
    first: int
    last: int
    size: int

    @property
    def ends(self) -> bool:
        """Whether it tells the end of the log."""
        return self.fields[:1] == (b"s",)


class Pending:
    """What of one log is not in Redis yet, or not known to be.

    Args:
        max_events: how many events are kept, here and in Redis.
        max_bytes: how many bytes of them are kept here, and how many in Redis; the oldest go first.

    Attributes:
        last: the number of the last event.
        tells_end: whether a frame stands behind it, which says how the stream has ended.
        dropped: how many events were too many to be kept until Redis took them, since last asked.
    """

    __slots__ = (
        "_end",
        "_frozen",
        "_kept",
        "_kept_bytes",
        "_max_bytes",
        "_max_events",
        "_queue",
        "_size",
        "dropped",
        "last",
        "tells_end",
    )

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max(1, max_events)
        self._max_bytes = max_bytes
        self._queue: deque[tuple[int, bytes | None]] = deque()  # `None` for what is not kept
        self._size = 0
        self._frozen: deque[LogEntry] = deque()
        self._kept: deque[LogEntry] = deque()  # in Redis or on its way; without the frames
        self._kept_bytes = 0
        self._end: tuple[LogState, bytes] | None = None
        self.last = 0
        self.tells_end = False
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

    @property
    def is_empty(self) -> bool:
        """Whether all is known to be in Redis."""
        return not self._frozen and self.is_on_its_way

    @property
    def is_on_its_way(self) -> bool:
        """Whether all was handed out."""
        return not self._queue and self._end is None

    def append(self, seq: int, frame: bytes) -> None:
        """Take the frame of the event `seq`; a number that does not grow is ignored."""
        if len(frame) > self._max_bytes:
            self.skip(seq)
        elif seq > self.last:
            self.last = seq
            self._queue.append((seq, frame))
            self._size += len(frame)
            while self._size > self._max_bytes or len(self._queue) > self._max_events:
                self._drop_oldest()

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept."""
        if seq > self.last:
            self.last = seq
            if self._queue and self._queue[-1][1] is None:
                self._queue.pop()
            self._queue.append((seq, None))

    def end(self, state: LogState, frame: bytes) -> None:
        """Take the end; with a log that goes or is disowned all its events go."""
        if state in (LogState.APP_OWNS_IDS, LogState.GONE):
            self._queue.clear()
            self._frozen.clear()
            self._kept.clear()
        if state is not LogState.GONE:
            self._end = state, frame
            self.tells_end = bool(frame)

    def freeze(self) -> Sequence[LogEntry]:
        """Return what is to be written next: what was on its way, unchanged, and what has come."""
        while len(self._frozen) < _ENTRIES_AT_ONCE and not self.is_on_its_way:
            self._frozen.append(self._cut())
        return tuple(self._frozen)

    def written(self, entry: LogEntry) -> None:
        """Take note that an entry, the next of those on their way, is in Redis."""
        if self._frozen and self._frozen[0] is entry:
            self._frozen.popleft()

    def take_dropped(self) -> int:
        """Return how many events were too many since this was asked last."""
        dropped, self.dropped = self.dropped, 0
        return dropped

    def forget(self) -> None:
        """Take note that Redis has nothing of it any more."""
        self._kept = deque(_without_frames(one) for one in self._frozen if not one.ends)
        self._kept_bytes = sum(entry.size for entry in self._kept)

    def _cut(self) -> LogEntry:
        if not self._queue:
            assert self._end is not None
            end, self._end = self._end, None
            return self._end_entry(*end)
        seq, frame = self._queue.popleft()
        if frame is None:
            return self._keep(LogEntry(b"%d-0" % seq, (b"h", b""), b"", seq + 1, seq, 0))
        frames, size = [frame], len(frame)
        max_events = max(1, self._max_events // _SHARE)
        max_bytes = min(_ENTRY_BYTES, self._max_bytes // _SHARE)
        while self._queue and len(frames) < max_events:
            number, frame = self._queue[0]
            if frame is None or number != seq + len(frames) or size + len(frame) > max_bytes:
                break
            self._queue.popleft()
            frames.append(frame)
            size += len(frame)
        self._size -= size
        return self._keep(_frames_entry(seq, frames, size))

    def _keep(self, entry: LogEntry) -> LogEntry:
        """Take note of an entry, and of how much has to go for it."""
        self._kept.append(_without_frames(entry))
        self._kept_bytes += entry.size
        goes = False
        while len(self._kept) > 1 and (
            self._kept_bytes > self._max_bytes
            or entry.last - self._kept[0].first >= self._max_events
        ):
            self._kept_bytes -= self._kept.popleft().size
            goes = True
        return entry._replace(oldest=self._kept[0].id) if goes else entry

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
    """Return what a reader behind the event `after` gets of some entries.

    Args:
        entries: their ids and fields, in order.
        after: the event that the reader has last.

    Raises:
        ValueError: one of them is none of ours.
    """
    frames: list[bytes] = []
    size = 0
    for entry_id, fields in entries:
        first, last, data = _opened(entry_id, fields, after)
        if frames and (first > after + 1 or not data or size > _BATCH_BYTES):
            yield Batch(LogState.RUNNING, after, b"".join(frames))
            frames, size = [], 0
        if state := fields.get(b"s"):
            ended = LogState(state.decode())
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
        after = last
    if frames:
        yield Batch(LogState.RUNNING, after, b"".join(frames))


def end_told(entry_id: bytes, fields: Mapping[bytes, bytes], after: int) -> Batch | None:
    """Return the end of a log for a reader that is ahead of it, by its newest entry."""
    if b"s" not in fields or last_of(entry_id) >= after:
        return None
    return Batch(LogState(fields[b"s"].decode()), after, fields[b"e"])


def last_of(entry_id: bytes) -> int:
    """Return the number of the last event of an entry."""
    return int(entry_id.partition(b"-")[0])


def first_of(entry_id: bytes, fields: Mapping[bytes, bytes]) -> int:
    """Return the number of the first event of an entry, one behind its last where it has none."""
    return int(fields[b"f"]) if b"f" in fields else last_of(entry_id) + 1


def _frames_entry(first: int, frames: list[bytes], size: int) -> LogEntry:
    last = first + len(frames) - 1
    lengths = struct.pack(f">{len(frames)}I", *map(len, frames))
    fields = (b"f", b"%d" % first, b"l", lengths, b"d", b"".join(frames))
    return LogEntry(b"%d-0" % last, fields, b"", first, last, size)


def _without_frames(entry: LogEntry) -> LogEntry:
    return LogEntry(entry.id, (), b"", entry.first, entry.last, entry.size)


def _opened(entry_id: bytes, fields: Mapping[bytes, bytes], after: int) -> tuple[int, int, bytes]:
    """Return the first and last event of an entry, and its frames behind the event `after`."""
    last, first = last_of(entry_id), first_of(entry_id, fields)
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


class Known(NamedTuple):
    """What is known of a log.

    Attributes:
        info: what is known of the stream from its beginning.
        process: the process that writes it.
        name: a digest of its name, `""` where it has none.
    """

    info: LogInfo
    process: str
    name: str


def pack_known(known: Known) -> bytes:
    """Write what is known of a log."""
    fields = {**asdict(known.info), "headers": known.info.headers.decode("latin-1")}
    fields |= fields.pop("terms")  # the terms are stored as fields of their own
    return json.dumps([fields, known.process, known.name]).encode()


def unpack_known(data: bytes) -> Known:
    """Read what `pack_known` has written.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        fields, process, name = json.loads(data)
        terms = StreamTerms(**{name: fields.pop(name) for name in StreamTerms.__slots__})
        headers = fields.pop("headers").encode("latin-1")
        info = LogInfo(**fields, headers=headers, terms=terms)
    except (TypeError, KeyError, AttributeError, ValueError) as exc:
        raise ValueError("what is known of a stream was written by another version") from exc
    return Known(info, process, name)
