"""Listen to the channels that are read in one event loop, on one connection.

A message on a topic contains the published events themselves, so that readers need no query. But
only the log is complete. Readers read the log if messages do not follow one another, after the
connection was made again, and every few seconds.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, Protocol, TypeVar, cast

from sse_middleware.channels.events import (
    Position,
    StoredEvent,
    parse_entry,
    parse_generation,
    parse_number,
)
from sse_middleware.channels.redis_connection import PING, RedisConnection, pack_commands
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.health import Health
from sse_middleware.stores.redis.client import FAILURES

logger = logging.getLogger("sse_middleware")

_TICK_SECONDS: Final = 1.0
"""The interval of PING commands."""
_TICKS_PER_CHECK: Final = 5
"""After so many silent ticks of a channel, its readers read the log."""
_SILENCE_SECONDS: Final = 3.0
"""A connection that has not answered a PING for so long is closed."""
_MAX_TOPICS: Final = 500
"""The most topics of one SUBSCRIBE command."""
_RECENT_ENTRIES: Final = 256
_RECENT_BYTES: Final = 1 << 16


class Subscription(Protocol):
    """One topic, for all its readers in this event loop.

    Attributes:
        topic: its name.
        readers: the number of its readers.
    """

    topic: bytes
    readers: int

    def on_subscribed(self) -> None:
        """Handle that messages from now on will be received."""

    def on_message(self, message: bytes) -> None:
        """Handle a message."""

    def on_tick(self) -> None:
        """Handle a second without a failure."""

    def on_lost(self) -> None:
        """Handle that the connection is lost, and messages may be."""


AnySubscription = TypeVar("AnySubscription", bound=Subscription)


class ChannelUpdates:
    """The messages of one channel, for all its readers in this event loop.

    Attributes:
        topic: its topic.
        readers: the number of its readers.
        invalidations: grows if the readers must read the log.
        changes: grows if the readers must read again.
        last_malformed: the id of the last malformed entry; each is counted once.
        silent_ticks: the number of ticks since the last message.
    """

    __slots__ = (
        "_bytes",
        "_loop",
        "_recent",
        "_waiting",
        "changes",
        "invalidations",
        "last_malformed",
        "readers",
        "silent_ticks",
        "topic",
    )

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.readers = 0
        self.invalidations = 0
        self.changes = 0
        self.last_malformed = (0, 0)
        self.silent_ticks = 0
        self._recent: deque[StoredEvent] = deque()
        self._bytes = 0
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []

    def after(self, position: Position) -> list[StoredEvent] | None:
        """Return the recent events after a position, `None` if only the log has them."""
        recent, number = self._recent, position.number
        if not recent:
            return []
        if number is None or (number and position.generation != recent[-1].position.generation):
            return None
        if number >= recent[-1].number:
            return []
        if number + 1 < recent[0].number:
            return None
        if number + 1 == recent[-1].number:  # the usual case
            return [recent[-1]]
        return list(islice(recent, number + 1 - recent[0].number, None))

    @property
    def generation(self) -> str:
        """The generation of the channel in the last message, `""` without one."""
        return self._recent[-1].position.generation if self._recent else ""

    def has_announced(self, position: Position) -> bool:
        """Return whether there were messages about events after a position."""
        number, recent = position.number, self._recent
        is_same = not number or position.generation == self.generation
        return bool(recent) and number is not None and is_same and number < recent[-1].number

    def on_subscribed(self) -> None:
        """Let all readers read the log, which may have grown before."""
        self.invalidate()

    def on_message(self, message: bytes) -> None:
        """Add the events in a message."""
        entries = parse_message(message)
        if entries is None:
            self.invalidate()
        else:
            self.on_events(entries)

    def on_tick(self) -> None:
        """Let all readers read the log if there was no message for long."""
        self.silent_ticks += 1
        if self.silent_ticks >= _TICKS_PER_CHECK:
            self.invalidate()

    def on_lost(self) -> None:
        """Let all readers read the log."""
        self.invalidate()

    def on_events(self, entries: Iterable[StoredEvent]) -> None:
        """Add published events."""
        recent = self._recent
        self.silent_ticks = 0
        for entry in entries:
            if recent and not recent[-1].position.is_before(entry.position):
                recent.clear()
                self._bytes = 0
                self.invalidations += 1
            recent.append(entry)
            self._bytes += len(entry.data)
            while len(recent) > _RECENT_ENTRIES or (
                self._bytes > _RECENT_BYTES and len(recent) > 1
            ):
                self._bytes -= len(recent.popleft().data)
        self.wake()

    def invalidate(self) -> None:
        """Let all readers read the log."""
        self.invalidations += 1
        self.silent_ticks = 0
        self.wake()

    def next_change(self) -> "asyncio.Future[None]":
        """Return a future that is done at the next change."""
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def wake(self) -> None:
        """Let all readers read again."""
        self.changes += 1
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class PubSubListener:
    """Listen while there are readers.

    Args:
        connect: makes a connection that calls a function with each reply.
        failed: receives each failure, with the name of the operation.
        connect_timeout: bounds a connect, in seconds.
        health: is set to the state of the connection.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Any], None]], RedisConnection],
        failed: Callable[[str, BaseException], None],
        connect_timeout: float,
        health: Health,
    ) -> None:
        self._connect = connect
        self._failed = failed
        self._connect_timeout = connect_timeout
        self._health = health
        self._subscriptions: dict[bytes, Subscription] = {}
        self._task: asyncio.Task[None] | None = None
        self._connection: RedisConnection | None = None
        self._backoff = Backoff()
        self._replied_at = 0.0
        self._is_closing = False  # redis-py may suppress the cancellation

    def add_reader(self, topic: str, make: Callable[[bytes], AnySubscription]) -> AnySubscription:
        """Add a reader of a topic; the first one makes the subscription."""
        name = topic.encode()
        if name not in self._subscriptions:
            self._subscriptions[name] = make(name)
            self._send("SUBSCRIBE", name)
        subscription = cast("AnySubscription", self._subscriptions[name])
        subscription.readers += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return subscription

    def remove_reader(self, subscription: Subscription) -> None:
        """Remove a reader."""
        subscription.readers -= 1
        if not subscription.readers:
            del self._subscriptions[subscription.topic]
            self._send("UNSUBSCRIBE", subscription.topic)

    async def close(self) -> None:
        """Close the connection."""
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        self._health.set("")

    async def _run(self) -> None:
        while not self._is_closing:
            connection = self._connect(self._on_reply)
            try:
                async with asyncio.timeout(self._connect_timeout):
                    await connection.open()
                self._replied_at = time.monotonic()
                self._connection = connection
                self._health.set("up")
                for topics in _chunks(list(self._subscriptions)):
                    self._send("SUBSCRIBE", *topics)
                await self._watch(connection)
            except FAILURES as exc:
                self._failed("subscribe", exc)
            except Exception:
                logger.exception("Channels: an unexpected error. Readers read the log instead.")
            finally:
                self._connection = None
                self._health.set("down")
                await connection.close()
            for subscription in list(self._subscriptions.values()):
                subscription.on_lost()
            await asyncio.sleep(self._backoff.next())

    async def _watch(self, connection: RedisConnection) -> None:
        """Return or raise when the connection is lost."""
        while not self._is_closing:
            connection.send(PING)
            await asyncio.wait((connection.lost,), timeout=_TICK_SECONDS)
            if connection.lost.done():
                raise connection.lost.result()
            if time.monotonic() > self._replied_at + _SILENCE_SECONDS:
                raise TimeoutError("Redis does not answer PING")
            self._backoff.reset()
            for subscription in list(self._subscriptions.values()):
                subscription.on_tick()

    def _on_reply(self, reply: Any) -> None:
        """Handle a reply, and wake the readers in the same iteration of the event loop."""
        self._replied_at = time.monotonic()
        if isinstance(reply, Exception) and self._connection is not None:
            self._connection.abort(reply)  # a new connection may be allowed to subscribe
        subscription = self._subscriptions.get(reply[1]) if isinstance(reply, list) else None
        if subscription is None:  # a PONG, or a topic without readers
            return
        if reply[0] == b"message":
            subscription.on_message(reply[2])
        elif reply[0] == b"subscribe":
            subscription.on_subscribed()

    def _send(self, verb: str, *topics: bytes) -> None:
        """Send a command if there is a connection; a new connection subscribes to all topics."""
        if self._connection is not None and self._connection.is_open:
            self._connection.send(pack_commands([(verb, *topics)]))


def parse_message(message: bytes) -> list[StoredEvent] | None:
    """Return the events in a message, `None` if its format is unknown.

    Its lines are the generation and the number of the first event, and then the id, the name and
    the data of each.
    """
    first, *words = message.split(b"\n")
    generation, _, digits = first.partition(b".")
    name, number = parse_generation(generation), parse_number(digits)
    if name is None or number is None or not words or len(words) % 3:
        return None
    entries: list[StoredEvent] = []
    for at in range(0, len(words), 3):
        position = Position(words[at].decode("ascii", "replace"), number, name)
        entry = parse_entry(position, words[at + 1], words[at + 2])
        if entry is None:
            return None
        entries.append(entry)
        number += 1
    return entries


def _chunks(topics: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [topics[at : at + _MAX_TOPICS] for at in range(0, len(topics), _MAX_TOPICS)]
