"""Channels in Redis, for all processes: a stream and a hash for each.

One script publishes events: it numbers, keeps and announces them. Readers read the log, but most
events reach them in messages (see `pubsub`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

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
    parse_entry,
    parse_generation,
    parse_number,
    read_result,
)
from sse_middleware.channels.publish_pipeline import PublishPipeline
from sse_middleware.channels.pubsub import ChannelUpdates, PubSubListener
from sse_middleware.channels.redis_connection import RedisConnection
from sse_middleware.channels.session_messages import (
    TOPIC_PREFIX,
    FeedWithMessages,
    MessageQueue,
    SessionMessages,
)
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.health import Health
from sse_middleware.stores.redis.client import (
    client_for,
    close_client,
    first_node_of,
    timeouts_for,
)
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.counted_connection import count_connections
from sse_middleware.stores.redis.keys import Keys

logger = logging.getLogger("sse_middleware")

_READ_COUNT: Final = 256
"""The number of entries in one read."""
_LEASE_SECONDS: Final = 20.0  # required by `CommandClient`; channels hold no lease
_CONSEQUENCE: Final = (
    "Publishers repeat their events for 10 seconds, and readers continue when Redis answers. "
    "Check SSE_REDIS_URL."
)


class RedisChannels:
    """Keep channels in Redis, for one event loop.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `redis+cluster://` or `redis+sentinel://`. Its
            `socket_timeout` is the time in seconds in which Redis must answer a reader; the default
            is 1. An attempt to publish may take 3 seconds, or this time if it is longer, but a call
            takes 10 at most.
        prefix: of all Redis keys.
        limits: how much of a channel is kept.
        observers: are notified of failures.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "sse:",
        limits: Limits | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._keys = Keys(prefix)
        self._limits = limits or Limits()
        self._observers = observers
        self._redis = client_for(url)
        count_connections(self._redis, observers, "channels")
        cluster = self._redis if isinstance(self._redis, RedisCluster) else None
        # All nodes of a cluster receive each message, so a listener may use any node.
        self._any_node = self._redis
        if cluster is not None:
            self._any_node = client_for(first_node_of(url))
            count_connections(self._any_node, observers, "channels")
        timeouts = timeouts_for(url)
        self._client = CommandClient(
            "",
            self._redis,
            self._keys,
            observers,
            lease_seconds=_LEASE_SECONDS,
            timeouts=timeouts,
            consequence=_CONSEQUENCE,
        )
        self._listener = PubSubListener(
            self._new_connection,
            self._client.failed,
            timeouts.read,
            Health(observers, "listener", "channels"),
        )
        self._pipeline = PublishPipeline(
            self._new_connection, cluster, self._keys, self._limits, self._client
        )

    def publish(self, event: OutgoingEvent) -> Awaitable[bool]:
        """Append an event to its channel; return `False` if the channel has its key already."""
        return self._pipeline.publish(event)

    async def last_event(self, channel: str) -> LastEvent:
        """Return the last event of a channel."""
        query = ("HMGET", self._keys.channel(channel).about, "i", "n", "g", "e")
        ((last, number, generation, event),) = await self._client.query("read", query)
        if last is None or number is None or generation is None:
            return NO_CHANNEL
        position = Position(last.decode(), int(number), generation.decode())
        return LastEvent(position, (event or b"").decode())

    @contextmanager
    def follow(self, channel: str, *, with_messages: bool = False) -> Iterator[Feed]:
        """Read a channel."""
        updates = self._listener.add_reader(self._keys.channel(channel).topic, ChannelUpdates)
        feed = _RedisFeed(self, channel, updates)
        try:
            if with_messages:
                with self._messages(channel, updates) as queue:
                    yield FeedWithMessages(feed, queue)
            else:
                yield feed
        finally:
            self._listener.remove_reader(updates)

    @contextmanager
    def _messages(self, channel: str, updates: ChannelUpdates) -> Iterator[MessageQueue]:
        """Receive the plain messages of a session."""
        make = partial(SessionMessages, on_malformed=self._report_malformed)
        messages = self._listener.add_reader(f"{TOPIC_PREFIX}{channel}", make)
        queue = MessageQueue(updates.wake, self._limits)
        messages.queues.add(queue)
        try:
            yield queue
        finally:
            messages.queues.discard(queue)
            self._listener.remove_reader(messages)

    async def read(self, channel: str, position: Position, updates: ChannelUpdates) -> "_LogPart":
        """Return the events in the log after a position."""
        start = "-" if position.id == EMPTY.id else f"({position.id}"
        keys = self._keys.channel(channel)
        about, raw = await self._client.query(
            "read",
            ("HMGET", keys.about, "g", "n"),  # before the log, which has at least as much then
            ("XRANGE", keys.log, start, "+", "COUNT", str(_READ_COUNT)),
        )
        found = [(entry_id.decode(), _parse(entry_id, fields)) for entry_id, fields in raw]
        for entry_id, entry in found:
            if entry is None:
                self._count_malformed(entry_id, updates)
        result = read_result(found, position)
        if not raw and _has_lost(about, position):
            result = result._replace(is_whole=False)
        return _LogPart(result, len(raw) < _READ_COUNT, about[0] is None and not raw)

    async def close(self) -> None:
        """Send all events, and close the connections."""
        await self._pipeline.close()
        await self._listener.close()
        await self._client.close()
        await close_client(self._redis)
        await close_client(self._any_node)

    def _count_malformed(self, entry_id: str, updates: ChannelUpdates) -> None:
        milliseconds, _, number = entry_id.partition("-")
        entry = (int(milliseconds), int(number))
        if entry > updates.last_malformed:  # once, for all readers
            level = logging.DEBUG if any(updates.last_malformed) else logging.WARNING
            text = "Channels: entry %s in Redis has an unknown format and is skipped. "
            text += "Only publishers of this library may write to the keys of channels."
            logger.log(level, text, entry_id)
            updates.last_malformed = entry
            self._report_malformed()

    def _report_malformed(self) -> None:
        for observer in self._observers:
            observer.store_failed("malformed")

    def _new_connection(self, on_reply: Callable[[Any], None]) -> RedisConnection:
        assert isinstance(self._any_node, Redis)
        return RedisConnection(self._any_node, on_reply)


