"""What one event loop has of the store in Redis: its logs, its readers, and its inbox.

Processes tell each other by inboxes, one for each: that a stream is followed, that it has grown,
that it is to end. A message that is lost costs a reader a second and nobody an event.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from sse_middleware.errors import StoreError
from sse_middleware.stores.base import Batch, LogSnapshot, LogState
from sse_middleware.stores.redis.client import FAILURES, is_to_end
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.entries import (
    Known,
    batches,
    end_told,
    first_of,
    last_of,
    unpack_known,
)
from sse_middleware.stores.redis.log_writer import PRESENCE_SECONDS, LogWriter, RedisLog

logger = logging.getLogger("sse_middleware")

_PAUSE_SECONDS: Final = 0.25
_CLOSING_SECONDS: Final = 3.0
_GONE_SECONDS: Final = 1.0


class RedisSession:
    """What one event loop has of the store: its link, its writer, its readers and its inbox.

    Attributes:
        link: to Redis.
        writer: writes the logs.
    """

    def __init__(self, link: CommandClient, ttl: float) -> None:
        self.link = link
        self.writer = LogWriter(link, ttl, self._on_written)
        self._ttl = ttl
        self._logs: dict[str, RedisLog] = {}  # that are written here
        self._readers: dict[str, set[asyncio.Event]] = {}  # of any log, by its stream
        self._producers: dict[str, str] = {}  # the process that writes what is read here
        self._mail: dict[str, list[str]] = {}  # what is to be told to which process
        self._postman: asyncio.Task[None] | None = None
        self._place = b"0-0"  # in the inbox
        self._tasks: list[asyncio.Task[None]] = []

    def keep(self, log: RedisLog) -> None:
        """Write a log until it has ended."""
        self._attend()
        self._logs[log.info.stream_id] = log
        self.writer.write_soon(log, urgent=True)

    def log(self, stream_id: str) -> RedisLog | None:
        """Return a log that is written here, `None` where it is not."""
        return self._logs.get(stream_id)

    async def find(self, stream_id: str, name: str = "") -> LogSnapshot | None:
        """Return a log as it is, `None` where there is none, or not by that name."""
        log = self._logs.get(stream_id)
        if log is not None:
            return log.found() if name in ("", log.name) else None
        keys = self.link.keys
        data, oldest, newest = await self.link.ask(
            "find",
            ("GET", keys.info(stream_id)),
            ("XRANGE", keys.log(stream_id), "-", "+", "COUNT", 1),
            ("XREVRANGE", keys.log(stream_id), "+", "-", "COUNT", 1),
        )
        known = self._known(data)
        if known is None or name not in ("", known.name):
            return None
        last, first, state, frame = 0, 1, LogState.RUNNING, b""
        with _ours_only():
            for entry_id, fields in newest:
                last = last_of(entry_id)
                state, frame = (
                    LogState(fields.get(b"s", b"running").decode()),
                    fields.get(b"e", b""),
                )
            for entry_id, fields in oldest:
                first = first_of(entry_id, fields)
        if state is LogState.RUNNING and not await self._lives(known.process):
            state = LogState.LOST
        return LogSnapshot(known.info, state, last, bool(frame), first)

    async def find_named(self, name: str) -> LogSnapshot | None:
        """Return the latest log of a name, by its digest, `None` where there is none."""
        (stream_id,) = await self.link.ask("find", ("GET", self.link.keys.name(name)))
        return None if stream_id is None else await self.find(stream_id.decode(), name)

    async def producer_of(self, stream_id: str) -> str | None:
        """Return the process that writes a log, `None` where there is no such log."""
        log = self._logs.get(stream_id)
        if log is not None:
            return None if log.is_gone else self.link.process
        (data,) = await self.link.ask("follow", ("GET", self.link.keys.info(stream_id)))
        known = self._known(data)
        return None if known is None else known.process

    async def read(self, stream_id: str, after: int, count: int) -> tuple[list[Batch], bool]:
        """Return what stands behind the event `after`, and whether there is more.

        Args:
            stream_id: of which stream.
            after: the event that the reader has last.
            count: how many entries are read.
        """
        question = ("XRANGE", self.link.keys.log(stream_id), f"({after}-0", "+", "COUNT", count)
        (entries,) = await self.link.ask("follow", question)
        with _ours_only():
            return list(batches(entries, after)), len(entries) == count

    async def look_for_end(
        self, stream_id: str, process: str, after: int
    ) -> tuple[Batch | None, float]:
        """Return why nothing comes any more, `None` where something may.

        And for how many seconds that has to be so until it is beyond doubt.
        """
        keys = self.link.keys
        # As it is now, and not when the answer has come: it may be written to its end meanwhile.
        is_written_yet = stream_id in self._logs or stream_id in self._producers
        exists, newest = await self.link.ask(
            "follow",
            ("EXISTS", keys.info(stream_id)),
            ("XREVRANGE", keys.log(stream_id), "+", "-", "COUNT", 1),
        )
        with _ours_only():
            for entry_id, fields in newest:
                if (end := end_told(entry_id, fields, after)) is not None:
                    return end, 0.0
        if stream_id in self._logs:
            return None, 0.0
        if not exists:  # or Redis was emptied, and the producer is about to write all again
            return Batch(LogState.GONE, after, b""), _GONE_SECONDS if is_written_yet else 0.0
        if not await self._lives(process):
            return Batch(LogState.LOST, after, b""), self.link.lease_seconds / 5
        return None, 0.0

    def join(self, stream_id: str, process: str) -> asyncio.Event:
        """Take note of a reader, and return what is set when there may be more for it."""
        self._attend()
        news = asyncio.Event()
        readers = self._readers.setdefault(stream_id, set())
        readers.add(news)
        if (log := self._logs.get(stream_id)) is not None:
            log.join()
        elif process != self.link.process and stream_id not in self._producers:
            self._producers[stream_id] = process
            self._tell(process, "follow", stream_id)
        return news

    def leave(self, stream_id: str, news: asyncio.Event) -> None:
        """Take note that a reader has left."""
        readers = self._readers[stream_id]
        readers.discard(news)
        if not readers:
            del self._readers[stream_id]
        if (log := self._logs.get(stream_id)) is not None:
            log.leave()
        elif not readers and (process := self._producers.pop(stream_id, None)) is not None:
            self._tell(process, "leave", stream_id)

    async def cancel(self, stream_id: str) -> bool:
        """Tell the producer of a stream to end it; `False` where there is no such log."""
        process = await self.producer_of(stream_id)
        if process is None:
            return False
        if process == self.link.process:
            self._hear("cancel", stream_id, process)
        else:
            message = self.link.message_to(process, f"cancel {stream_id}")
            (heard,) = await self.link.ask("cancel", message)
            if heard is None and await self._lives(process):
                raise StoreError("the process that writes the stream has no inbox at the moment")
        return True

    async def close(self) -> None:
        """Write what there is, and let go of all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.writer.close(_CLOSING_SECONDS)
        if self._postman is not None:
            await self._postman
        await self.link.close()

    # The inbox

    def _attend(self) -> None:
        """Listen to other processes from now on, and let them know of this one."""
        if not self._tasks:
            self.link.hold_lease()
            loop = asyncio.get_running_loop()
            for step in (self._listen, self._keep_touch):
                self._tasks.append(loop.create_task(self._go_on(step)))

    async def _go_on(self, step: Callable[[], Awaitable[None]]) -> None:
        while not is_to_end():
            try:
                await step()
            except Exception:
                logger.exception("the store in Redis goes on, whatever this was")
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _listen(self) -> None:
        try:
            messages = await self.link.read_inbox(self._place)
        except FAILURES as exc:
            self.link.failed("inbox", exc)
            await asyncio.sleep(_PAUSE_SECONDS)
            self.link.renew_lease()
            return
        for message_id, fields in messages:
            self._place = message_id
            process = fields.get(b"p", b"").decode()
            words = fields[b"w"].decode().split()
            if words == ["hello"]:
                self._restore()
            for what, stream_id in zip(words[::2], words[1::2], strict=False):
                self._hear(what, stream_id, process)

    def _hear(self, what: str, stream_id: str, process: str) -> None:
        log = self._logs.get(stream_id)
        if what == "news":
            self._wake(stream_id)
        elif what == "gone":
            if self._producers.get(stream_id) == process:
                del self._producers[stream_id]
                self._wake(stream_id)
        elif log is None:
            if what == "follow":  # it has gone since that process found it
                self._tell(process, "gone", stream_id)
        elif what == "follow":
            log.join(process)
        elif what == "leave":
            log.leave(process)
        elif what == "cancel":
            log.cancel()

    def _restore(self) -> None:
        """Look after all, since Redis had no inbox for what was told us: it is new, or Redis is."""
        for log in self._logs.values():
            log.renew_at = 0.0
            self.writer.write_soon(log)
        for stream_id in self._readers:
            self._wake(stream_id)
        self._show_presence()

    def _wake(self, stream_id: str) -> None:
        for news in self._readers.get(stream_id, ()):
            news.set()

    def _on_written(self, logs: Iterable[RedisLog]) -> None:
        """Let readers know of the logs that have grown, here and elsewhere."""
        for log in logs:
            stream_id = log.info.stream_id
            if log.has_news:
                log.has_news = False
                self._wake(stream_id)
                for process in log.readers_elsewhere:
                    self._tell(process, "gone" if log.is_gone else "news", stream_id)
            if log.is_done:
                self._logs.pop(stream_id, None)

    def _tell(self, process: str, what: str, stream_id: str) -> None:
        """Say something to another process, soon, if it can be reached."""
        self._mail.setdefault(process, []).append(f"{what} {stream_id}")
        if self._postman is None:
            self._postman = asyncio.get_running_loop().create_task(self._post())

    async def _post(self) -> None:
        try:
            while self._mail:
                mail, self._mail = self._mail, {}
                commands = [self.link.message_to(to, " ".join(says)) for to, says in mail.items()]
                try:
                    await self.link.ask("tell", *commands)
                except StoreError as exc:
                    logger.debug("what other processes were to be told is lost: %s", exc)
        finally:
            self._postman = None

    async def _keep_touch(self) -> None:
        """Say again what is followed, and forget what is over."""
        await asyncio.sleep(PRESENCE_SECONDS / 3)
        self._show_presence()
        now = time.monotonic()
        for stream_id, log in list(self._logs.items()):
            log.look_for_readers(now)
            if log.state is not LogState.RUNNING and now > log.ended_at + self._ttl:
                self.writer.forsake(log)
                del self._logs[stream_id]
            elif now >= log.renew_at:
                self.writer.write_soon(log)

    def _show_presence(self) -> None:
        for stream_id, process in self._producers.items():
            self._tell(process, "follow", stream_id)

    def _known(self, data: bytes | None) -> Known | None:
        if data is None:
            if self.link.may_be_forgetful:
                raise StoreError("Redis has no such log, but was out of reach a moment ago")
            return None
        with _ours_only():
            return unpack_known(data)

    async def _lives(self, process: str) -> bool:
        if process == self.link.process:
            return True
        (lives,) = await self.link.ask("follow", ("EXISTS", self.link.keys.lease(process)))
        return bool(lives)


@contextmanager
def _ours_only() -> Iterator[None]:
    """Refuse what another version may have written.

    Raises:
        StoreError: it is none of ours.
    """
    try:
        yield
    except (ValueError, KeyError) as exc:
        raise StoreError(f"Redis has something that is none of ours: {exc}") from exc
