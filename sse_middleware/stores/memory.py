"""The store in the memory of one process, with limits for each stream and for all together.

Ended logs are dropped after their time, or earlier if memory is short, the oldest first. If no log
has ended, the largest one loses its oldest events, so that large streams do not affect small ones.
All event loops may use the store, also those of different threads.
"""

import asyncio
import contextvars
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable

from sse_middleware._once import call_in, running_loop
from sse_middleware.stores.base import Batch, Log, LogInfo, LogListener, LogSnapshot, LogState
from sse_middleware.stores.frame_buffer import FrameBuffer
from sse_middleware.stores.size_ranking import SizeRanking

_READ_BYTES = 1 << 16
"""The size of a batch, which bounds the memory of a slow reader."""
_LOG_BYTES = 1000
"""The memory of a log without its buffers and its longest texts; measured, see its test."""
_SOONEST_SECONDS = 0.05
"""The least time between two timers that drop logs."""


class MemoryStore:
    """Keep events in memory.

    Args:
        max_events: the most events of a stream that are kept.
        max_bytes: the most bytes of a stream that are kept.
        max_total_bytes: the most memory of all logs.
        ttl: how long a log is kept after its end, in seconds.
        clock: returns the time in seconds.

    Attributes:
        total_bytes: the memory of all logs, close to the memory that the process uses for them.
    """

    is_shared = False

    def __init__(
        self,
        *,
        max_events: int = 10_000,
        max_bytes: int = 4 << 20,
        max_total_bytes: int = 256 << 20,
        ttl: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._ttl = ttl
        self._clock = clock
        self._logs: dict[str, _MemoryLog] = {}
        self._names: dict[str, str] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()  # by the time of their expiry
        self._running = SizeRanking()
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}
        self.lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of logs."""
        with self.lock:
            self._drop_expired()
            return len(self._logs)

    def create(self, info: LogInfo, producer: LogListener) -> Log:
        """Begin the log of a new stream, and drop one with the same id."""
        frames = FrameBuffer(self._max_events, self._max_bytes)
        log = _MemoryLog(self, info, producer, frames)
        with self.lock:
            self._drop_expired()
            if (earlier := self._logs.get(info.stream_id)) is not None:
                self.drop(earlier)
            self._logs[info.stream_id] = log
            self._running.add(info.stream_id)
            self.recount(log)
        return log

    async def find(self, stream_id: str) -> LogSnapshot | None:
        """Return the log of a stream, `None` if there is none."""
        log = self._find(stream_id)
        return None if log is None else log.snapshot()

    async def find_named(self, name: str) -> LogSnapshot | None:
        """Return the latest log of a name, `None` if there is none."""
        stream_id = self._names.get(name)
        return None if stream_id is None else await self.find(stream_id)

    async def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        """Read a log after the event `after`, and continue as it grows, until it ends."""
        log = self._find(stream_id)
        if log is None:
            yield Batch(LogState.GONE, after, b"")
            return
        log.add_reader()
        try:
            while True:
                batch = log.read(after)
                if batch is None:
                    await log.growth(after)
                    continue
                yield batch
                after = batch.last
                if batch.state not in (LogState.RUNNING, LogState.TRUNCATED):
                    return
        finally:
            log.remove_reader()

    async def cancel(self, stream_id: str) -> bool:
        """Ask the producer of a stream to end it; return `False` if there is no such log."""
        log = self._find(stream_id)
        if log is None:
            return False
        log.cancel()
        return True

    async def close(self) -> None:
        """Cancel the timers."""
        with self.lock:
            timers, self._timers = self._timers, {}
        for loop, timer in timers.items():
            call_in(loop, timer.cancel)

    # The methods below are called by logs, which hold the lock.

    def recount(self, log: "_MemoryLog") -> None:
        """Measure a log again, and drop data over the limit."""
        self._resize(log, log.measure())
        while self.total_bytes > self._max_total_bytes and log.info.stream_id in self._logs:
            if self._ended:
                self.drop(self._logs[next(iter(self._ended))])
            elif not self._shrink_largest(self.total_bytes - self._max_total_bytes):
                self.drop(log)

    def set_name(self, log: "_MemoryLog", name: str) -> None:
        """Let a log be snapshot by a name, and by no other name."""
        self._drop_name(log)
        self._names[name] = log.info.stream_id

    def keep_ended(self, log: "_MemoryLog") -> None:
        """Keep an ended log until its expiry."""
        self._ended[log.info.stream_id] = self._clock() + self._ttl
        self._running.discard(log.info.stream_id)
        loop = running_loop()
        if loop is not None and loop not in self._timers:
            self._arm(loop, self._ttl)

    def drop(self, log: "_MemoryLog") -> None:
        """Drop a log."""
        if self._logs.get(log.info.stream_id) is not log:
            return
        del self._logs[log.info.stream_id]
        self._ended.pop(log.info.stream_id, None)
        self._running.discard(log.info.stream_id)
        self._drop_name(log)
        self._resize(log, 0)
        log.drop()

    def _find(self, stream_id: str) -> "_MemoryLog | None":
        with self.lock:
            self._drop_expired()
            return self._logs.get(stream_id)

    def _resize(self, log: "_MemoryLog", size: int) -> None:
        self.total_bytes += size - log.size
        log.size = size
        self._running.update(log.info.stream_id, size)

    def _shrink_largest(self, size: int) -> bool:
        """Free `size` bytes of the largest running log, or all; return whether it had any."""
        largest = self._logs.get(self._running.largest() or "")
        if largest is None or not largest.has_frames:
            return False
        if largest.can_shrink:
            largest.shrink(size)
            self._resize(largest, largest.measure())
        else:
            self.drop(largest)
        return True

    def _drop_name(self, log: "_MemoryLog") -> None:
        if self._names.get(log.name) == log.info.stream_id:
            del self._names[log.name]

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._ended:
            stream_id, expires_at = next(iter(self._ended.items()))
            if expires_at > now:
                return
            self.drop(self._logs[stream_id])

    def _arm(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Drop ended logs in time, even if the store is not used any more."""
        for other in [other for other in self._timers if other.is_closed()]:
            del self._timers[other]
        # In an empty context, so that the timer does not keep the current request alive.
        context = contextvars.Context()
        self._timers[loop] = loop.call_later(seconds, self._on_timer, loop, context=context)

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        with self.lock:
            self._timers.pop(loop, None)
            self._drop_expired()
            if self._ended:
                remaining = next(iter(self._ended.values())) - self._clock()
                self._arm(loop, max(remaining, _SOONEST_SECONDS))


