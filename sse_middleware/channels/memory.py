"""Channels in the memory of one process.

All event loops and threads of the process may use them. A channel is dropped when its time is over,
or earlier if memory is short; the channel that was silent for longest is dropped first.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Final

from sse_middleware._once import call_in
from sse_middleware.channels.base import Feed, Limits
from sse_middleware.channels.events import (
    EMPTY,
    NO_CHANNEL,
    LastEvent,
    OutgoingEvent,
    Position,
    ReadResult,
    StoredEvent,
)
from sse_middleware.channels.unread import UnreadWarning

_ENTRY_BYTES: Final = 700
"""The memory of an entry without its texts, with one written block; measured."""
_CHANNEL_BYTES: Final = 1500
_READ_COUNT: Final = 256
"""The number of entries in one read."""


class _Log:
    """The log of one channel."""

    def __init__(self, born: int) -> None:
        self.born = str(born)  # distinguishes it from an earlier channel of this name
        self.entries: deque[tuple[StoredEvent, str]] = deque()  # with their keys
        self.last = EMPTY
        self.event = ""
        self.keys: set[str] = set()
        self.bytes = 0
        self.expires_at = 0.0

    def append(self, event: OutgoingEvent) -> None:
        number = (self.last.number or 0) + 1
        position = Position(f"{self.born}-{number}", number)
        entry = StoredEvent(position, event.event, event.data.decode())
        self.entries.append((entry, event.key))
        self.last, self.event = entry.position, event.event
        self.bytes += len(event.event) + len(event.data)
        if event.key:
            self.keys.add(event.key)

    def drop_oldest(self) -> None:
        entry, key = self.entries.popleft()
        self.bytes -= len(entry.event) + len(entry.data.encode())
        if key.startswith("u:"):
            self.keys.discard(key)

    @property
    def memory(self) -> int:
        return 3 * self.bytes + _ENTRY_BYTES * len(self.entries) + _CHANNEL_BYTES

    def read(self, position: Position) -> ReadResult:
        if position.number == 0:
            position = EMPTY
        elif position.number is not None and not position.id.startswith(f"{self.born}-"):
            return ReadResult((), position, is_whole=False)
        first = self.entries[0][0].number
        start = 0 if position.number is None else position.number + 1 - first
        if start < 0 or start > len(self.entries):
            return ReadResult((), position, is_whole=False)
        entries = [entry for entry, _ in islice(self.entries, start, start + _READ_COUNT)]
        return ReadResult(entries, entries[-1].position if entries else position)


class ChannelMemory:
    """The memory of all channels of a process.

    Args:
        max_total_bytes: the most memory that they may use, approximately.
        clock: returns the time in seconds.

    Attributes:
        total_bytes: the memory that they use, approximately.
    """

    def __init__(
        self,
        *,
        max_total_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_total_bytes = max_total_bytes
        self._clock = clock
        self._logs: OrderedDict[str, _Log] = OrderedDict()  # by the time of their last event
        self.total_bytes = 0
        self._born = 0
        self._feeds: dict[str, set[_MemoryFeed]] = {}
        self._was_read = False
        self._unread = UnreadWarning(clock)
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of channels."""
        with self._lock:
            self._drop_expired()
            return len(self._logs)

    def publish(self, event: OutgoingEvent, limits: Limits) -> bool:
        """Append an event to its channel; return `False` if the channel has its key already."""
        with self._lock:
            log = self._live(event.channel)
            if log is None:
                if event.channel in self._logs:
                    self._drop(event.channel)
                self._born = max(self._born + 1, time.time_ns() // 1_000_000)
                log = self._logs[event.channel] = _Log(self._born)
            else:
                if event.key in log.keys:
                    return False
                self.total_bytes -= log.memory
            log.append(event)
            while len(log.entries) > 1 and (
                len(log.entries) > limits.max_events or log.bytes > limits.max_bytes
            ):
                log.drop_oldest()
            log.expires_at = self._clock() + limits.ttl
            self.total_bytes += log.memory
            self._logs.move_to_end(event.channel)
            while self.total_bytes > self._max_total_bytes and len(self._logs) > 1:
                self._drop(next(iter(self._logs)))
            feeds = list(self._feeds.get(event.channel, ()))
        for feed in feeds:
            feed.on_change()
        return True

    def warn_if_unread(self) -> None:
        """Warn once if no channel was read so far, and none will be, as far as is known."""
        if not self._was_read:
            self._unread.check()

    def last_event(self, channel: str) -> LastEvent:
        """Return the last event of a channel."""
        with self._lock:
            log = self._live(channel)
            return NO_CHANNEL if log is None else LastEvent(log.last, log.event)

    @contextmanager
    def follow(self, channel: str) -> Iterator[Feed]:
        """Read a channel."""
        feed = _MemoryFeed(self, channel)
        self._was_read = True
        with self._lock:
            self._feeds.setdefault(channel, set()).add(feed)
        try:
            yield feed
        finally:
            with self._lock:
                feeds = self._feeds[channel]
                feeds.discard(feed)
                if not feeds:
                    del self._feeds[channel]

    def read(self, channel: str, position: Position) -> ReadResult:
        """Return the events after a position."""
        with self._lock:
            log = self._live(channel)
            if log is None:
                return ReadResult((), position if position.number else EMPTY)
            return log.read(position)

    def _live(self, channel: str) -> _Log | None:
        self._drop_expired()
        log = self._logs.get(channel)
        return None if log is None or log.expires_at <= self._clock() else log

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._logs:
            channel, log = next(iter(self._logs.items()))
            if log.expires_at > now:
                return
            self._drop(channel)

    def _drop(self, channel: str) -> None:
        self.total_bytes -= self._logs.pop(channel).memory


class _MemoryFeed:
    """One reader of a channel, in one event loop."""

    def __init__(self, memory: ChannelMemory, channel: str) -> None:
        self._memory = memory
        self._channel = channel
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def read(self, position: Position) -> ReadResult:
        """Return the events after a position."""
        self._news.clear()
        return self._memory.read(self._channel, position)

    def wait(self) -> Awaitable[object]:
        """Wait until there may be more events."""
        return self._news.wait()

    def on_change(self) -> None:
        """Wake the reader, from any thread."""
        call_in(self._loop, self._news.set)


class MemoryChannels:
    """Keep channels in memory, from any event loop.

    Args:
        memory: the memory of the process.
        limits: how much of a channel is kept.
        is_default: whether the memory is used because no Redis is set.
    """

    def __init__(
        self, memory: ChannelMemory, limits: Limits | None = None, *, is_default: bool = False
    ) -> None:
        self._memory = memory
        self._limits = limits or Limits()
        self._is_default = is_default

    async def publish(self, event: OutgoingEvent) -> bool:
        """Append an event to its channel; return `False` if the channel has its key already."""
        if self._is_default:
            self._memory.warn_if_unread()
        return self._memory.publish(event, self._limits)

    async def last_event(self, channel: str) -> LastEvent:
        """Return the last event of a channel."""
        return self._memory.last_event(channel)

    def follow(self, channel: str, *, with_messages: bool = False) -> AbstractContextManager[Feed]:
        """Read a channel."""
        assert not with_messages, "`subscribe` refuses it"
        return self._memory.follow(channel)

    async def close(self) -> None:
        """Do nothing: others may use the memory."""


class BlockingMemoryChannels:
    """Keep channels in memory, from any thread.

    Args:
        memory: returns the memory of the process, which may have been forked.
        limits: how much of a channel is kept.
        is_default: whether the memory is used because no Redis is set.
    """

    def __init__(
        self, memory: Callable[[], ChannelMemory], limits: Limits, *, is_default: bool = False
    ) -> None:
        self._memory = memory
        self._limits = limits
        self._is_default = is_default

    def publish(self, event: OutgoingEvent) -> bool:
        """Append an event to its channel; return `False` if the channel has its key already."""
        memory = self._memory()
        if self._is_default:
            memory.warn_if_unread()
        return memory.publish(event, self._limits)

    def close(self) -> None:
        """Do nothing."""