class _RedisFeed:
    """One reader of a channel: it uses messages that follow its position, and the log if not."""

    def __init__(self, channels: RedisChannels, channel: str, updates: ChannelUpdates) -> None:
        self._channels = channels
        self._channel = channel
        self._updates = updates
        self._invalidations = -1  # the number of those after which it has read the log
        self._changes = 0  # the number of those after which it has read
        self._deleted: str | None = None  # the generation of which it has found no log

    async def read(self, position: Position) -> ReadResult:
        """Return the events after a position."""
        updates = self._updates
        invalidations, self._changes = updates.invalidations, updates.changes
        if invalidations == self._invalidations:
            entries = self._announced(position)
            if entries is not None:
                return ReadResult(entries, entries[-1].position if entries else position)
        generation = updates.generation
        is_announced = self._invalidations >= 0 and updates.has_announced(position)
        result, is_all, is_missing = await self._channels.read(self._channel, position, updates)
        if is_all:
            self._invalidations = invalidations
        if is_missing and is_announced and self._deleted != generation:
            return ReadResult((), result.position, is_whole=False)
        if is_missing:
            self._deleted = generation
        return result

    def _announced(self, position: Position) -> Sequence[StoredEvent] | None:
        """Return the events after a position in messages, `None` if only the log has them."""
        if position.number == 0 and self._updates.generation == self._deleted:
            return ()  # messages about a channel that was deleted before this reader began
        return self._updates.after(position)

    def wait(self) -> Awaitable[None]:
        """Wait until there may be more events."""
        updates = self._updates
        if self._changes == updates.changes and self._invalidations == updates.invalidations:
            return updates.next_change()
        return asyncio.sleep(0)


class _LogPart(NamedTuple):
    """A part of a channel's log.

    Attributes:
        result: its events.
        is_all: whether the log has no more entries.
        is_missing: whether there is no such channel.
    """

    result: ReadResult
    is_all: bool
    is_missing: bool


def _has_lost(about: Sequence[bytes | None], position: Position) -> bool:
    """Return whether a channel without an entry after a position has had an event after it.

    Args:
        about: the generation and the number of events of the channel, `None` if there is none.
        position: of a reader.
    """
    generation, number = about
    if generation is None or number is None or not position.number:
        return False
    is_same = generation.decode() == position.generation
    return not is_same or int(number) > position.number


def _parse(entry_id: bytes, fields: Any) -> StoredEvent | None:
    if not fields or not {b"g", b"n", b"e", b"d"} <= fields.keys():
        return None
    generation, number = parse_generation(fields[b"g"]), parse_number(fields[b"n"])
    if generation is None or number is None:
        return None
    position = Position(entry_id.decode(), number, generation)
    return parse_entry(position, fields[b"e"], fields[b"d"])
