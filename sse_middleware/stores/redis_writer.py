"""The writer of one event loop: puts the logs of its streams into Redis, many at a time.

One task writes for all, while there is anything to be written. An entry is written again unchanged
until its outcome is known, and Redis takes each once. Streams are told nothing of any of it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from sse_middleware.stores.base import LogInfo, Producer, State
from sse_middleware.stores.entries import Entry, Kept, Pending, packed_info
from sse_middleware.stores.redis_link import Link, digest

logger = logging.getLogger("sse_middleware")

FLUSH_SECONDS: Final = 0.05
FOLLOWED_SECONDS: Final = 0.005
_PRESENCE_SECONDS: Final = 15.0
"""How long a reader in another process counts that has not said that it still is there."""
RUNNING_SECONDS: Final = 120.0
"""How long the log of a stream outlives a process that has died."""
_AT_ONCE: Final = 256
"""How many commands one pipeline has."""
_LONGEST_PAUSE: Final = 1.0
_PRESENT_ALREADY: Final = "equal or smaller"


class RedisLog:
    """The writer's side of one log; all of it happens in one event loop."""

    __slots__ = (
        "_kept",
        "_link",
        "_local_readers",
        "_producer",
        "_remote_readers",
        "_told_followed",
        "_writer",
        "exists",
        "expires_at",
        "info",
        "is_gone",
        "name",
        "pending",
        "state",
    )

    def __init__(
        self, writer: "LogWriter", info: LogInfo, producer: Producer, pending: Pending, kept: Kept
    ) -> None:
        self.info = info
        self.pending = pending
        self.name = ""
        self.state = State.RUNNING
        self.exists = False  # in Redis, as far as we know
        self.is_gone = False
        self.expires_at = 0.0
        self._kept = kept
        self._writer = writer
        self._producer: Producer | None = producer
        self._local_readers = 0
        self._remote_readers: dict[str, float] = {}
        self._told_followed = False

    @property
    def is_followed(self) -> bool:
        """Whether anybody reads it."""
        return bool(self._local_readers or self._remote_readers)

    @property
    def readers_elsewhere(self) -> tuple[str, ...]:
        """The processes that read it."""
        return tuple(self._remote_readers)

    def append(self, seq: int, frame: bytes) -> None:
        """Keep the frame of the event `seq`."""
        if self.state is State.RUNNING:
            self.pending.append(seq, frame)
            self._writer.write_soon(self)

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept."""
        if self.state is State.RUNNING:
            self.pending.skip(seq)

    def end(self, state: State, frame: bytes = b"") -> None:
        """End the log, once."""
        if self.state is not State.RUNNING:
            return
        self.state = state
        self._producer = None
        self.is_gone = state is State.GONE
        if not self.is_gone:
            self.pending.end(state, frame)
        self._writer.write_soon(self)

    def disown(self) -> None:
        """Drop the events and end the log."""
        if self.state is State.RUNNING:
            self.pending.clear()
            self.end(State.DISOWNED)

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log."""
        self.name = name
        self.exists = False  # so that it is written
        self._writer.write_soon(self)

    def cancel(self) -> None:
        """Let the producer hear that a reader wants the stream to end."""
        if self._producer is not None:
            self._producer.on_cancel()

    def join(self, process: str | None = None) -> None:
        """Take note of a reader, in this process or another one."""
        if process is None:
            self._local_readers += 1
        else:
            self._remote_readers[process] = time.monotonic() + _PRESENCE_SECONDS
        self._tell_followed()

    def leave(self, process: str | None = None) -> None:
        """Take note that a reader has left."""
        if process is None:
            self._local_readers -= 1
        else:
            self._remote_readers.pop(process, None)
        self._tell_followed()

    def look_for_readers(self, now: float) -> None:
        """Forget the processes that have not been heard of for long."""
        for process, until in list(self._remote_readers.items()):
            if until < now:
                self.leave(process)

    def oldest_to_keep(self, entry: Entry) -> int:
        """Return the number of the oldest event that is kept when `entry` is there."""
        if self.state is State.DISOWNED:
            return self.pending.last
        return self._kept.add(entry)

    def _tell_followed(self) -> None:
        if self._producer is not None and self.is_followed is not self._told_followed:
            self._told_followed = self.is_followed
            self._producer.on_followed(followed=self.is_followed)


