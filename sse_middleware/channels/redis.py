"""Channels in Redis, for all processes: a stream and a hash for each.

Publishing is one script, in which an event is counted, kept and told to whoever listens. Reading is
the log's; the hub saves most of it.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis import RedisCluster as BlockingCluster
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from sse_middleware.channels.base import Feed, Limits
from sse_middleware.channels.events import (
    EMPTY,
    NO_CHANNEL,
    LastEvent,
    OutgoingEvent,
    Position,
    ReadResult,
    StoredEvent,
    entry_of,
    number_of,
    page_of,
)
from sse_middleware.channels.publish_batch import (
    PATIENCE_SECONDS,
    ChannelKeys,
    PublishBatch,
    PublisherSequence,
    first_of,
    pauses,
)
from sse_middleware.channels.publish_pipeline import PublishPipeline
from sse_middleware.channels.pubsub import ChannelNews, PubSubListener
from sse_middleware.channels.redis_connection import RedisConnection
from sse_middleware.errors import StoreError
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.redis.client import (
    FAILURES,
    blocking_client,
    client_for,
    close_blocking,
    first_node_of,
)
from sse_middleware.stores.redis.commands import Command, CommandClient, Keys

logger = logging.getLogger("sse_middleware")

_READ_AT_ONCE: Final = 256
_LEASE_SECONDS: Final = 20.0  # a link asks for it, and holds none unless it is told to


class RedisChannels:
    """Keep channels in Redis, from one event loop.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `redis+cluster://`.
        prefix: what stands before all keys.
        limits: what is kept of a channel.
        observers: who is told of failures.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "sse:",
        limits: Limits | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._keys = ChannelKeys(prefix)
        self._observers = observers
        self._client = client_for(url)
        # A message goes to all nodes of a cluster, and any one will do to hear it.
        self._any_node = (
            client_for(first_node_of(url))
            if isinstance(self._client, RedisCluster)
            else self._client
        )
        self._link = CommandClient("", self._client, Keys(prefix), observers, _LEASE_SECONDS)
        self._hub = PubSubListener(self._new_line, self._link.failed)
        cluster = self._client if isinstance(self._client, RedisCluster) else None
        self._sender = PublishPipeline(
            self._new_line, cluster, self._keys, limits or Limits(), self._link
        )

    def publish(self, post: OutgoingEvent) -> Awaitable[bool]:
        """Put an event into its channel; `False` where one of its key is there."""
        return self._sender.publish(post)

    async def tip(self, channel: str) -> LastEvent:
        """Return the last entry of a channel."""
        question = ("HMGET", self._keys.about(channel), "i", "n", "e", "a")
        ((last, number, event, acked),) = await self._link.ask("read", question)
        if last is None or number is None:
            return NO_CHANNEL
        return LastEvent(
            Position(last.decode(), int(number)), (event or b"").decode(), acked is not None
        )

    @contextmanager
    def follow(self, channel: str) -> Iterator[Feed]:
        """Read a channel."""
        news = self._hub.join(self._keys.topic(channel))
        try:
            yield _RedisFeed(self, channel, news)
        finally:
            self._hub.leave(news)

    async def read(
        self, channel: str, place: Position, news: ChannelNews
    ) -> tuple[ReadResult, bool]:
        """Return what the log has behind `place`, and whether that is all."""
        start = "-" if place.id == EMPTY.id else f"({place.id}"
        question = ("XRANGE", self._keys.log(channel), start, "+", "COUNT", _READ_AT_ONCE)
        (raw,) = await self._link.ask("read", question)
        found = [(entry_id.decode(), _entry(entry_id, fields)) for entry_id, fields in raw]
        for entry_id, entry in found:
            if entry is None:
                self._count_malformed(entry_id, news)
        return page_of(found, place), len(raw) < _READ_AT_ONCE

    async def close(self) -> None:
        """Send what is to be sent, and let go of the connections."""
        await self._sender.close()
        await self._hub.close()
        await self._link.close()
        await self._client.aclose()
        await self._any_node.aclose()

    def _count_malformed(self, entry_id: str, news: ChannelNews) -> None:
        milliseconds, _, number = entry_id.partition("-")
        place = (int(milliseconds), int(number))
        if place > news.counted:  # each once, however many readers there are
            level = logging.DEBUG if any(news.counted) else logging.WARNING
            logger.log(level, "an entry of a channel is none of ours, passed over: %s", entry_id)
            news.counted = place
            for observer in self._observers:
                observer.store_failed("malformed")

    def _new_line(self, heard: Callable[[Any], None]) -> RedisConnection:
        assert isinstance(self._any_node, Redis)
        return RedisConnection(self._any_node, heard)


