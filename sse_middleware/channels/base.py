"""The seam to where channels are kept: logs with many writers and many readers each.

The store gives the order, one for all. A reader has a place and pulls; what it is late for it reads
from the log, and where that is not kept any more it is told. So nobody is queued for, and a reader
that is slow delays nobody.
"""

from collections.abc import Awaitable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from sse_middleware.channels.events import LastEvent, OutgoingEvent, Position, ReadResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is kept of a channel.

    Attributes:
        max_events: the newest so many events,
        max_bytes: of so many bytes,
        ttl: for so many seconds behind the last one.
    """

    max_events: int = 10_000
    max_bytes: int = 4 << 20
    ttl: float = 3600.0


class Feed(Protocol):
    """One reader of a channel."""

    async def read(self, place: Position) -> ReadResult:
        """Return what stands behind `place`, as much as there is at a time.

        Raises:
            StoreError: the store is out of reach.
        """

    def wait(self) -> Awaitable[None]:
        """Wait until there may be more than the last `read` has found."""


class Channels(Protocol):
    """Where channels are kept."""

    def publish(self, post: OutgoingEvent) -> Awaitable[bool]:
        """Put an event into its channel; `False` where one of its key is there.

        Raises:
            StoreError: the store is out of reach, and the outcome is unknown.
        """

    async def tip(self, channel: str) -> LastEvent:
        """Return the last entry of a channel.

        Raises:
            StoreError: the store is out of reach.
        """

    def follow(self, channel: str) -> AbstractContextManager[Feed]:
        """Read a channel."""

    async def close(self) -> None:
        """Send what is to be sent, and let go of connections and tasks."""


class BlockingChannels(Protocol):
    """The same for threads."""

    def publish(self, post: OutgoingEvent) -> bool:
        """Put an event into its channel; `False` where one of its key is there.

        Raises:
            StoreError: the store is out of reach, and the outcome is unknown.
        """

    def close(self) -> None:
        """Let go of connections."""
