"""Channels in the memory of this process: for one process, for examples and for tests.

Each event loop and each thread may use them. A channel goes when its time is over, or before it
where memory is short, the one that was silent for longest first.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from typing import Final

from sse_middleware.channels.base import Feed, Limits
from sse_middleware.channels.events import (
    ACK,
    EMPTY,
    NO_CHANNEL,
    LastEvent,
    OutgoingEvent,
    Position,
    ReadResult,
    StoredEvent,
)

_ENTRY_BYTES: Final = 700
"""What an entry costs beside its texts, with its block written once: measured, about."""
_CHANNEL_BYTES: Final = 1500
_AT_ONCE: Final = 256


class _Log:
    """The log of one channel."""

    def __init__(self, born: int) -> None:
        self.born = str(born)  # so that a place in an earlier channel of this name is none here
        self.entries: deque[tuple[StoredEvent, str]] = deque()  # with their keys
        self.last = EMPTY
        self.event = ""
        self.is_acked = False
        self.keys: set[str] = set()
        self.bytes = 0
        self.expires_at = 0.0

    def append(self, post: OutgoingEvent) -> None:
        number = (self.last.number or 0) + 1
        entry = StoredEvent(f"{self.born}-{number}", number, post.event, post.data.decode())
        self.entries.append((entry, post.key))
        self.last, self.event = entry.place, post.event
        self.bytes += len(post.event) + len(post.data)
        self.is_acked |= post.event == ACK
        if post.key:
            self.keys.add(post.key)

    def drop_oldest(self) -> None:
        entry, key = self.entries.popleft()
        self.bytes -= len(entry.event) + len(entry.data.encode())
        if key.startswith("u:"):
            self.keys.discard(key)

    @property
    def memory(self) -> int:
        return 3 * self.bytes + _ENTRY_BYTES * len(self.entries) + _CHANNEL_BYTES

    def page(self, place: Position) -> ReadResult:
        if place.number == 0:
            place = EMPTY
        elif place.number is not None and not place.id.startswith(f"{self.born}-"):
            return ReadResult((), place, is_whole=False)
        first = self.entries[0][0].number
        start = 0 if place.number is None else place.number + 1 - first
        if start < 0 or start > len(self.entries):
            return ReadResult((), place, is_whole=False)
        entries = [entry for entry, _ in islice(self.entries, start, start + _AT_ONCE)]
        return ReadResult(entries, entries[-1].place if entries else place)


class ChannelMemory:
    """The memory of all channels of a process.

    Args:
        max_total_bytes: how much of it they may take, about.
        clock: the time in seconds.

    Attributes:
        total_bytes: how much they take, about.
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
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of channels."""
        with self._lock:
            self._drop_expired()
            return len(self._logs)

    def publish(self, post: OutgoingEvent, limits: Limits) -> bool:
        """Put an event into its channel; `False` where one of its key is there."""
        with self._lock:
            log = self._living(post.channel)
            if log is None:
                if post.channel in self._logs:
                    self._drop(post.channel)
                self._born = max(self._born + 1, time.time_ns() // 1_000_000)
                log = self._logs[post.channel] = _Log(self._born)
            else:
                if post.key in log.keys:
                    return False
                self.total_bytes -= log.memory
            log.append(post)
            while len(log.entries) > 1 and (
                len(log.entries) > limits.max_events or log.bytes > limits.max_bytes
            ):
                log.drop_oldest()
            log.expires_at = self._clock() + limits.ttl
            self.total_bytes += log.memory
            self._logs.move_to_end(post.channel)
            while self.total_bytes > self._max_total_bytes and len(self._logs) > 1:
                self._drop(next(iter(self._logs)))
            feeds = list(self._feeds.get(post.channel, ()))
        for feed in feeds:
            feed.tell()
        return True

    def tip(self, channel: str) -> LastEvent:
        """Return the last entry of a channel."""
        with self._lock:
            log = self._living(channel)
            return NO_CHANNEL if log is None else LastEvent(log.last, log.event, log.is_acked)

    @contextmanager
    def follow(self, channel: str) -> Iterator[Feed]:
        """Read a channel."""
        feed = _MemoryFeed(self, channel)
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

    def page(self, channel: str, place: Position) -> ReadResult:
        """Return what stands behind `place`."""
        with self._lock:
            log = self._living(channel)
            if log is None:
                return ReadResult((), place if place.number else EMPTY)
            return log.page(place)

    def _living(self, channel: str) -> _Log | None:
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

    async def read(self, place: Position) -> ReadResult:
        """Return what stands behind `place`."""
        self._news.clear()
        return self._memory.page(self._channel, place)

    async def wait(self) -> None:
        """Wait until there may be more."""
        await self._news.wait()

    def tell(self) -> None:
        """Let the reader know that there is more, from whichever thread."""
        if _running_loop() is self._loop:
            self._news.set()
            return
        with suppress(RuntimeError):  # the loop is closed, and the reader with it
            self._loop.call_soon_threadsafe(self._news.set)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class MemoryChannels:
    """Keep channels in memory, from any event loop.

    Args:
        memory: the process's.
        limits: what is kept of a channel.
    """

    def __init__(self, memory: ChannelMemory, limits: Limits | None = None) -> None:
        self._memory = memory
        self._limits = limits or Limits()

    async def publish(self, post: OutgoingEvent) -> bool:
        """Put an event into its channel; `False` where one of its key is there."""
        return self._memory.publish(post, self._limits)

    async def tip(self, channel: str) -> LastEvent:
        """Return the last entry of a channel."""
        return self._memory.tip(channel)

    def follow(self, channel: str) -> AbstractContextManager[Feed]:
        """Read a channel."""
        return self._memory.follow(channel)

    async def close(self) -> None:
        """Do nothing: others may go on."""


class BlockingMemoryChannels:
    """The same from any thread.

    Args:
        memory: returns that of the process, which may have been forked meanwhile.
        limits: what is kept of a channel.
    """

    def __init__(self, memory: Callable[[], ChannelMemory], limits: Limits) -> None:
        self._memory = memory
        self._limits = limits

    def publish(self, post: OutgoingEvent) -> bool:
        """Put an event into its channel; `False` where one of its key is there."""
        return self._memory().publish(post, self._limits)

    def close(self) -> None:
        """Do nothing."""
