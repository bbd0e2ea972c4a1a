"""The store in the memory of one process, with limits for each stream and for all together.

Ended logs are dropped after their time, or earlier if memory is short, the oldest first. If no log
has ended, the largest one loses its oldest events, so that large streams do not affect small ones.
All event loops may use the store, also those of different threads.
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncGenerator, Callable

from sse_middleware._once import call_in, running_loop
from sse_middleware.stores.base import Batch, Log, LogInfo, LogListener, LogSnapshot, LogState
from sse_middleware.stores.bounds import check_bounds
from sse_middleware.stores.expiries import Expiries
from sse_middleware.stores.frame_buffer import FrameBuffer
from sse_middleware.stores.memory_log import MemoryLog
from sse_middleware.stores.size_ranking import SizeRanking

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

    Raises:
        ConfigurationError: a bound is no number, or negative.

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
        bounds = {"max_events": max_events, "max_bytes": max_bytes, "ttl": ttl}
        check_bounds(bounds | {"max_total_bytes": max_total_bytes})
        self.total_bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._ttl = ttl
        self._clock = clock
        self._logs: dict[str, MemoryLog] = {}
        self._names: dict[str, str] = {}
        self._claims: dict[str, str] = {}
        self._ended = Expiries()
        self._ranking = SizeRanking(self._measure_running)
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
        log = MemoryLog(self, info, producer, frames)
        with self.lock:
            self._drop_expired()
            if (earlier := self._logs.get(info.stream_id)) is not None:
                self.drop(earlier)
            self._logs[info.stream_id] = log
            self.total_bytes += log.size
            if self.total_bytes > self._max_total_bytes or self._ranking.is_active:
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
        tokens = 0
        try:
            while True:
                batch = log.read(after, tokens)
                if batch is None:
                    await log.growth(after, tokens)
                    continue
                yield batch
                after, tokens = batch.last, batch.tokens or tokens
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

    async def claim(self, name: str, stream_id: str) -> str:
        """Claim a name for a stream that may open, and return the stream that has the claim."""
        with self.lock:
            return self._claims.setdefault(name, stream_id)

    async def claimant(self, name: str) -> str | None:
        """Return the stream that has the claim to a name, `None` if none has."""
        return self._claims.get(name)

    def release(self, name: str, stream_id: str) -> None:
        """Give up the claim of a stream to a name, if it has it."""
        with self.lock:
            if self._claims.get(name) == stream_id:
                del self._claims[name]

    async def close(self) -> None:
        """Cancel the timers."""
        with self.lock:
            timers, self._timers = self._timers, {}
        for loop, timer in timers.items():
            call_in(loop, timer.cancel)

    # The methods below are called by logs, which hold the lock.

    def recount(self, log: MemoryLog) -> None:
        """Measure a log again, and drop data over the limit."""
        self._resize(log, log.measure())
        while self.total_bytes > self._max_total_bytes and log.info.stream_id in self._logs:
            if self._ended:
                self.drop(self._logs[self._ended.next()[0]])
            elif not self._shrink_largest(self.total_bytes - self._max_total_bytes):
                self.drop(log)

    def set_name(self, log: MemoryLog, name: str) -> None:
        """Let a log be found by a further name, and end a claim to it."""
        self._names[name] = log.info.stream_id
        self._claims.pop(name, None)

    def keep_ended(self, log: MemoryLog) -> None:
        """Keep an ended log until its expiry."""
        seconds = log.info.seconds_kept(self._ttl)
        self._ended.add(log.info.stream_id, seconds, self._clock())
        loop = running_loop()
        if loop is not None and loop not in self._timers:
            self._arm(loop, seconds)

    def drop(self, log: MemoryLog) -> None:
        """Drop a log."""
        if self._logs.get(log.info.stream_id) is not log:
            return
        del self._logs[log.info.stream_id]
        self._ended.discard(log.info.stream_id, log.info.seconds_kept(self._ttl))
        for name in log.names:
            if self._names.get(name) == log.info.stream_id:
                del self._names[name]
        self._resize(log, 0)
        log.drop()

    def _find(self, stream_id: str) -> MemoryLog | None:
        with self.lock:
            self._drop_expired()
            return self._logs.get(stream_id)

    def _resize(self, log: MemoryLog, size: int) -> None:
        self.total_bytes += size - log.size
        log.size = size
        if self._ranking.is_active:
            self._ranking.update(log.info.stream_id, size if log.state is LogState.RUNNING else 0)

    def _shrink_largest(self, size: int) -> bool:
        """Free `size` bytes of the largest running log, or all; return whether it had any."""
        largest = self._logs.get(self._ranking.largest() or "")
        if largest is None or not largest.has_frames:
            return False
        if largest.can_shrink:
            largest.shrink(size)
            self._resize(largest, largest.measure())
        else:
            self.drop(largest)
        return True

    def _measure_running(self) -> dict[str, int]:
        return {
            stream_id: log.size
            for stream_id, log in self._logs.items()
            if log.state is LogState.RUNNING
        }

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._ended.earliest <= now:
            stream_id, expires_at = self._ended.next()
            if expires_at <= now:
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
                remaining = self._ended.earliest - self._clock()
                self._arm(loop, max(remaining, _SOONEST_SECONDS))
