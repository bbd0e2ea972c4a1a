"""The writer's side of one log in Redis: what is to be written, and what Redis has."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from sse_middleware.stores.base import Batch, LogInfo, LogListener, LogSnapshot, LogState
from sse_middleware.stores.redis.claims import Claims
from sse_middleware.stores.redis.entries import LogEntry, Pending
from sse_middleware.stores.redis.keys import digest

FLUSH_SECONDS: Final = 0.05
"""The longest time from an event to its write."""
PRESENCE_SECONDS: Final = 15.0
"""How long a process counts as a reader after its last message."""


class Writer(Protocol):
    """Writes logs to Redis.

    Attributes:
        claims: the claims to names, which end when a log has the name.
        unnamed: the latest log of each name that Redis does not have yet.
    """

    claims: Claims
    unnamed: "dict[str, RedisLog]"

    def schedule(self, log: "RedisLog", *, urgent: bool = False) -> None:
        """Write the pending entries of a log soon, and at once if it is urgent."""


class RedisLog:
    """The writer's side of one log, in one event loop.

    Attributes:
        info: the metadata of the stream.
        pending: the entries to be written.
        names: the digests of its names, and whether Redis has each of them.
        state: its state.
        ended_at: the time at which it ended.
        has_news: whether readers must be notified.
        is_registered: whether Redis has its metadata, and its names.
        has_entries: whether Redis has entries of it.
        reader_processes: the other processes that read it, and until when they count.
        renew_at: the time at which its expiry must be renewed.
        writes: the number of times at which Redis has taken entries, or lost them.
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
        "names",
        "pending",
        "reader_processes",
        "renew_at",
        "state",
        "writes",
    )

    def __init__(
        self, writer: Writer, info: LogInfo, producer: LogListener, pending: Pending
    ) -> None:
        self.info = info
        self.pending = pending
        self.names: dict[str, bool] = {}
        self.state = LogState.RUNNING
        self.ended_at = 0.0
        self.has_news = False
        self.is_registered = False
        self.has_entries = False
        self.renew_at = 0.0
        self.writes = 0
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

    def count_tokens(self, total: int) -> None:
        """Store the number of tokens together with the next event."""
        self.pending.tokens = total

    def end(self, state: LogState, frame: bytes = b"") -> None:
        """End the log, once."""
        if self.state is LogState.RUNNING:
            self.state = state
            self.ended_at = time.monotonic()
            self.is_registered = self.is_registered and not self.is_gone
            self._producer = None
            self.pending.end(state, frame)
            if self.is_gone:
                self.forget_names(self.names)
            # A reader must not wait for a log that has gone.
            self._writer.schedule(self, urgent=self.has_readers or self.is_gone)

    def use_app_ids(self) -> None:
        """Drop the events and end the log, because the app sets event ids itself."""
        self.end(LogState.APP_OWNS_IDS)

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log by a further name."""
        if self.state is LogState.RUNNING:
            self.names[digest(name)] = False
            self._writer.unnamed[digest(name)] = self
            self.is_registered = False
            self._writer.schedule(self, urgent=True)

    async def flush(self) -> None:
        """Wait until Redis has the whole log, without a timeout."""
        while not (self.is_gone or self.is_written):  # noqa: ASYNC110 - once per stream
            await asyncio.sleep(FLUSH_SECONDS / 5)

    def snapshot(self) -> LogSnapshot | None:
        """Return the current state of the log, which may be ahead of Redis."""
        if self.is_gone:
            return None
        last, has_end, first = self.pending.bounds()
        return LogSnapshot(self.info, self.state, last, has_end, first)

    def unwritten(self, after: int, *, is_next: bool = False) -> list[Batch] | None:
        """Return batches that Redis may not have yet, as `Pending.unwritten` does."""
        if self.state is not LogState.RUNNING and self.pending.is_empty:
            return None
        return self.pending.unwritten(after, is_next=is_next)

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

    def on_registered(self, names: Sequence[str], renew_at: float, _: object) -> None:
        """Record that Redis has its metadata, and these names."""
        self.is_registered = len(names) == len(self.names)
        self.names.update(dict.fromkeys(names, True))
        self.forget_names(names)
        self.renew_at = renew_at

    def forget_names(self, names: Iterable[str]) -> None:
        """Record that Redis has these names, or that this log has them no more."""
        for name in names:
            if self._writer.unnamed.get(name) is self:
                del self._writer.unnamed[name]
            self._writer.claims.settle(name, self.info.stream_id)

    def on_entry_written(self, entry: LogEntry, answer: object) -> None:
        """Record that Redis has an entry, or, by the answer `None`, that it has lost the log."""
        if answer is None:
            self.restart()
        else:
            self.pending.mark_written(entry)
            self.writes += 1
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
        self.forget_names(self.names)

    def restart(self) -> None:
        """Begin the log again, because Redis has lost it."""
        self.is_registered = self.has_entries = False
        self.pending.forget_written()
        self.writes += 1

    def _notify_readers_changed(self) -> None:
        has_readers = self.has_readers
        if self._producer is not None and has_readers is not self._notified_has_readers:
            self._notified_has_readers = has_readers
            self._producer.on_readers_changed(has_readers=has_readers)
