"""The interface of channel storage: logs, each with many writers and many readers.

The store defines one order for all. A reader has a position and pulls. A slow reader reads older
events from the log, and is notified if they are no longer kept. So there is no queue for a reader,
and a slow reader delays no other.
"""

from collections.abc import Awaitable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from sse_middleware.channels.events import LastEvent, OutgoingEvent, Position, ReadResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a channel is kept.

    Attributes:
        max_events: the most events; the oldest are dropped first.
        max_bytes: the most bytes.
        ttl: how long a channel is kept after its last event, in seconds.
    """

    max_events: int = 10_000
    max_bytes: int = 4 << 20
    ttl: float = 3600.0


class Feed(Protocol):
    """One reader of a channel."""

    async def read(self, position: Position) -> ReadResult:
        """Return the events after a position, a bounded number at a time.

        Raises:
            StoreError: the store is out of reach.
        """

    def wait(self) -> Awaitable[object]:
        """Wait until there may be events that the last `read` has not returned."""


class Channels(Protocol):
    """Storage of channels."""

    def publish(self, event: OutgoingEvent) -> Awaitable[bool]:
        """Append an event to its channel; return `False` if the channel has its key already.

        Raises:
            StoreError: the store is out of reach, and the outcome is unknown.
        """

    async def last_event(self, channel: str) -> LastEvent:
        """Return the last event of a channel.

        Raises:
            StoreError: the store is out of reach.
        """

    def follow(self, channel: str, *, with_messages: bool = False) -> AbstractContextManager[Feed]:
        """Read a channel.

        Args:
            channel: its name.
            with_messages: whether the plain messages of its session are read too: see
                `session_messages`.
        """

    async def close(self) -> None:
        """Send all events, and close connections and tasks."""


class BlockingChannels(Protocol):
    """Storage of channels for threads."""

    def publish(self, event: OutgoingEvent) -> bool:
        """Append an event to its channel; return `False` if the channel has its key already.

        Raises:
            StoreError: the store is out of reach, and the outcome is unknown.
        """

    def close(self) -> None:
        """Close connections."""
