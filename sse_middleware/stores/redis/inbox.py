"""The part of the store in one event loop: its logs, its readers, and the inbox of its process.

Processes send each other messages, and each has one inbox: `follow` and `leave` (a process has
readers of a stream, or has none any more), `news` and `gone` (a stream has grown, or is gone),
`cancel` (a reader ends a stream). A lost message delays a reader by a second; no event is lost.
"""

import asyncio
import logging
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from sse_middleware.errors import StoreError
from sse_middleware.stores.base import Batch, LogSnapshot, LogState
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.redis.claims import Claims
from sse_middleware.stores.redis.client import FAILURES, is_cancelled
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.ended_logs import EndedLogs
from sse_middleware.stores.redis.entries import (
    batches,
    end_of,
    first_number,
    last_number,
    state_of,
)
from sse_middleware.stores.redis.log import PRESENCE_SECONDS, RedisLog
from sse_middleware.stores.redis.log_writer import LogWriter
from sse_middleware.stores.redis.messages import MessageSender
from sse_middleware.stores.redis.metadata import LogMetadata, unpack_metadata

logger = logging.getLogger("sse_middleware")

_LAST_WRITE_SECONDS: Final = 3.0
"""Bounds the write of all remaining events when the store is closed."""
LONGEST_PAUSE_SECONDS: Final = 0.25
"""Bounds the pause after a failed read of the inbox.

The next step renews the lease, and the logs are written again if Redis was restarted. `find` waits
for that, so this pause must be shorter than the sum of `FIND_PAUSES`.
"""
_GONE_SECONDS: Final = 1.0
"""How long a log that was there must be missing until a reader takes it for gone."""


