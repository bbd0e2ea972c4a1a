"""What one event loop has of the store in Redis: its logs, its readers, and its inbox.

Processes tell each other by inboxes, one for each: that a stream is followed, that it has grown,
that it is to end. A message that is lost costs a reader a second and nobody an event.
"""

import asyncio
import logging
import time
from typing import Any, Final

from redis.exceptions import RedisError

from sse_middleware.errors import StoreError
from sse_middleware.stores.base import Batch, Found, LogInfo, State
from sse_middleware.stores.entries import batches, last_of, unpacked_info
from sse_middleware.stores.redis_link import INBOX_LENGTH, Link
from sse_middleware.stores.redis_writer import RUNNING_SECONDS, LogWriter, RedisLog

logger = logging.getLogger("sse_middleware")

_PRESENCE_SECONDS: Final = 5.0
"""How often a process says that it still follows."""
_ENTRIES_AT_ONCE: Final = 16
_PAUSE_SECONDS: Final = 0.5


class Station:
    """What one event loop has of the store: its link, its writer, its readers and its inbox."""

    def __init__(self, link: Link, ttl: float) -> None:
        self.link = link
        self.writer = LogWriter(link, ttl, self._on_written)
        self._logs: dict[str, RedisLog] = {}  # that are written here
        self._readers: dict[str, set[asyncio.Event]] = {}  # of any log, by its stream
        self._producers: dict[str, str] = {}  # the process that writes what is read here
        self._listens: asyncio.Task[None] | None = None
        self._keeps_touch: asyncio.Task[None] | None = None
        self._messages: set[asyncio.Task[None]] = set()

    def keep(self, log: RedisLog) -> None:
        """Write a log until it has ended."""
        self._logs[log.info.stream_id] = log
        for _ in range(len(self._readers.get(log.info.stream_id, ()))):
            log.join()
        self.link.hold_lease()
        self._attend()
        self.writer.write_soon(log)

    async def find(self, stream_id: str) -> Found | None:
        """Return what Redis has of a log."""
        keys = self.link.keys
        async with self.link.attempt("find") as client:
            pipe = client.pipeline(transaction=False)
            pipe.get(keys.info(stream_id))
            pipe.xrange(keys.log(stream_id), count=1)
            pipe.xrevrange(keys.log(stream_id), count=1)
            info_data, oldest, newest = await pipe.execute()
            if info_data is None:
                return None
            info, process = _known(info_data)
            alive = process == self.link.process or await client.exists(keys.lease(process))
        state, last, frame, first = State.RUNNING if alive else State.LOST, 0, b"", 1
        for entry_id, fields in newest:
            last = last_of(entry_id)
            if b"s" in fields:
                state, frame = State(fields[b"s"].decode()), fields[b"e"]
        for _, fields in oldest:
            first = int(fields.get(b"f", last + 1))
        return Found(info, state, last, bool(frame), first)

    async def producer_of(self, stream_id: str) -> str | None:
        """Return the process that writes a log, `None` where there is no such log."""
        if stream_id in self._logs:
            return self.link.process
        async with self.link.attempt("follow") as client:
            data = await client.get(self.link.keys.info(stream_id))
        return None if data is None else _known(data)[1]

    async def read(self, stream_id: str, after: int) -> list[Batch]:
        """Return what stands behind the event `after`."""
        async with self.link.attempt("follow") as client:
            entries = await client.xrange(
                self.link.keys.log(stream_id), min=f"({after}-0", count=_ENTRIES_AT_ONCE
            )
        found: list[Batch] = []
        for entry_id, fields in entries:
            try:
                for batch in batches(entry_id, fields, after):
                    found.append(batch)
                    after = batch.last
            except ValueError as exc:
                raise StoreError(f"a log has an entry that is none of ours: {exc}") from exc
        return found

    async def look_for_end(self, stream_id: str, process: str, after: int) -> Batch | None:
        """Return why nothing comes any more, `None` where something may."""
        keys = self.link.keys
        async with self.link.attempt("follow") as client:
            pipe = client.pipeline(transaction=False)
            pipe.exists(keys.info(stream_id))
            pipe.xrevrange(keys.log(stream_id), count=1)
            exists, newest = await pipe.execute()
            alive = process == self.link.process or await client.exists(keys.lease(process))
        if not exists:
            return Batch(State.GONE, after, b"")
        for entry_id, fields in newest:
            if b"s" in fields and last_of(entry_id) < after:  # the cursor was ahead of the log
                return Batch(State(fields[b"s"].decode()), after, fields[b"e"])
        return None if alive else Batch(State.LOST, after, b"")

    def join(self, stream_id: str, process: str) -> asyncio.Event:
        """Take note of a reader, and return what is set when there may be more for it."""
        news = asyncio.Event()
        readers = self._readers.setdefault(stream_id, set())
        readers.add(news)
        if stream_id in self._logs:
            self._logs[stream_id].join()
        elif len(readers) == 1:
            self._producers[stream_id] = process
            self._attend()
            self._tell_soon(process, "follow", [stream_id])
        return news

    def leave(self, stream_id: str, process: str, news: asyncio.Event) -> None:
        """Take note that a reader has left."""
        readers = self._readers.get(stream_id, set())
        readers.discard(news)
        if stream_id in self._logs:
            self._logs[stream_id].leave()
        if not readers:
            self._readers.pop(stream_id, None)
            if self._producers.pop(stream_id, None) is not None:
                self._tell_soon(process, "leave", [stream_id])

    async def tell(self, process: str, what: str, stream_ids: list[str]) -> None:
        """Say something to a process, which may be this one.

        Raises:
            StoreError: Redis is out of reach.
        """
        if process == self.link.process:
            self._hear(what, stream_ids, process)
            return
        message = {"t": what, "i": " ".join(stream_ids), "p": self.link.process}
        async with self.link.attempt("tell") as client:
            await client.xadd(
                self.link.keys.inbox(process), message, nomkstream=True, maxlen=INBOX_LENGTH
            )

    async def close(self) -> None:
        """Write what there is, and let go of all."""
        await self.writer.flush()
        await self.writer.close()
        tasks = [task for task in (self._listens, self._keeps_touch) if task is not None]
        tasks += self._messages
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.link.close()

    # The inbox

    def _attend(self) -> None:
        """Read the inbox for as long as anybody here reads or writes."""
        loop = asyncio.get_running_loop()
        if self._listens is None:
            self._listens = loop.create_task(self._listen())
        if self._keeps_touch is None:
            self._keeps_touch = loop.create_task(self._keep_touch())

    def _is_busy(self) -> bool:
        return bool(self._logs or self._readers)

    async def _listen(self) -> None:
        inbox, place = self.link.keys.inbox(self.link.process), "0-0"
        try:
            while self._is_busy():
                try:
                    answer = await self.link.client.xread({inbox: place}, block=1000)
                except (RedisError, OSError, TimeoutError):
                    self.link.failed("inbox")
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                for _, messages in _pairs(answer):
                    for message_id, fields in messages:
                        place = message_id
                        self._take(fields)
        finally:
            self._listens = None

    def _take(self, fields: dict[bytes, bytes]) -> None:
        what = fields.get(b"t", b"").decode("latin-1")
        stream_ids = fields.get(b"i", b"").decode("latin-1").split()
        self._hear(what, stream_ids, fields.get(b"p", b"").decode("latin-1"))

    def _hear(self, what: str, stream_ids: list[str], process: str) -> None:
        for stream_id in stream_ids:
            log = self._logs.get(stream_id)
            if what == "news":
                self._wake(stream_id)
            elif log is None:
                continue
            elif what == "follow":
                log.join(process)
            elif what == "leave":
                log.leave(process)
            elif what == "cancel":
                log.cancel()

    def _wake(self, stream_id: str) -> None:
        for news in self._readers.get(stream_id, ()):
            news.set()

    def _on_written(self, logs: list[RedisLog]) -> None:
        """Let readers know of the logs that have grown, here and elsewhere."""
        elsewhere: dict[str, list[str]] = {}
        for log in logs:
            stream_id = log.info.stream_id
            self._wake(stream_id)
            for process in log.readers_elsewhere:
                elsewhere.setdefault(process, []).append(stream_id)
            if log.state is not State.RUNNING and log.pending.is_empty:
                self._logs.pop(stream_id, None)
        for process, stream_ids in elsewhere.items():
            self._tell_soon(process, "news", stream_ids)

    def _tell_soon(self, process: str, what: str, stream_ids: list[str]) -> None:
        task = asyncio.get_running_loop().create_task(self._try_to_tell(process, what, stream_ids))
        self._messages.add(task)
        task.add_done_callback(self._messages.discard)

    async def _try_to_tell(self, process: str, what: str, stream_ids: list[str]) -> None:
        try:
            await self.tell(process, what, stream_ids)
        except StoreError as exc:
            logger.debug("a message was not sent: %s", exc)

    async def _keep_touch(self) -> None:
        """Say again and again what is followed, and forget who has not said so for long."""
        try:
            while self._is_busy():
                await asyncio.sleep(_PRESENCE_SECONDS)
                followed: dict[str, list[str]] = {}
                for stream_id, process in self._producers.items():
                    followed.setdefault(process, []).append(stream_id)
                for process, stream_ids in followed.items():
                    await self._try_to_tell(process, "follow", stream_ids)
                now = time.monotonic()
                for log in list(self._logs.values()):
                    log.look_for_readers(now)
                    if now > log.expires_at - RUNNING_SECONDS / 2:
                        self.writer.write_soon(log)
        finally:
            self._keeps_touch = None


def _known(data: bytes) -> tuple[LogInfo, str]:
    try:
        return unpacked_info(data)
    except ValueError as exc:
        raise StoreError(str(exc)) from exc


def _pairs(answer: Any) -> list[tuple[Any, Any]]:
    """Return what XREAD has given, which is a mapping in RESP 3 and a list in RESP 2."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [(key, parts[0] if len(parts) == 1 else parts) for key, parts in answer.items()]
    return list(answer)
