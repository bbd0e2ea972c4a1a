"""The writer of one event loop: writes the logs of its streams to Redis, many at a time.

One task writes all logs. An entry with an unknown outcome is written again; Redis takes it once.
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
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.redis.client import FAILURES, is_cancelled
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.entries import LogEntry, Pending
from sse_middleware.stores.redis.keys import digest
from sse_middleware.stores.redis.metadata import pack_metadata
from sse_middleware.stores.redis.scripts import Command, append, milliseconds

logger = logging.getLogger("sse_middleware")

_FLUSH_SECONDS: Final = 0.05
"""The longest time from an event to its write."""
_URGENT_SECONDS: Final = 0.005
"""The least time between two writes; an event that a reader waits for is written this soon."""
PRESENCE_SECONDS: Final = 15.0
"""How long a process counts as a reader after its last message."""
_RUNNING_SECONDS: Final = 60.0
"""The least time for which a log outlives a process that has died."""
_MAX_LOGS: Final = 128
"""The most logs in one pipeline."""
_UNWRITTEN: Final = (
    "Redis store: closed before the last events of %d logs were written. Clients that reconnect "
    "may miss them. Check whether Redis is in reach."
)
_IS_THERE: Final = "equal or smaller"
"""Part of the error with which Redis refuses an id that it has, or has had."""


class RedisLog:
    """The writer's side of one log, in one event loop.

    Attributes:
        info: the metadata of the stream.
        pending: the entries to be written.
        name: the digest of its name, `""` if it has none.
        state: its state.
        ended_at: the time at which it ended.
        has_news: whether readers must be notified.
        is_registered: whether Redis has its metadata, and its name if it has one.
        has_entries: whether Redis has entries of it.
        reader_processes: the other processes that read it, and until when they count.
        registered_name: the name under which Redis has it.
        renew_at: the time at which its expiry must be renewed.
    """

    __slots__ = (
        "_local_readers",
        "_notified_has_readers",
        "_producer",
        "_writer",
        "ended_at",
        "has_entries",
        "has_news",
        "info",
        "is_registered",
        "name",
        "pending",
        "reader_processes",
        "registered_name",
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
        self.is_registered = False
        self.has_entries = False
        self.registered_name = ""
        self.renew_at = 0.0
        self._writer = writer
        self._producer: LogListener | None = producer
        self._local_readers = 0
        self.reader_processes: dict[str, float] = {}
        self._notified_has_readers = False

    @property
    def is_gone(self) -> bool:
        """Whether the log was dropped."""
        return self.state is LogState.GONE

    @property
    def is_written(self) -> bool:
        """Whether Redis has all of it."""
        return self.is_registered and self.pending.is_empty

    @property
    def is_done(self) -> bool:
        """Whether it has ended and Redis has all of it."""
        return self.state is not LogState.RUNNING and self.is_written

    @property
    def has_readers(self) -> bool:
        """Whether it has readers."""
        return bool(self._local_readers or self.reader_processes)

    def append(self, first: int, data: bytes, count: int = 1) -> None:
        """Add the frames of `count` events from `first` on."""
        if self.state is LogState.RUNNING:
            self.pending.extend(first, data, count)
            self._writer.schedule(self, urgent=self.has_readers)

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept."""
        if self.state is LogState.RUNNING:
            self.pending.skip(seq)
            self._writer.schedule(self, urgent=self.has_readers)

    def end(self, state: LogState, frame: bytes = b"") -> None:
        """End the log, once."""
        if self.state is LogState.RUNNING:
            self.state = state
            self.ended_at = time.monotonic()
            self.is_registered = self.is_registered and not self.is_gone
            self._producer = None
            self.pending.end(state, frame)
            # A reader must not wait for a log that has gone.
            self._writer.schedule(self, urgent=self.has_readers or self.is_gone)

    def use_app_ids(self) -> None:
        """Drop the events and end the log, because the app sets event ids itself."""
        self.end(LogState.APP_OWNS_IDS)

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log."""
        if self.state is LogState.RUNNING:
            self.name = digest(name)
            self.is_registered = False
            self._writer.schedule(self, urgent=True)

    async def flush(self) -> None:
        """Wait until Redis has the whole log, without a timeout."""
        while not (self.is_gone or self.is_written):  # noqa: ASYNC110 - once per stream
            await asyncio.sleep(_FLUSH_SECONDS / 5)

    def snapshot(self) -> LogSnapshot | None:
        """Return the current state of the log, which may be ahead of Redis."""
        if self.is_gone:
            return None
        last, has_end, first = self.pending.bounds()
        return LogSnapshot(self.info, self.state, last, has_end, first)

    def cancel(self) -> None:
        """Notify the producer that a reader ends the stream."""
        if self._producer is not None:
            self._producer.on_cancel()

    def add_reader(self, process: str | None = None) -> None:
        """Count a reader in this process, or one or more in another process."""
        if process is None:
            self._local_readers += 1
        else:
            self.reader_processes[process] = time.monotonic() + PRESENCE_SECONDS
        self._notify_readers_changed()

    def remove_reader(self, process: str | None = None) -> None:
        """Remove a reader in this process, or those in another process."""
        if process is None:
            self._local_readers -= 1
        else:
            self.reader_processes.pop(process, None)
        self._notify_readers_changed()

    def expire_readers(self, now: float) -> None:
        """Remove the processes that have sent no message for long."""
        for process in [one for one, until in self.reader_processes.items() if until < now]:
            self.remove_reader(process)

    def on_registered(self, name: str, renew_at: float, _: object) -> None:
        """Record that Redis has its metadata, and this name."""
        self.is_registered = name == self.name
        self.registered_name = name
        self.renew_at = renew_at

    def on_entry_written(self, entry: LogEntry, answer: object) -> None:
        """Record that Redis has an entry, or, by the answer `None`, that it has lost the log."""
        if answer is None:
            self.restart()
        else:
            self.pending.mark_written(entry)
            self.has_entries = self.has_news = True

    def on_renewed(self, renew_at: float, answer: object) -> None:
        """Record that its expiry is renewed, or, by the answer 0, that Redis has lost it."""
        if answer:
            self.renew_at = renew_at
        else:
            self.restart()

    def on_deleted(self, _: object) -> None:
        """Record that Redis has deleted it."""
        self.is_registered = self.has_news = True

    def restart(self) -> None:
        """Begin the log again, because Redis has lost it."""
        self.is_registered = self.has_entries = False
        self.pending.forget_written()

    def _notify_readers_changed(self) -> None:
        has_readers = self.has_readers
        if self._producer is not None and has_readers is not self._notified_has_readers:
            self._notified_has_readers = has_readers
            self._producer.on_readers_changed(has_readers=has_readers)


class _Step(NamedTuple):
    """One command of a flush; `on_answer` receives its answer."""

    command: Command
    on_answer: Callable[[object], None] | None = None


class LogWriter:
    """Write logs.

    Args:
        client: sends commands.
        ttl: how long a log is kept after its end, in seconds.
        on_written: receives the logs that were written.
    """

    def __init__(
        self, client: CommandClient, ttl: float, on_written: Callable[[Iterable[RedisLog]], None]
    ) -> None:
        self._client = client
        self._keys = client.keys
        self._ttl = ttl
        self._running_ttl = max(ttl, _RUNNING_SECONDS)
        self._on_written = on_written
        self._dirty: dict[RedisLog, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()
        self._wrote_at = 0.0

    def schedule(self, log: RedisLog, *, urgent: bool = False) -> None:
        """Write the pending entries of a log soon, and at once if it is urgent."""
        self._dirty[log] = None
        if urgent:
            self._urgent.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def discard(self, log: RedisLog) -> None:
        """Stop to write a log."""
        self._dirty.pop(log, None)

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - what is left is logged
        """Write all pending entries within `timeout` seconds, and then no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._dirty and await self._write_all():
                    pass
        if self._dirty:
            logger.warning(_UNWRITTEN, len(self._dirty))

    async def _run(self) -> None:
        backoff, pause = Backoff(), 0.0
        try:
            while self._dirty and not is_cancelled():
                await (asyncio.sleep(pause) if pause else self._until_due())
                pause = 0.0 if await self._write_all() else backoff.next()
                backoff = backoff if pause else Backoff()
        finally:
            self._task = None

    async def _until_due(self) -> None:
        """Wait until the next flush is due; an urgent flush waits only for the previous one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._urgent.wait()
        await asyncio.sleep(max(0.0, self._wrote_at + _URGENT_SECONDS - time.monotonic()))
        self._urgent.clear()
        self._wrote_at = time.monotonic()

    async def _write_all(self) -> bool:
        """Write all pending entries; return whether Redis has taken them."""
        dirty = iter(list(self._dirty))
        while logs := list(islice(dirty, _MAX_LOGS)):
            if not await self._write(logs):
                return False
        return True

    async def _write(self, logs: Sequence[RedisLog]) -> bool:
        """Write some logs; return whether Redis has taken them."""
        began = time.monotonic()
        for log in logs:
            self._dirty.pop(log, None)
        try:
            if not all(log.is_registered for log in logs):
                await self._client.secret.load()
            failure: BaseException | None = await self._take(list(self._steps(logs, began)))
        except FAILURES as exc:
            failure = exc
        finally:
            for log in logs:
                if not log.is_written or (not log.is_gone and began >= log.renew_at):
                    self._dirty[log] = None  # after the others
        self._on_written(logs)
        if failure is None:
            self._client.flushed(time.monotonic() - began)
        else:
            self._client.failed("flush", failure)
            if sum(log.pending.take_dropped() for log in logs):
                self._client.failed("drop", failure)
        return failure is None

    async def _take(self, steps: Sequence[_Step]) -> BaseException | None:
        """Send the commands of some steps, and return the error of a refused one."""
        answers = await self._client.write([step.command for step in steps])
        failure: BaseException | None = None
        for (_, on_answer), answer in zip(steps, answers, strict=True):
            if isinstance(answer, Exception) and _IS_THERE not in str(answer):
                failure = failure or answer
            elif on_answer is not None:
                on_answer(answer)
        return failure

    def _steps(self, logs: Iterable[RedisLog], now: float) -> Iterator[_Step]:
        if not all(log.is_registered for log in logs):
            yield _Step(self._client.lease_command())  # otherwise a reader takes it for lost
        for log in logs:
            if log.is_gone:
                yield from self._delete_steps(log)
            else:
                entries = log.pending.freeze()
                yield from self._name_steps(log, now)
                if not log.is_registered or (entries and not log.has_entries):
                    yield self._register_step(log, now)
                yield from self._entry_steps(log, entries, now)

    def _delete_steps(self, log: RedisLog) -> Iterator[_Step]:
        for key in (self._keys.info(log.info.stream_id), self._keys.log(log.info.stream_id)):
            yield _Step(("DEL", key), log.on_deleted)

    def _name_steps(self, log: RedisLog, now: float) -> Iterator[_Step]:
        """Register the name of a log, or renew it; the log that was named last has it."""
        if not log.name or (log.is_registered and not self._is_due(log, now)):
            return
        key, expiry = self._keys.name(self._client.seal(log.name)), milliseconds(self._running_ttl)
        is_new = log.registered_name != log.name
        yield _Step(("SET", key, log.info.stream_id, "PX", expiry, *(() if is_new else ("NX",))))
        if not is_new:
            yield _Step(("PEXPIRE", key, expiry))  # another log may have the name

    def _register_step(self, log: RedisLog, now: float) -> _Step:
        client, name = self._client, self._client.seal(log.name)
        data = pack_metadata(log.info, client.process, name, client.secret.value)
        command = ("SET", self._keys.info(log.info.stream_id), data, "PX", self._expiry_of(log))
        return _Step(command, partial(log.on_registered, log.name, now + self._running_ttl / 3))

    def _entry_steps(
        self, log: RedisLog, entries: Sequence[LogEntry], now: float
    ) -> Iterator[_Step]:
        key, expiry = self._keys.log(log.info.stream_id), self._expiry_of(log)
        is_new = not log.has_entries
        for entry in entries:
            trim = ("MINID", entry.oldest) if entry.oldest else ()
            words: Command = (*trim, entry.id, *entry.fields)
            add = append(key, expiry, *words) if is_new else ("XADD", key, "NOMKSTREAM", *words)
            yield _Step(add, partial(log.on_entry_written, entry))
            is_new = False
        if self._is_due(log, now):
            on_answer = partial(log.on_renewed, now + self._running_ttl / 3)
            yield _Step(("PEXPIRE", self._keys.info(log.info.stream_id), expiry), on_answer)
            if entries or log.has_entries:
                yield _Step(("PEXPIRE", key, expiry), on_answer)

    def _is_due(self, log: RedisLog, now: float) -> bool:
        return now >= log.renew_at or self._ends(log)

    def _ends(self, log: RedisLog) -> bool:
        return log.state is not LogState.RUNNING and log.pending.is_in_flight

    def _expiry_of(self, log: RedisLog) -> str:
        return milliseconds(self._ttl if self._ends(log) else self._running_ttl)