class RedisSession:
    """The logs, the readers and the inbox of one event loop.

    Args:
        client: sends commands.
        ttl: how long a log is kept after its end, in seconds.

    Attributes:
        client: as given.
        claims: the claims of its streams to names.
        writer: writes the logs.
    """

    def __init__(self, client: CommandClient, ttl: float) -> None:
        self.client = client
        self.claims = Claims(client)
        self.writer = LogWriter(client, self.claims, ttl, self._on_written)
        self._ttl = ttl
        self._logs: dict[str, RedisLog] = {}  # those that this process writes
        self._readers: dict[str, set[asyncio.Event]] = {}  # of any log, by its stream
        self._producers: dict[str, str] = {}  # the processes that write the logs read here
        self._sender = MessageSender(client, self._on_refused)
        self._ended = EndedLogs(client, ttl, self._sender.enqueue)
        self._is_closed = False
        self._backoff = Backoff(longest=LONGEST_PAUSE_SECONDS)
        self._tasks: list[asyncio.Task[None]] = []

    def add_log(self, log: RedisLog) -> None:
        """Write a log until it has ended."""
        self.start()
        self._logs[log.info.stream_id] = log
        self.writer.schedule(log, urgent=True)

    def log(self, stream_id: str) -> RedisLog | None:
        """Return a log that this process writes, `None` for any other."""
        return self._logs.get(stream_id)

    async def find(self, stream_id: str, name: str = "") -> LogSnapshot | None:
        """Return a log, `None` if there is none, or none with this name, which is sealed."""
        log = self._logs.get(stream_id)
        if log is not None:
            sealed = ["", *map(self.client.seal, log.names)]
            return log.snapshot() if name in sealed else None
        keys = self.client.keys
        data, oldest, newest = await self.client.query(
            "find",
            ("GET", keys.info(stream_id)),
            ("XRANGE", keys.log(stream_id), "-", "+", "COUNT", "1"),
            ("XREVRANGE", keys.log(stream_id), "+", "-", "COUNT", "1"),
        )
        metadata = self._parse_metadata(data)
        if metadata is None or name not in ("", *metadata.names):
            return None
        last, first, state, frame = 0, 1, LogState.RUNNING, b""
        with _own_format_only():
            for entry_id, fields in newest:
                last = last_number(entry_id)
                state = state_of(fields)
                frame = fields.get(b"e", b"")
            for entry_id, fields in oldest:
                first = first_number(entry_id, fields)
        if state is LogState.RUNNING and not await self._is_alive(metadata.process):
            state = LogState.LOST
        identity_key = await self.client.load_secret()
        return LogSnapshot(metadata.info, state, last, bool(frame), first, identity_key)

    async def find_named(self, name: str) -> LogSnapshot | None:
        """Return the latest log of a name, by the name's digest, `None` if there is none."""
        if (log := self.writer.unnamed.get(name)) is not None:
            return log.snapshot()
        await self.client.load_secret()
        sealed = self.client.seal(name)
        (stream_id,) = await self.client.query("find", ("GET", self.client.keys.name(sealed)))
        with _own_format_only():
            decoded = None if stream_id is None else stream_id.decode("ascii")
        return None if decoded is None else await self.find(decoded, sealed)

    async def exists(self, stream_id: str) -> bool:
        """Return whether there is a log; it takes one query, and `find` takes three."""
        return await self.producer_process(stream_id) is not None

    async def producer_process(self, stream_id: str) -> str | None:
        """Return the process that writes a log, `None` if there is no such log."""
        log = self._logs.get(stream_id)
        if log is not None:
            return None if log.is_gone else self.client.process
        (data,) = await self.client.query("follow", ("GET", self.client.keys.info(stream_id)))
        metadata = self._parse_metadata(data)
        return None if metadata is None else metadata.process

    async def read(self, stream_id: str, after: int, count: int) -> tuple[list[Batch], bool]:
        """Return the batches after the event `after`, and whether there may be more.

        Args:
            stream_id: of which stream.
            after: the number of the last event that the reader has.
            count: the number of entries to read.
        """
        query = ("XRANGE", self.client.keys.log(stream_id), f"({after}-0", "+", "COUNT", str(count))
        (entries,) = await self.client.query("follow", query)
        with _own_format_only():
            return list(batches(entries, after)), len(entries) == count

    async def find_end(
        self, stream_id: str, process: str, after: int
    ) -> tuple[Batch | None, float]:
        """Return the end of a log that does not grow, `None` if it may still grow.

        The second value is the time in seconds for which the end must stay the same before a
        reader may believe it.
        """
        keys = self.client.keys
        # Checked before the query: the log may end while the answer is in flight.
        was_running = stream_id in self._logs or stream_id in self._producers
        exists, newest = await self.client.query(
            "follow",
            ("EXISTS", keys.info(stream_id)),
            ("XREVRANGE", keys.log(stream_id), "+", "-", "COUNT", "1"),
        )
        with _own_format_only():
            for entry_id, fields in newest:
                if (end := end_of(entry_id, fields, after)) is not None:
                    return end, 0.0
        if stream_id in self._logs:
            return None, 0.0
        if not exists:  # or Redis was emptied, and the producer will write the log again
            return Batch(LogState.GONE, after, b""), _GONE_SECONDS if was_running else 0.0
        if not await self._is_alive(process):
            return Batch(LogState.LOST, after, b""), self.client.lease_seconds / 5
        if was_running or (process == self.client.process and await self._restore(stream_id)):
            return None, 0.0
        return Batch(LogState.LOST, after, b""), _GONE_SECONDS  # its process has no such log

    async def _restore(self, stream_id: str) -> bool:
        """Write the end of a log of this process again; return whether Redis has it."""
        try:
            return await self._ended.restore(stream_id)
        except FAILURES as exc:
            raise StoreError(f"follow: {type(exc).__name__}") from exc

    def check_reader(self, stream_id: str) -> None:
        """Check that a reader without news may still get some.

        Raises:
            StoreError: the store is closed; or Redis takes no writes, so that it has no new events
                of other processes.
        """
        if self._is_closed:
            raise StoreError("the store is closed")
        refusal = self._sender.refusal
        if refusal is not None and stream_id in self._producers:
            raise StoreError(f"Redis takes no writes: {type(refusal).__name__}")

    def add_reader(self, stream_id: str, process: str) -> asyncio.Event:
        """Count a reader, and return the event that is set if the log may have grown."""
        self.start()
        news = asyncio.Event()
        readers = self._readers.setdefault(stream_id, set())
        readers.add(news)
        if (log := self._logs.get(stream_id)) is not None:
            log.add_reader()
        elif process != self.client.process and stream_id not in self._producers:
            self._producers[stream_id] = process
            self._sender.refusal = None  # until this message is refused too
            self._sender.enqueue(process, "follow", stream_id)
        return news

    def remove_reader(self, stream_id: str, news: asyncio.Event) -> None:
        """Remove a reader."""
        readers = self._readers[stream_id]
        readers.discard(news)
        if not readers:
            del self._readers[stream_id]
        if (log := self._logs.get(stream_id)) is not None:
            log.remove_reader()
        elif not readers and (process := self._producers.pop(stream_id, None)) is not None:
            self._sender.enqueue(process, "leave", stream_id)

    async def cancel(self, stream_id: str) -> bool:
        """Ask the producer of a stream to end it; return `False` if there is no such log."""
        process = await self.producer_process(stream_id)
        if process is None:
            return False
        if process == self.client.process:
            self._on_message("cancel", stream_id, process)
        else:
            message = self.client.message_command(process, f"cancel {stream_id}")
            (message_id,) = await self.client.query("cancel", message)
            if message_id is None and await self._is_alive(process):
                raise StoreError("the process that writes the stream has no inbox at the moment")
        return True

    async def close(self) -> None:
        """Write all remaining events, and close all connections."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.client.listener.set("")
        await self.writer.close(_LAST_WRITE_SECONDS)
        await self.claims.close()
        await self._ended.close()
        await self._sender.wait()
        await self.client.close()

    # The inbox

    def start(self) -> None:
        """Hold the lease of this process, and read its inbox, from now on."""
        if not self._tasks:
            self.client.start_lease()
            loop = asyncio.get_running_loop()
            for step in (self._read_inbox, self._maintain):
                self._tasks.append(loop.create_task(self._repeat(step)))

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while not is_cancelled():
            try:
                await step()
            except Exception:
                logger.exception("Redis store: an unexpected error. The store continues.")
                await asyncio.sleep(self._backoff.next())

    async def _read_inbox(self) -> None:
        try:
            messages = await self.client.read_inbox()
        except FAILURES as exc:
            self.client.listener.set("down")
            self.client.failed("inbox", exc)
            await asyncio.sleep(self._backoff.next())
            self.client.renew_lease()
            return
        self._backoff.reset()
        self.client.listener.set("up")
        for fields in messages:
            process = fields.get(b"p", b"").decode()
            words = fields[b"w"].decode().split()
            if words == ["hello"]:
                self._on_new_inbox()
            for kind, stream_id in zip(words[::2], words[1::2], strict=False):
                self._on_message(kind, stream_id, process)

    def _on_message(self, kind: str, stream_id: str, process: str) -> None:
        log = self._logs.get(stream_id)
        if kind == "news":
            self._wake_readers(stream_id)
        elif kind == "gone":
            if self._producers.get(stream_id) == process:
                del self._producers[stream_id]
                self._wake_readers(stream_id)
        elif log is None:
            if kind == "follow":  # the log has ended or gone since that process found it
                self._ended.on_follow(process, stream_id)
        elif kind == "follow":
            log.add_reader(process)
        elif kind == "leave":
            log.remove_reader(process)
        elif kind == "cancel":
            log.cancel()

    def _on_new_inbox(self) -> None:
        """Check all logs and readers: messages were lost if Redis or the inbox is new."""
        self.client.secret.expire()
        for log in self._logs.values():
            log.renew_at = 0.0
            self.writer.schedule(log)
        for stream_id in self._readers:
            self._wake_readers(stream_id)
        self._announce_readers()

    def _wake_readers(self, stream_id: str) -> None:
        for news in self._readers.get(stream_id, ()):
            news.set()

    def _on_written(self, logs: Iterable[RedisLog]) -> None:
        """Notify readers, here and in other processes, of logs that may have grown."""
        for log in logs:
            stream_id = log.info.stream_id
            self._wake_readers(stream_id)  # readers here get entries that Redis has refused too
            if log.has_news:
                log.has_news = False
                for process in log.reader_processes:
                    self._sender.enqueue(process, "gone" if log.is_gone else "news", stream_id)
            if log.is_done and self._logs.pop(stream_id, None) is not None:
                self._ended.add(log)

    def _on_refused(self) -> None:
        """Wake the readers of other processes' logs: Redis takes no writes at the moment."""
        for stream_id in self._producers:
            self._wake_readers(stream_id)

    async def _maintain(self) -> None:
        """Announce readers again, renew running logs, and drop those that cannot be written."""
        await asyncio.sleep(PRESENCE_SECONDS / 3)
        self._announce_readers()
        now = time.monotonic()
        self._ended.drop_expired(now)
        for stream_id, log in list(self._logs.items()):
            log.expire_readers(now)
            if log.state is not LogState.RUNNING and now > log.ended_at + self._ttl:
                self.writer.discard(log)
                del self._logs[stream_id]
            elif now >= log.renew_at:
                self.writer.schedule(log)

    def _announce_readers(self) -> None:
        for stream_id, process in self._producers.items():
            self._sender.enqueue(process, "follow", stream_id)

    def _parse_metadata(self, data: bytes | None) -> LogMetadata | None:
        if data is None:
            if self.client.may_be_incomplete:
                raise StoreError("Redis has no such log, but was out of reach a moment ago")
            return None
        with _own_format_only():
            return unpack_metadata(data)

    async def _is_alive(self, process: str) -> bool:
        if process == self.client.process:
            return True
        (exists,) = await self.client.query("follow", ("EXISTS", self.client.keys.lease(process)))
        if not exists:  # that proves nothing if Redis refuses to renew leases
            await self.client.query("follow", self.client.lease_command())
        return bool(exists)


@contextmanager
def _own_format_only() -> Iterator[None]:
    """Reject data that another version may have written.

    Raises:
        StoreError: its format is unknown.
    """
    try:
        yield
    except (ValueError, KeyError, struct.error) as exc:
        raise StoreError(f"Redis contains data in an unknown format: {exc}") from exc
