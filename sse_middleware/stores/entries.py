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
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import NamedTuple

from sse_middleware.stores.base import Batch, LogInfo, State

_ENTRY_BYTES = 1 << 15
"""What one entry holds, so that a reader is given no more at once than it can take."""


class Entry(NamedTuple):
    """One entry of a Redis stream: its id, and its fields."""

    id: bytes
    fields: dict[bytes, bytes]
    size: int
    ends: bool


def frames_entry(first: int, frames: list[bytes]) -> Entry:
    """Return the entry of the frames from the event `first` on."""
    last = first + len(frames) - 1
    fields = {
        b"f": b"%d" % first,
        b"l": struct.pack(f">{len(frames)}I", *map(len, frames)),
        b"d": b"".join(frames),
    }
    return Entry(b"%d-0" % last, fields, len(fields[b"d"]), ends=False)


def end_entry(last: int, state: State, frame: bytes) -> Entry:
    """Return the entry that tells the end behind the event `last`."""
    return Entry(b"%d-1" % last, {b"s": state.encode(), b"e": frame}, len(frame), ends=True)


def last_of(entry_id: bytes) -> int:
    """Return the number of the last event of an entry."""
    return int(entry_id.partition(b"-")[0])


def batches(entry_id: bytes, fields: Mapping[bytes, bytes], after: int) -> Iterator[Batch]:
    """Return what a reader behind the event `after` gets of an entry.

    Raises:
        ValueError: it is none of ours.
    """
    last = last_of(entry_id)
    try:
        if b"s" in fields:
            if last > after:
                yield Batch(State.TRUNCATED, last, b"")
            yield Batch(State(fields[b"s"].decode()), max(after, last), fields[b"e"])
            return
        first, lengths, data = int(fields[b"f"]), fields[b"l"], fields[b"d"]
    except KeyError as exc:
        raise ValueError(f"an entry has no field {exc}") from exc
    if last <= after:
        return
    if first > after + 1:
        yield Batch(State.TRUNCATED, first - 1, b"")
    skipped = max(0, after + 1 - first)
    start = sum(struct.unpack(f">{skipped}I", lengths[: 4 * skipped]))
    yield Batch(State.RUNNING, last, data[start:])


class Pending:
    """What of one log is not in Redis yet, or not known to be.

    Args:
        max_bytes: how much of it is kept while Redis is out of reach; the oldest goes first.

    Attributes:
        last: the number of the last event.
        dropped: how many events were dropped.
        has_ended: whether the end was told.
    """

    __slots__ = (
        "_end",
        "_first",
        "_frames",
        "_in_flight",
        "_max_bytes",
        "_size",
        "dropped",
        "last",
    )

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self._first = 1
        self._size = 0
        self._in_flight: Entry | None = None
        self._end: Entry | None = None
        self.last = 0
        self.dropped = 0

    @property
    def has_ended(self) -> bool:
        """Whether the end was told, so that nothing can follow."""
        return self._end is not None

    @property
    def is_empty(self) -> bool:
        """Whether all is known to be in Redis."""
        return self._in_flight is None and not self._frames and self._end is None

    def append(self, seq: int, frame: bytes) -> None:
        """Take the frame of the event `seq`; over a hole nothing of what waits is kept."""
        if seq <= self.last:
            return
        if not self._frames:
            self._first = seq
        elif seq != self.last + 1:
            self._drop(len(self._frames))
            self._first = seq
        self.last = seq
        self._frames.append(frame)
        self._size += len(frame)
        while self._size > self._max_bytes and len(self._frames) > 1:
            self._drop(1)

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept; nor is what waits before it."""
        if seq > self.last:
            self.clear()
            self.last = seq

    def end(self, state: State, frame: bytes) -> None:
        """Take the end."""
        self._end = end_entry(self.last, state, frame)

    def next_entry(self) -> Entry | None:
        """Return what is to be written next: the same until `written` says that it is there."""
        if self._in_flight is None:
            if self._frames:
                frames = self._take_frames()
                self._in_flight = frames_entry(self._first, frames)
                self._first += len(frames)
            elif self._end is not None:
                self._in_flight = self._end
        return self._in_flight

    def written(self) -> None:
        """Take note that the entry is in Redis."""
        if self._in_flight is self._end:
            self._end = None
        self._in_flight = None

    def clear(self) -> None:
        """Forget the frames that wait."""
        self._drop(len(self._frames))

    def _take_frames(self) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        while self._frames and (not frames or size + len(self._frames[0]) <= _ENTRY_BYTES):
            frame = self._frames.popleft()
            frames.append(frame)
            size += len(frame)
        self._size -= size
        return frames

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._size -= len(self._frames.popleft())
        self._first += count
        self.dropped += count


class Kept:
    """Which entries of a log are in Redis, to know where it is to be trimmed.

    Args:
        max_events: how many events are kept.
        max_bytes: how many bytes.
    """

    __slots__ = ("_entries", "_max_bytes", "_max_events", "_size")

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._entries: deque[tuple[int, int]] = deque()  # the last event of each, and its size
        self._size = 0
        self._max_events = max_events
        self._max_bytes = max_bytes

    def add(self, entry: Entry) -> int:
        """Take note of an entry and return the number of the oldest event to be kept then."""
        last = last_of(entry.id)
        if self._entries and self._entries[-1][0] == last:
            return self._entries[0][0]  # written again
        self._entries.append((last, entry.size))
        self._size += entry.size
        while len(self._entries) > 1 and (
            self._size > self._max_bytes or self._entries[0][0] <= last - self._max_events
        ):
            self._size -= self._entries.popleft()[1]
        return self._entries[0][0]


def packed_info(info: LogInfo, process: str) -> bytes:
    """Write what is known of a stream, and which process writes it."""
    fields = {**asdict(info), "headers": info.headers.decode("latin-1")}
    return json.dumps([process, fields]).encode()


def unpacked_info(data: bytes) -> tuple[LogInfo, str]:
    """Read what `packed_info` has written.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        process, fields = json.loads(data)
        info = LogInfo(**{**fields, "headers": fields["headers"].encode("latin-1")})
    except (TypeError, KeyError, AttributeError) as exc:
        raise ValueError("what is known of a stream was written by another version") from exc
    return info, process
