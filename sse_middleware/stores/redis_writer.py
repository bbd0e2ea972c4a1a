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

from sse_middleware.stores.base import Found, LogInfo, Producer, State
from sse_middleware.stores.entries import Entry, Known, Pending, pack_known
from sse_middleware.stores.redis_link import FAILURES, Command, Link, digest

logger = logging.getLogger("sse_middleware")

_FLUSH_SECONDS: Final = 0.05
_URGENT_SECONDS: Final = 0.005
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
        self, writer: "LogWriter", info: LogInfo, producer: Producer, pending: Pending
    ) -> None:
        self.info = info
        self.pending = pending
        self.name = ""
        self.state = State.RUNNING
        self.ended_at = 0.0
        self.has_news = False
        self.is_known = False
        self.has_entries = False
        self.claimed = ""
        self.renew_at = 0.0
        self._writer = writer
        self._producer: Producer | None = producer
        self._local_readers = 0
        self._remote_readers: dict[str, float] = {}
        self._told_followed = False

    @property
    def is_gone(self) -> bool:
        """Whether there is no such log any more."""
        return self.state is State.GONE

    @property
    def is_written(self) -> bool:
        """Whether Redis knows all of it."""
        return self.is_known and self.pending.is_empty

    @property
    def is_done(self) -> bool:
        """Whether it has ended, and Redis knows all of it."""
        return self.state is not State.RUNNING and self.is_written

    @property
    def is_followed(self) -> bool:
        """Whether anybody reads it."""
        return bool(self._local_readers or self._remote_readers)

    @property
    def readers_elsewhere(self) -> Iterable[str]:
        """The processes that read it."""
        return self._remote_readers

    def append(self, seq: int, frame: bytes) -> None:
        """Keep the frame of the event `seq`."""
        if self.state is State.RUNNING:
            self.pending.append(seq, frame)
            self._writer.write_soon(self, urgent=self.is_followed)

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept."""
        if self.state is State.RUNNING:
            self.pending.skip(seq)
            self._writer.write_soon(self, urgent=self.is_followed)

    def end(self, state: State, frame: bytes = b"") -> None:
        """End the log, once."""
        if self.state is State.RUNNING:
            self.state = state
            self.ended_at = time.monotonic()
            self.is_known = self.is_known and not self.is_gone
            self._producer = None
            self.pending.end(state, frame)
            self._writer.write_soon(self, urgent=self.is_followed)

    def disown(self) -> None:
        """Drop the events and end the log."""
        self.end(State.DISOWNED)

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log."""
        if self.state is State.RUNNING:
            self.name = digest(name)
            self.is_known = False
            self._writer.write_soon(self, urgent=True)

    async def flush(self) -> None:
        """Wait until Redis has the log as it is now, however long that takes."""
        while not (self.is_gone or self.is_written):  # noqa: ASYNC110 - once, at the very end
            await asyncio.sleep(_FLUSH_SECONDS / 5)

    def found(self) -> Found | None:
        """Return the log as it is, though Redis may not have heard of all of it yet."""
        if self.is_gone:
            return None
        pending = self.pending
        return Found(self.info, self.state, pending.last, pending.tells_end, pending.first)

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

    def take_entry(self, entry: Entry, answer: object) -> None:
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
            self._producer.on_followed(followed=self.is_followed)


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
        self, link: Link, ttl: float, has_news: Callable[[Iterable[RedisLog]], None]
    ) -> None:
        self._link = link
        self._keys = link.keys
        self._ttl = ttl
        self._lives = max(ttl, _RUNNING_SECONDS)
        self._has_news = has_news
        self._dirty: dict[RedisLog, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()

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
                while self._dirty and await self._write():
                    pass
        if self._dirty:
            logger.warning("%d logs could not be written to their end", len(self._dirty))

    async def _run(self) -> None:
        pause = 0.0
        try:
            while self._dirty:
                await (asyncio.sleep(pause) if pause else self._until_due())
                done = await self._write()
                pause = 0.0 if done else min(max(_FLUSH_SECONDS, 2 * pause), _LONGEST_PAUSE)
        finally:
            self._task = None

    async def _until_due(self) -> None:
        """Wait until the next flush is due: sooner where somebody waits for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS - _URGENT_SECONDS):
                await self._urgent.wait()
        await asyncio.sleep(_URGENT_SECONDS)
        self._urgent.clear()

    async def _write(self) -> bool:
        """Write what waits; tell whether Redis has taken it."""
        began = time.monotonic()
        logs = list(islice(self._dirty, _LOGS_AT_ONCE))
        for log in logs:
            del self._dirty[log]
        failure: BaseException | None = None
        try:
            for steps, is_atomic in self._trips(logs, began):
                failure = await self._take(steps, atomic=is_atomic) or failure
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

    async def _take(self, steps: Sequence[_Step], *, atomic: bool) -> BaseException | None:
        """Have Redis take some steps, and return why it has refused one."""
        answers = await self._link.write([step.command for step in steps], atomic=atomic)
        failure: BaseException | None = None
        for (_, learn), answer in zip(steps, answers, strict=True):
            if isinstance(answer, Exception) and _IS_THERE not in str(answer):
                failure = failure or answer
            elif learn is not None:
                learn(answer)
        return failure

    def _trips(self, logs: list[RedisLog], now: float) -> Iterator[tuple[Sequence[_Step], bool]]:
        """Return what is sent to Redis in one go, and whether that has to be atomic."""
        steps: list[_Step] = []
        beginnings: list[list[_Step]] = []
        if not all(log.is_known for log in logs):
            steps.append(_Step(self._link.lease_command()))  # or it is taken for lost
        for log in logs:
            if log.is_gone:
                steps += self._deletion(log)
                continue
            steps += self._naming(log, now)
            entries = log.pending.freeze()
            if entries and not log.has_entries:
                # XADD makes a key that lives for ever, and no command that sets its time with it.
                beginnings.append([*self._greeting(log, now), *self._entries(log, entries, now)])
            else:
                steps += self._greeting(log, now) if not log.is_known else ()
                steps += self._entries(log, entries, now)
        if steps:
            yield steps, False
        if self._link.is_cluster:
            yield from ((beginning, True) for beginning in beginnings)
        elif beginnings:
            yield [step for beginning in beginnings for step in beginning], True

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

    def _greeting(self, log: RedisLog, now: float) -> Iterator[_Step]:
        known = pack_known(Known(log.info, self._link.process, log.name))
        command = ("SET", self._keys.info(log.info.stream_id), known, "PX", self._time_of(log))
        yield _Step(command, partial(log.take_known, log.name, now + self._lives / 3))

    def _entries(self, log: RedisLog, entries: Sequence[Entry], now: float) -> Iterator[_Step]:
        key = self._keys.log(log.info.stream_id)
        create = () if not log.has_entries else ("NOMKSTREAM",)
        for entry in entries:
            command = ("XADD", key, *create, "MINID", entry.oldest, entry.id, *entry.fields)
            yield _Step(command, partial(log.take_entry, entry))
        if (entries and not log.has_entries) or self._is_due(log, now):
            take = partial(log.take_renewal, now + self._lives / 3)
            time_of = self._time_of(log)
            yield _Step(("PEXPIRE", self._keys.info(log.info.stream_id), time_of), take)
            if entries or log.has_entries:
                yield _Step(("PEXPIRE", key, time_of), take)

    def _is_due(self, log: RedisLog, now: float) -> bool:
        return now >= log.renew_at or self._ends(log)

    def _ends(self, log: RedisLog) -> bool:
        return log.state is not State.RUNNING and log.pending.is_on_its_way

    def _time_of(self, log: RedisLog) -> int:
        return _milliseconds(self._ttl if self._ends(log) else self._lives)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
