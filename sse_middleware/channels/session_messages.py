"""Plain messages of Redis that workers publish on the topic of a session, without this library.

    PUBLISH sse_session:SESSION '{"event_type": "FinalAnswerStream", "payload": {"char": "4"}}'

Redis does not keep such a message, and gives it no number. A reader receives those that are
published while its process is subscribed, in the order in which Redis has received them. It cannot
know what it has missed. So a reader that has received messages ends if the connection is lost, or
if it is so slow that messages have to be dropped.
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from typing import Final

from sse_middleware.channels.base import Feed, Limits
from sse_middleware.channels.events import EMPTY, Position, ReadResult, StoredEvent, encode_event
from sse_middleware.errors import EventFormatError

logger = logging.getLogger("sse_middleware")

TOPIC_PREFIX: Final = "sse_session:"
_MALFORMED: Final = (
    "Channels: a message on a topic sse_session:... is skipped. Allowed is a JSON object with "
    "event_type, a text of 1 to 128 characters, and payload."
)


class MessageQueue:
    """The messages that one reader has not received yet.

    Args:
        wake: wakes the reader.
        limits: how many messages are kept for it.

    Attributes:
        has_lost: whether messages may be missing after those in the queue.
    """

    def __init__(self, wake: Callable[[], None], limits: Limits) -> None:
        self.has_lost = False
        self._wake = wake
        self._limits = limits
        self._events: deque[StoredEvent] = deque()
        self._bytes = 0
        self._has_received = False

    def put(self, event: StoredEvent) -> None:
        """Add a message, if none is missing before it."""
        self._has_received = True
        self._bytes += len(event.data)
        if len(self._events) >= self._limits.max_events or self._bytes > self._limits.max_bytes:
            self.has_lost = True
        if not self.has_lost:
            self._events.append(event)
        self._wake()

    def on_lost(self) -> None:
        """Handle an interruption; a reader without a message has missed no more than before."""
        self.has_lost = self.has_lost or self._has_received
        self._wake()

    def take(self) -> list[StoredEvent]:
        """Return and remove the messages."""
        events = list(self._events)
        self._events.clear()
        self._bytes = 0
        return events


class SessionMessages:
    """The topic of one session, for all its readers in this event loop.

    Args:
        topic: its topic.
        on_malformed: is called with each message of another format.

    Attributes:
        topic: as given.
        readers: the number of its readers.
        queues: of its readers.
    """

    def __init__(self, topic: bytes, on_malformed: Callable[[], None]) -> None:
        self.topic = topic
        self.readers = 0
        self.queues: set[MessageQueue] = set()
        self._on_malformed = on_malformed
        self._has_warned = False

    def on_message(self, message: bytes) -> None:
        """Give a message to all readers."""
        event = parse_session_message(message)
        if event is None:
            logger.log(logging.DEBUG if self._has_warned else logging.WARNING, _MALFORMED)
            self._has_warned = True
            self._on_malformed()
            return
        for queue in self.queues:
            queue.put(event)

    def on_subscribed(self) -> None:
        """Do nothing: earlier messages are lost."""

    def on_tick(self) -> None:
        """Do nothing: there is no log to read."""

    def on_lost(self) -> None:
        """Handle that the connection is lost."""
        for queue in self.queues:
            queue.on_lost()


class FeedWithMessages:
    """One reader of a channel and of the messages of its session.

    Args:
        feed: reads the channel.
        queue: contains the messages.
    """

    def __init__(self, feed: Feed, queue: MessageQueue) -> None:
        self._feed = feed
        self._queue = queue
        self.wait = feed.wait

    async def read(self, position: Position) -> ReadResult:
        """Return the events after a position, and then the messages that have arrived."""
        result = await self._feed.read(position)
        messages = self._queue.take()
        if messages:
            return result._replace(entries=[*result.entries, *messages])
        if self._queue.has_lost and not result.entries:
            return result._replace(is_whole=False)
        return result


def messages_before_end(
    entries: Sequence[StoredEvent], terminal: Collection[str]
) -> Sequence[StoredEvent]:
    """Return the entries of one read without those after the end of the channel.

    A read returns the messages after the events of the channel, which has an order of its own. So
    they are put before the event that ends the channel, except those after a terminal message.
    """
    events = list(takewhile(lambda entry: entry.position != EMPTY, entries))
    before_end = list(takewhile(lambda entry: entry.event not in terminal, events))
    if len(before_end) == len(events):
        return entries
    messages = entries[len(events) :]
    in_time = takewhile(lambda message: message.event not in terminal, messages)
    return [*before_end, *in_time, events[len(before_end)]]


def parse_session_message(message: bytes) -> StoredEvent | None:
    """Return the event in a message, which has no id, or `None` if its format is unknown."""
    try:
        found = json.loads(message.decode())
        name, data = encode_event(found["event_type"], found.get("payload"))
    except (EventFormatError, LookupError, TypeError, ValueError, RecursionError):
        return None
    return StoredEvent(EMPTY, name, data.decode())
