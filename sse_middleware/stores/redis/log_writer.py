"""The writer of one event loop: puts the logs of its streams into Redis, many at a time.

One task writes for all, while there is anything to be written. An entry is written again unchanged
until its outcome is known, and Redis takes each once. Streams are told nothing of any of it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from sse_middleware.stores.base import LogInfo, LogListener, LogSnapshot, LogState
from sse_middleware.stores.redis.client import FAILURES, is_to_end
from sse_middleware.stores.redis.commands import Command, CommandClient, append, digest
from sse_middleware.stores.redis.entries import Known, LogEntry, Pending, pack_known

logger = logging.getLogger("sse_middleware")

_FLUSH_SECONDS: Final = 0.05
"""How long an event waits at most."""
_URGENT_SECONDS: Final = 0.005
"""How long one does that somebody waits for: no longer than this behind the flush before."""
PRESENCE_SECONDS: Final = 15.0
"""How long a reader in another process counts that has not said that it still is there."""
_RUNNING_SECONDS: Final = 60.0
"""How long the log of a stream outlives a process that has died, at least."""
_LOGS_AT_ONCE: Final = 128
_LONGEST_PAUSE: Final = 1.0
_IS_THERE: Final = "equal or smaller"
"""What Redis says of an id that it has already, or had once."""


class RedisLog:
    """The writer's side of one log; all of it happens in one event loop.

    Attributes:
        info: what is known of the stream.
        pending: what is to be written.
        name: a digest of its name, `""` where it has none.
        state: how it is.
        ended_at: when it ended.
        has_news: whether its readers have to be told of something.
        is_known: whether Redis knows of it, and by its name if it has one.
        has_entries: whether Redis has entries of it.
        claimed: the name that it was found by.
        renew_at: when Redis has to be told to keep it.
    """

    __slots__ = (
        "_local_readers",
        "_producer",
        "_remote_readers",
        "_told_followed",
        "_writer",
        "claimed",
        "ended_at",
        "has_entries",
        "has_news",
        "info",
        "is_known",
        "name",
        "pending",
        "renew_at",
        "state",
    )

    def __init__(
        self, writer: "LogWriter", info: LogInfo, producer: LogListener, pending: Pending
    ) -> None:
        self.info = info
        self.pending = pending
        self.name = ""
        self.state = LogState.RUNNING
        self.ended_at = 0.0
        self.has_news = False
        self.is_known = False
        self.has_entries = False
        self.claimed = ""
        self.renew_at = 0.0
        self._writer = writer
        self._producer: LogListener | None = producer
        self._local_readers = 0
        self._remote_readers: dict[str, float] = {}
        self._told_followed = False

    @property
    def is_gone(self) -> bool:
        """Whether there is no such log any more."""
        return self.state is LogState.GONE

    @property
    def is_written(self) -> bool:
        """Whether Redis knows all of it."""
        return self.is_known and self.pending.is_empty

    @property
    def is_done(self) -> bool:
        """Whether it has ended, and Redis knows all of it."""
        return self.state is not LogState.RUNNING and self.is_written

    @property
    def is_followed(self) -> bool:
        """Whether anybody reads it."""
        return bool(self._local_readers or self._remote_readers)

    @property
    def readers_elsewhere(self) -> Iterable[str]:
        """The processes that read it."""
        return self._remote_readers

    def append(self, first: int, *frames: bytes) -> None:
        """Keep the frames of the events from `first` on."""
        if self.state is LogState.RUNNING:
            for seq, frame in enumerate(frames, first):
                self.pending.append(seq, frame)
            self._writer.write_soon(self, urgent=self.is_followed)

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept."""
        if self.state is LogState.RUNNING:
            self.pending.skip(seq)
            self._writer.write_soon(self, urgent=self.is_followed)

    def end(self, state: LogState, frame: bytes = b"") -> None:
        """End the log, once."""
        if self.state is LogState.RUNNING:
            self.state = state
            self.ended_at = time.monotonic()
            self.is_known = self.is_known and not self.is_gone
            self._producer = None
            self.pending.end(state, frame)
            # Whoever finds a log that has gone waits for nothing.
            self._writer.write_soon(self, urgent=self.is_followed or self.is_gone)

    def use_app_ids(self) -> None:
        """Drop the events and end the log."""
        self.end(LogState.APP_OWNS_IDS)

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log."""
        if self.state is LogState.RUNNING:
            self.name = digest(name)
            self.is_known = False
            self._writer.write_soon(self, urgent=True)

    async def flush(self) -> None:
        """Wait until Redis has the log as it is now, however long that takes."""
        while not (self.is_gone or self.is_written):  # noqa: ASYNC110 - once, at the very end
            await asyncio.sleep(_FLUSH_SECONDS / 5)

    def found(self) -> LogSnapshot | None:
        """Return the log as it is, though Redis may not have heard of all of it yet."""
        if self.is_gone:
            return None
        pending = self.pending
        return LogSnapshot(self.info, self.state, pending.last, pending.tells_end, pending.first)

    def cancel(self) -> None:
        """Let the producer hear that a reader wants the stream to end."""
        if self._producer is not None:
            self._producer.on_cancel()

    def join(self, process: str | None = None) -> None:
        """Take note of a reader, in this process or another one."""
        if process is None:
            self._local_readers += 1
        else:
            self._remote_readers[process] = time.monotonic() + PRESENCE_SECONDS
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

    def take_known(self, name: str, renew_at: float, _: object) -> None:
        """Take note that Redis knows of it, and by this name."""
        self.is_known = name == self.name
        self.claimed = name
        self.renew_at = renew_at

    def take_entry(self, entry: LogEntry, answer: object) -> None:
        """Take note of what Redis says of an entry."""
        if answer is None:
            self.forget()
        else:
            self.pending.written(entry)
            self.has_entries = self.has_news = True

    def take_renewal(self, renew_at: float, answer: object) -> None:
        """Take note that Redis keeps it, or does not have it."""
        if answer:
            self.renew_at = renew_at
        else:
            self.forget()

    def take_deletion(self, _: object) -> None:
        """Take note that Redis has deleted it."""
        self.is_known = self.has_news = True

    def forget(self) -> None:
        """Take note that Redis does not have it any more; it is begun again."""
        self.is_known = self.has_entries = False
        self.pending.forget()

    def _tell_followed(self) -> None:
        if self._producer is not None and self.is_followed is not self._told_followed:
            self._told_followed = self.is_followed
            self._producer.on_readers_changed(has_readers=self.is_followed)


class _Step(NamedTuple):
    """One command of a flush, and who learns from its answer."""

    command: Command
    learn: Callable[[object], None] | None = None


class LogWriter:
    """Write logs.

    Args:
        link: to Redis.
        ttl: how long a log is kept behind its end, in seconds.
        has_news: is told of the logs that were written.
    """

    def __init__(
        self, link: CommandClient, ttl: float, has_news: Callable[[Iterable[RedisLog]], None]
    ) -> None:
        self._link = link
        self._keys = link.keys
        self._ttl = ttl
        self._lives = max(ttl, _RUNNING_SECONDS)
        self._has_news = has_news
        self._dirty: dict[RedisLog, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()
        self._wrote_at = 0.0

    def write_soon(self, log: RedisLog, *, urgent: bool = False) -> None:
        """Write what `log` has to be written."""
        self._dirty[log] = None
        if urgent:
            self._urgent.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def forsake(self, log: RedisLog) -> None:
        """Do not write a log any more."""
        self._dirty.pop(log, None)

    async def close(self, patience: float) -> None:
        """Write all that there is, if Redis takes it, and then no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._dirty and await self._write_all():
                    pass
        if self._dirty:
            logger.warning("%d logs could not be written to their end", len(self._dirty))

    async def _run(self) -> None:
        pause = 0.0
        try:
            while self._dirty and not is_to_end():
                await (asyncio.sleep(pause) if pause else self._until_due())
                done = await self._write_all()
                pause = 0.0 if done else min(max(_FLUSH_SECONDS, 2 * pause), _LONGEST_PAUSE)
        finally:
            self._task = None

    async def _until_due(self) -> None:
        """Wait until the next flush is due: at once where somebody waits and the last is past."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._urgent.wait()
        await asyncio.sleep(max(0.0, self._wrote_at + _URGENT_SECONDS - time.monotonic()))
        self._urgent.clear()
        self._wrote_at = time.monotonic()

    async def _write_all(self) -> bool:
        """Write all that waits now; tell whether Redis has taken it."""
        waiting = iter(list(self._dirty))
        while logs := list(islice(waiting, _LOGS_AT_ONCE)):
            if not await self._write(logs):
                return False
        return True

    async def _write(self, logs: Sequence[RedisLog]) -> bool:
        """Write some logs; tell whether Redis has taken them."""
        began = time.monotonic()
        for log in logs:
            self._dirty.pop(log, None)
        failure: BaseException | None = None
        try:
            failure = await self._take(list(self._steps(logs, began)))
        except FAILURES as exc:
            failure = exc
        finally:
            for log in logs:
                if not log.is_written or (not log.is_gone and began >= log.renew_at):
                    self._dirty[log] = None  # behind the others
        self._has_news(logs)
        if failure is None:
            self._link.flushed(time.monotonic() - began)
        else:
            self._link.failed("flush", failure)
            if sum(log.pending.take_dropped() for log in logs):
                self._link.failed("drop", failure)
        return failure is None

    async def _take(self, steps: Sequence[_Step]) -> BaseException | None:
        """Have Redis take some steps, and return why it has refused one."""
        answers = await self._link.write([step.command for step in steps])
        failure: BaseException | None = None
        for (_, learn), answer in zip(steps, answers, strict=True):
            if isinstance(answer, Exception) and _IS_THERE not in str(answer):
                failure = failure or answer
            elif learn is not None:
                learn(answer)
        return failure

    def _steps(self, logs: Iterable[RedisLog], now: float) -> Iterator[_Step]:
        if not all(log.is_known for log in logs):
            yield _Step(self._link.lease_command())  # or it is taken for lost
        for log in logs:
            if log.is_gone:
                yield from self._deletion(log)
            else:
                entries = log.pending.freeze()
                yield from self._naming(log, now)
                if not log.is_known or (entries and not log.has_entries):
                    yield self._greeting(log, now)
                yield from self._entries(log, entries, now)

    def _deletion(self, log: RedisLog) -> Iterator[_Step]:
        for key in (self._keys.info(log.info.stream_id), self._keys.log(log.info.stream_id)):
            yield _Step(("DEL", key), log.take_deletion)

    def _naming(self, log: RedisLog, now: float) -> Iterator[_Step]:
        """Let the log be found by its name, and go on to be; the latest that was named counts."""
        if not log.name or (log.is_known and not self._is_due(log, now)):
            return
        key, lives = self._keys.name(log.name), _milliseconds(self._lives)
        is_new = log.claimed != log.name
        yield _Step(("SET", key, log.info.stream_id, "PX", lives, *(() if is_new else ("NX",))))
        if not is_new:
            yield _Step(("PEXPIRE", key, lives))  # never less than another one needs

    def _greeting(self, log: RedisLog, now: float) -> _Step:
        known = pack_known(Known(log.info, self._link.process, log.name))
        command = ("SET", self._keys.info(log.info.stream_id), known, "PX", self._time_of(log))
        return _Step(command, partial(log.take_known, log.name, now + self._lives / 3))

    def _entries(self, log: RedisLog, entries: Sequence[LogEntry], now: float) -> Iterator[_Step]:
        key, time_of = self._keys.log(log.info.stream_id), self._time_of(log)
        is_new = not log.has_entries
        for entry in entries:
            trim = ("MINID", entry.oldest) if entry.oldest else ()
            words: Command = (*trim, entry.id, *entry.fields)
            add = append(key, time_of, *words) if is_new else ("XADD", key, "NOMKSTREAM", *words)
            yield _Step(add, partial(log.take_entry, entry))
            is_new = False
        if self._is_due(log, now):
            take = partial(log.take_renewal, now + self._lives / 3)
            yield _Step(("PEXPIRE", self._keys.info(log.info.stream_id), time_of), take)
            if entries or log.has_entries:
                yield _Step(("PEXPIRE", key, time_of), take)

    def _is_due(self, log: RedisLog, now: float) -> bool:
        return now >= log.renew_at or self._ends(log)

    def _ends(self, log: RedisLog) -> bool:
        return log.state is not LogState.RUNNING and log.pending.is_on_its_way

    def _time_of(self, log: RedisLog) -> int:
        return _milliseconds(self._ttl if self._ends(log) else self._lives)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
