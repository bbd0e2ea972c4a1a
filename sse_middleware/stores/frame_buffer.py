"""The frames of one log in one byte buffer, without gaps.

Frames are appended at the end and dropped at the beginning. A frame has an offset and no object of
its own, so that the buffer is hardly larger than its content. This module does not depend on time,
event loops, threads or readers.
"""

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, islice

_SPARE = 8
"""The buffer drops at least this fraction (an eighth) at a time, so that it drops seldom."""
_SMALL_BYTES = 1 << 13
"""A smaller buffer grows by three quarters instead of an eighth, so that it grows seldom."""
EMPTY_BYTES = sys.getsizeof(bytearray()) + sys.getsizeof(array("Q"))
"""The memory of empty buffers."""


class FrameBuffer:
    """The frames `first` to `last`, none if `first` is larger than `last`.

    Args:
        max_events: the most frames that are kept.
        max_bytes: the most bytes that are kept.

    Attributes:
        first: the number of the first event that is kept.
        last: the number of the last event that was appended, 0 before the first one.
        size: the memory of the buffers, with their reserve.
    """

    __slots__ = (
        "_data",
        "_ends",
        "_max_bytes",
        "_max_events",
        "_offset",
        "_room",
        "first",
        "last",
        "size",
    )

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self.first = 1
        self.last = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._ends = array("Q")  # of each frame, from the beginning of the stream
        self._offset = 0  # of `_data`, from the beginning of the stream
        self._room = 0  # as `_measure` computes it, and so is `size`
        self.size = EMPTY_BYTES

    def maybe_append(self, first: int, data: bytes, count: int) -> bool:
        """Append the frames of `count` events from `first` on if they fit without another change.

        A reader in another thread may read at the same time.

        Args:
            first: the number of the first event.
            data: the frames, as for `Log.append`.
            count: the number of events.

        Returns:
            Whether they are appended; if not, call `append`.
        """
        buffer, ends = self._data, self._ends
        size = len(buffer) + len(data)
        if first != self.last + 1 or size > self._room or len(ends) + count > self._max_events:
            return False
        buffer += data
        if count == 1:
            ends.append(self._offset + size)
        else:
            ends.extend(_ends_of(data, self._offset + size - len(data)))
        self.last += count
        return True

    def append(self, first: int, data: bytes, count: int) -> None:
        """Append the frames of `count` events from `first` on, and drop frames over the limits.

        A gap in the numbers drops all frames before it, so that no read contains a gap. Numbers
        that do not grow are ignored.
        """
        while first <= self.last and count > 1:
            data = data[data.index(b"\n\n") + 2 :]
            first, count = first + 1, count - 1
        if first <= self.last:
            return
        if first > self.last + 1:
            self._drop(len(self._ends))
            self.first = first
            self.last = first - 1
        if self._data:
            self._make_room(len(data))
        end = self._offset + len(self._data)
        self._data += data
        self._ends.extend([end + len(data)] if count == 1 else _ends_of(data, end))
        self.last += count
        if len(self._ends) > self._max_events or len(self._data) > self._max_bytes:
            self._trim()
        self._measure()

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept, and drop all before it."""
        if seq > self.last:
            self._drop(len(self._ends))
            self.first, self.last = seq + 1, seq
            self._measure()

    def read(self, after: int, limit: int) -> tuple[int, bytes]:
        """Return whole frames after the event `after`, and the number of the last of them.

        Args:
            after: at least `first - 1`, and less than `last`.
            limit: the most bytes; a single frame may be longer.
        """
        ends = self._ends
        index = after + 1 - self.first
        start = ends[index - 1] if index else self._offset
        stop = max(bisect_right(ends, start + limit, index), index + 1)
        frames = bytes(self._data[start - self._offset : ends[stop - 1] - self._offset])
        return self.first + stop - 1, frames

    def close(self) -> None:
        """Append no more frames, and free the reserve."""
        self._max_bytes = -1
        if len(self._data) < _SMALL_BYTES:
            self._data = self._data[:]
        self._measure()

    def drop_all(self) -> None:
        """Drop all frames, and free their memory."""
        self.first = self.last + 1
        self._offset += len(self._data)
        self._data, self._ends = bytearray(), array("Q")
        self._room = 0
        self.size = EMPTY_BYTES

    def shrink(self, size: int) -> None:
        """Free at least `size` bytes of memory, or all."""
        self._drop(self._count_of(max(size, len(self._data) // _SPARE)))
        self._data = self._data[:]  # a copy has no reserve
        self._measure()

    def _make_room(self, size: int) -> None:
        """Reserve memory for `size` bytes and some more."""
        data, length = self._data, len(self._data)
        if length < _SMALL_BYTES and data.__alloc__() <= length + size:
            data.extend(bytes(max(size, 3 * length // 4)))
            del data[length:]  # its memory stays, unless it is more than half

    def _trim(self) -> None:
        """Drop the oldest frames until the others are within the limits."""
        count = 0
        if len(self._ends) > self._max_events:
            count = max(len(self._ends) - self._max_events, self._max_events // _SPARE)
        surplus = len(self._data) - self._max_bytes
        if surplus > 0:
            count = max(count, self._count_of(max(surplus, self._max_bytes // _SPARE)))
        self._drop(count)

    def _count_of(self, size: int) -> int:
        """Return the number of the oldest frames that together have `size` bytes, or of all."""
        return min(bisect_left(self._ends, self._offset + size) + 1, len(self._ends))

    def _drop(self, count: int) -> None:
        if count:
            end = self._ends[count - 1]
            del self._data[: end - self._offset]
            del self._ends[:count]
            self._offset = end
            self.first += count

    def _measure(self) -> None:
        self.size = sys.getsizeof(self._data) + sys.getsizeof(self._ends)
        # More data would change the size of the buffer, or exceed the limit.
        self._room = min(self._data.__alloc__() - 1, self._max_bytes)


def _ends_of(data: bytes, begin: int) -> Iterator[int]:
    """Return the offsets at which several frames end, the first of which begins at `begin`."""
    blocks = data.split(b"\n\n")
    blocks.pop()
    return islice(accumulate([len(block) + 2 for block in blocks], initial=begin), 1, None)