class LogWriter:
    """Write logs.

    Args:
        link: to Redis.
        ttl: how long a log is kept behind its end, in seconds.
        has_news: is told of the logs that have grown.
    """

    def __init__(self, link: Link, ttl: float, has_news: Callable[[list[RedisLog]], None]) -> None:
        self._link = link
        self._ttl = ttl
        self._has_news = has_news
        self._dirty: dict[RedisLog, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()

    def write_soon(self, log: RedisLog) -> None:
        """Write what `log` has to be written."""
        self._dirty[log] = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        if log.is_followed:
            self._urgent.set()

    async def flush(self) -> None:
        """Write all that there is, for as long as Redis takes it."""
        while self._dirty and await self._write_all():
            pass

    async def close(self) -> None:
        """Write no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = FLUSH_SECONDS
        try:
            while self._dirty:
                await self._wait(pause)
                done = await self._write_all()
                pause = FLUSH_SECONDS if done else min(_LONGEST_PAUSE, 2 * pause)
        finally:
            self._task = None

    async def _wait(self, pause: float) -> None:
        """Wait until the next flush is due: sooner where somebody follows."""
        if pause > FLUSH_SECONDS:
            await asyncio.sleep(pause)
            return
        try:
            async with asyncio.timeout(pause):
                await self._urgent.wait()
            await asyncio.sleep(FOLLOWED_SECONDS)
        except TimeoutError:
            pass
        self._urgent.clear()

    async def _write_all(self) -> bool:
        """Write what waits; tell whether Redis has taken it."""
        began = time.monotonic()
        logs = list(self._dirty)[:_AT_ONCE]
        try:
            settled = [log for log in logs if log.exists and not self._ends(log)]
            await self._extend(settled, began)
            for log in logs:
                if log not in settled:
                    await self._begin_or_end(log, began)
        except (RedisError, OSError, TimeoutError) as exc:
            logger.debug("a flush has failed: %s", type(exc).__name__)
            self._link.failed("flush")
            return False
        for log in logs:
            if log.pending.is_empty:
                self._dirty.pop(log, None)
            else:  # behind the others
                self._dirty.pop(log, None)
                self._dirty[log] = None
        self._link.flushed(time.monotonic() - began)
        self._has_news(logs)
        return True

    @staticmethod
    def _ends(log: RedisLog) -> bool:
        entry = log.pending.next_entry()
        return log.is_gone or (entry is not None and (entry.ends or log.state is not State.RUNNING))

    async def _extend(self, logs: list[RedisLog], now: float) -> None:
        """Write the next entry of each log that is there already."""
        written: list[tuple[RedisLog, bool]] = []
        pipe = self._link.client.pipeline(transaction=False)
        for log in logs:
            entry = log.pending.next_entry()
            if entry is not None:
                self._xadd(pipe, log, entry, create=False)
                written.append((log, True))
            if now > log.expires_at - RUNNING_SECONDS * 2 / 3:
                for command in self._expiries(log, RUNNING_SECONDS):
                    pipe.pexpire(*command)
                    written.append((log, False))
                log.expires_at = now + RUNNING_SECONDS
        if not written:
            return
        answers = await pipe.execute(raise_on_error=False)
        failures = [
            failure
            for (log, is_entry), answer in zip(written, answers, strict=True)
            if is_entry and (failure := self._settle(log, answer)) is not None
        ]
        if failures:
            raise failures[0]

    @staticmethod
    def _settle(log: RedisLog, answer: object) -> RedisError | None:
        """Take note of what Redis says of an entry; return a failure."""
        if answer is None:  # the log has run out, or Redis has forgotten all: it is begun again
            log.exists = False
        elif not isinstance(answer, Exception) or _PRESENT_ALREADY in str(answer):
            log.pending.written()
        elif isinstance(answer, RedisError):
            return answer
        return None

    async def _begin_or_end(self, log: RedisLog, now: float) -> None:
        """Write the first or the last entries of a log, with the time it may live, as one."""
        keys, stream_id = self._link.keys, log.info.stream_id
        pipe = self._link.client.pipeline(transaction=True)
        if log.is_gone:
            pipe.delete(keys.log(stream_id), keys.info(stream_id))
            await pipe.execute()
            log.pending.clear()
            while log.pending.next_entry() is not None:
                log.pending.written()
            return
        entry = log.pending.next_entry()
        lives = self._ttl if entry is not None and entry.ends else RUNNING_SECONDS
        if not log.exists:
            info = packed_info(log.info, self._link.process)
            pipe.set(keys.info(stream_id), info, px=_milliseconds(lives))
        if entry is not None:
            self._xadd(pipe, log, entry, create=True)
        for key, milliseconds in self._expiries(log, lives):
            pipe.pexpire(key, milliseconds)
        try:
            await pipe.execute()
        except ResponseError as exc:
            if _PRESENT_ALREADY not in str(exc):
                raise
        if log.name:
            name, value = keys.name(digest(log.name)), stream_id
            await self._link.client.set(name, value, px=_milliseconds(lives))
        log.exists = True
        log.expires_at = now + lives
        if entry is not None:
            log.pending.written()

    def _xadd(self, pipe: Any, log: RedisLog, entry: Entry, *, create: bool) -> None:
        oldest = log.oldest_to_keep(entry)
        pipe.xadd(
            self._link.keys.log(log.info.stream_id),
            entry.fields,
            id=entry.id,
            nomkstream=not create,
            minid=oldest,
            approximate=False,
        )

    def _expiries(self, log: RedisLog, seconds: float) -> list[tuple[str, int]]:
        keys, stream_id = self._link.keys, log.info.stream_id
        return [
            (key, _milliseconds(seconds)) for key in (keys.log(stream_id), keys.info(stream_id))
        ]


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