class _RedisFeed:
    """One reader of a channel: reads news where they go on where it is, and the log where not."""

    def __init__(self, channels: RedisChannels, channel: str, news: ChannelNews) -> None:
        self._channels = channels
        self._channel = channel
        self._news = news
        self._doubts = -1  # those that it has looked for
        self._changes = 0  # those that it has looked at

    async def read(self, place: Position) -> ReadResult:
        """Return what stands behind `place`."""
        doubts, self._changes = self._news.doubts, self._news.changes
        entries = self._news.after(place)
        if entries is None or doubts != self._doubts:
            page, is_all = await self._channels.read(self._channel, place, self._news)
            if is_all:
                self._doubts = doubts
            if entries is None and is_all and not page.entries:
                return ReadResult(
                    (), page.place, is_whole=False
                )  # it was told of, and is not there
            return page
        return ReadResult(entries, entries[-1].place if entries else place)

    def wait(self) -> Awaitable[None]:
        """Wait until there may be more."""
        if self._changes == self._news.changes and self._doubts == self._news.doubts:
            return self._news.change()
        return asyncio.sleep(0)


def _entry(entry_id: bytes, fields: Any) -> StoredEvent | None:
    if not fields or not {b"n", b"e", b"d"} <= fields.keys():
        return None
    number = number_of(fields[b"n"])
    return None if number is None else entry_of(entry_id, number, fields[b"e"], fields[b"d"])


class BlockingRedisChannels:
    """Publish on channels in Redis from threads, and from processes that were forked.

    Threads that publish at the same time share their way to Redis.

    Args:
        url: where it is.
        prefix: what stands before all keys.
        limits: what is kept of a channel.
        observers: who is told of failures, by any thread.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "sse:",
        limits: Limits | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._url = url
        self._observers = observers
        self._keys = ChannelKeys(prefix)
        self._limits = limits or Limits()
        self._begin()

    def _begin(self) -> None:
        """Have all that is of one process: a fork has a copy of it, locked or not."""
        self._process = os.getpid()
        self._numbering = PublisherSequence()
        self._waiting: deque[_Waiting] = deque()
        self._queueing = threading.Lock()
        self._sending = threading.Lock()
        self._client: Any = None

    def publish(self, post: OutgoingEvent) -> bool:
        """Put an event into its channel; `False` where one of its key is there."""
        if self._process != os.getpid():
            self._begin()
        mine = _Waiting(post)
        with self._queueing:
            self._waiting.append(mine)
        try:
            with self._sending:  # who holds it sends for those who wait for it
                while mine.outcome is None:
                    self._send(self._next_batch())
        except BaseException:  # such as a time limit of the job's, at any place
            with self._queueing:
                if mine in self._waiting:
                    self._waiting.remove(mine)
            raise
        if isinstance(mine.outcome, StoreError):
            raise mine.outcome
        return mine.outcome

    def close(self) -> None:
        """Let go of the connections; another `publish` makes new ones."""
        if self._process != os.getpid():
            self._begin()
        with self._sending:
            if self._client is not None:
                close_blocking(self._client)
                self._client = None

    def _next_batch(self) -> list["_Waiting"]:
        with self._queueing:
            number = first_of(waiting.post for waiting in self._waiting)
            return [self._waiting.popleft() for _ in range(number)]

    def _send(self, batch: Sequence["_Waiting"]) -> None:
        posts = [waiting.post for waiting in batch]
        dispatch = PublishBatch(posts, self._numbering, self._keys, self._limits)
        try:
            self._try_on(dispatch)
        finally:
            dispatch.give_up()
            for waiting, outcome in zip(batch, dispatch.outcomes, strict=True):
                waiting.outcome = outcome

    def _try_on(self, dispatch: PublishBatch) -> None:
        began = time.monotonic()
        for pause in pauses():
            dispatch.last_failure = None
            try:
                while dispatch.take(self._pipe(dispatch.commands())):
                    pass
            except FAILURES as exc:
                dispatch.last_failure = exc
            for observer in self._observers:
                if dispatch.last_failure is None:
                    observer.store_flushed(time.monotonic() - began)
                else:
                    observer.store_failed("publish")
            if dispatch.is_settled or time.monotonic() > began + PATIENCE_SECONDS:
                return
            logger.debug("publish: %s", type(dispatch.last_failure).__name__)
            time.sleep(pause)

    def _pipe(self, commands: Sequence[Command]) -> list[Any]:
        if self._client is None:
            self._client = blocking_client(self._url, None)  # type: ignore[arg-type]
        if isinstance(self._client, BlockingCluster):
            return [self._one(command) for command in commands]
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list(pipe.execute(raise_on_error=False))

    def _one(self, command: Command) -> Any:
        try:
            return self._client.execute_command(*command)
        except FAILURES as exc:
            return exc


class _Waiting:
    """A post whose thread waits."""

    __slots__ = ("outcome", "post")

    def __init__(self, post: OutgoingEvent) -> None:
        self.post = post
        self.outcome: bool | StoreError | None = None
