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

from sse_middleware.stores.base import LogState
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.redis.claims import Claims
from sse_middleware.stores.redis.client import FAILURES, is_cancelled
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.entries import LogEntry
from sse_middleware.stores.redis.log import FLUSH_SECONDS, RedisLog
from sse_middleware.stores.redis.metadata import pack_metadata
from sse_middleware.stores.redis.refusals import is_there
from sse_middleware.stores.redis.scripts import Command, append, milliseconds

logger = logging.getLogger("sse_middleware")

_URGENT_SECONDS: Final = 0.005
"""The least time between two writes; an event that a reader waits for is written this soon."""
_RUNNING_SECONDS: Final = 60.0
"""The least time for which a log outlives a process that has died."""
_MAX_LOGS: Final = 128
"""The most logs in one pipeline."""
_UNWRITTEN: Final = (
    "Redis store: it was closed before the last events of some logs (%d) were written. Clients "
    "that reconnect may miss them. Check whether Redis is in reach."
)


class _Step(NamedTuple):
    """One command of a flush; `on_answer` receives its answer."""

    command: Command
    on_answer: Callable[[object], None] | None = None


class LogWriter:
    """Write logs.

    Args:
        client: sends commands.
        claims: the claims to names, which end when a log has the name.
        ttl: how long a log is kept after its end, in seconds.
        on_written: receives the logs that were written.

    Attributes:
        claims: as given.
        unnamed: the latest log of each name that Redis does not have yet.
    """

    def __init__(
        self,
        client: CommandClient,
        claims: Claims,
        ttl: float,
        on_written: Callable[[Iterable[RedisLog]], None],
    ) -> None:
        self.claims = claims
        self.unnamed: dict[str, RedisLog] = {}
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
        log.forget_names(log.names)

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
            async with asyncio.timeout(FLUSH_SECONDS):
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
            if isinstance(answer, Exception) and not is_there(answer):
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
        for name, is_known in log.names.items():
            if not is_known:  # it leads to this log all the same, and so to none
                key, expiry = self._keys.name(self._client.seal(name)), self._running_ttl
                yield _Step(("SET", key, log.info.stream_id, "PX", milliseconds(expiry)))

    def _name_steps(self, log: RedisLog, now: float) -> Iterator[_Step]:
        """Register the names of a log, or renew them; the log that was named last has a name."""
        if log.is_registered and not self._is_due(log, now):
            return
        stream_id = log.info.stream_id
        expiry = milliseconds(max(self._running_ttl, log.info.keep_seconds or 0.0))
        for name, is_known in log.names.items():
            key = self._keys.name(self._client.seal(name))
            if is_known:
                yield _Step(("SET", key, stream_id, "PX", expiry, "NX"))
                yield _Step(("PEXPIRE", key, expiry))  # another log may have the name
            else:
                yield _Step(("SET", key, stream_id, "PX", expiry))

    def _register_step(self, log: RedisLog, now: float) -> _Step:
        client, names = self._client, tuple(log.names)
        sealed = [client.seal(name) for name in names]
        data = pack_metadata(log.info, client.process, sealed, client.secret.value)
        command = ("SET", self._keys.info(log.info.stream_id), data, "PX", self._expiry_of(log))
        return _Step(command, partial(log.on_registered, names, now + self._running_ttl / 3))

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
        seconds = log.info.seconds_kept(self._ttl) if self._ends(log) else self._running_ttl
        return milliseconds(seconds)