class _MemoryLog:
    """One log. It calls its producer in the producer's event loop, and without the lock."""

    __slots__ = (
        "_fixed_size",
        "_frame",
        "_frames",
        "_has_readers",
        "_loop",
        "_producer",
        "_readers",
        "_state",
        "_store",
        "_waiting",
        "info",
        "name",
        "size",
    )

    def __init__(
        self, store: MemoryStore, info: LogInfo, producer: LogListener, frames: FrameBuffer
    ) -> None:
        self.info = info
        self.name = ""
        self.size = 0
        self._store = store
        self._frames = frames
        self._frame = b""
        self._state = LogState.RUNNING
        self._producer: LogListener | None = producer
        self._loop = asyncio.get_running_loop()
        self._has_readers = False  # as the producer was notified
        self._readers = 0
        self._waiting: dict[asyncio.Future[None], None] | None = None
        self._fixed_size = _LOG_BYTES + len(info.headers) + len(info.path) + len(info.origin)

    def append(self, first: int, data: bytes, count: int = 1) -> None:
        """Append the frames of `count` events from `first` on."""
        if not self._frames.maybe_append(first, data, count):
            self._append(first, data, count)
        if self._waiting:  # checked after the append; `growth` checks in the other order
            self._wake()

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept."""
        with self._store.lock:
            if self._state is LogState.RUNNING:
                self._frames.skip(seq)
                self._store.recount(self)
                self._wake()

    def end(self, state: LogState, frame: bytes = b"") -> None:
        """End the log, once."""
        with self._store.lock:
            if self._state is not LogState.RUNNING:
                return
            if state is LogState.GONE:
                self._store.drop(self)
                return
            self._state = state
            self._frame = frame
            self._producer = None
            self._frames.close()
            self._store.keep_ended(self)
            self._store.recount(self)
            self._wake()

    def use_app_ids(self) -> None:
        """Drop the events and end the log, because the app sets event ids itself."""
        with self._store.lock:
            if self._state is LogState.RUNNING:
                self._frames.drop_all()
                self.end(LogState.APP_OWNS_IDS)

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log."""
        with self._store.lock:
            if self._state is LogState.RUNNING:
                self._store.set_name(self, name)
                self.name = name
                self._store.recount(self)

    async def flush(self) -> None:
        """Return at once: the log is stored."""

    def snapshot(self) -> LogSnapshot:
        with self._store.lock:
            return LogSnapshot(
                self.info, self._state, self._frames.last, bool(self._frame), self._frames.first
            )

    def read(self, after: int) -> Batch | None:
        """Return the batch after the event `after`, `None` if there is none yet."""
        with self._store.lock:
            frames = self._frames
            if self._state in (LogState.GONE, LogState.APP_OWNS_IDS):
                return Batch(self._state, after, self._frame)
            if after < frames.first - 1:
                return Batch(LogState.TRUNCATED, frames.first - 1, b"")
            if after < frames.last:
                return Batch(LogState.RUNNING, *frames.read(after, _READ_BYTES))
            if self._state is LogState.RUNNING:
                return None
            return Batch(self._state, after, self._frame)

    async def growth(self, after: int) -> None:
        """Wait until the log has an event after the event `after`, or ends."""
        change = asyncio.get_running_loop().create_future()
        with self._store.lock:
            if self._waiting is None:
                self._waiting = {}
            self._waiting[change] = None
        try:
            if self.read(after) is None:  # another thread may have appended
                await change
        finally:
            with self._store.lock:
                if self._waiting is not None:
                    self._waiting.pop(change, None)

    def add_reader(self) -> None:
        with self._store.lock:
            self._readers += 1
        call_in(self._loop, self._notify_readers_changed)

    def remove_reader(self) -> None:
        with self._store.lock:
            self._readers -= 1
        call_in(self._loop, self._notify_readers_changed)

    def cancel(self) -> None:
        call_in(self._loop, self._notify_cancel)

    @property
    def has_frames(self) -> bool:
        return self._frames.first <= self._frames.last

    @property
    def can_shrink(self) -> bool:
        """Whether its events can be dropped: its producer appends in its event loop, unlocked."""
        return self._loop is running_loop() or self._loop.is_closed()

    def shrink(self, size: int) -> None:
        """Drop the oldest frames, so that at least `size` bytes are freed, or all."""
        self._frames.shrink(size)

    def drop(self) -> None:
        """Notify readers that the log is gone."""
        self._state = LogState.GONE
        self._frame = b""
        self._producer = None
        self._frames.close()
        self._frames.drop_all()
        self._wake()

    def measure(self) -> int:
        return self._fixed_size + self._frames.size + len(self._frame) + len(self.name)

    def _append(self, first: int, data: bytes, count: int) -> None:
        with self._store.lock:
            if self._state is LogState.RUNNING:
                self._frames.append(first, data, count)
                self._store.recount(self)

    def _wake(self) -> None:
        with self._store.lock:
            waiting, self._waiting = self._waiting, None
        for change in waiting or ():
            call_in(change.get_loop(), _set, change)

    def _notify_readers_changed(self) -> None:
        has_readers = self._readers > 0
        if self._producer is not None and has_readers is not self._has_readers:
            self._has_readers = has_readers
            self._producer.on_readers_changed(has_readers=has_readers)

    def _notify_cancel(self) -> None:
        if self._producer is not None:
            self._producer.on_cancel()


def _set(change: "asyncio.Future[None]") -> None:
    if not change.done():
        change.set_result(None)
