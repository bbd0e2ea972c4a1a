"""Slots for streams, and the stream that is evicted for a new one. No I/O, no clock.

A process has a number of slots, and a client a share of them. A stream takes a slot when it opens
and releases it at its end. A stream that lingers has none, and is the first to be evicted if its
client opens another. A client loses streams to its own new ones, and to those of other clients only
if it has more than one.
"""

from collections.abc import Sequence
from typing import Protocol


class Evictable(Protocol):
    """A stream that has a slot."""

    def evict(self) -> None:
        """End the stream, because its slot is needed."""

    def watch_for_disconnect(self) -> None:
        """Check whether the client is still connected."""

    def blocked_at(self) -> int | None:
        """Return the position of a write that is pending, `None` if there is none."""


class SlotListener(Protocol):
    """An object that counts the slots of all processes."""

    def on_taken(self, slot: "Slot") -> None:
        """Count a slot of this process."""

    def on_released(self, slot: "Slot") -> None:
        """Count a slot no longer."""


class Slot:
    """The slot of one stream; created by `SlotPool`.

    Attributes:
        client: the client that has it, `None` for an unknown client.
        number: the position in the order in which the slots of this process are taken.
        reads_end: whether the client understands how its stream ends.
        stream: the stream, once it is open.
        evicted: whether another stream has the slot now.
    """

    __slots__ = ("_pool", "client", "evicted", "number", "reads_end", "stream")

    def __init__(
        self, pool: "SlotPool", client: str | None, number: int, *, reads_end: bool
    ) -> None:
        self._pool = pool
        self.evicted = False
        self.client = client
        self.number = number
        self.reads_end = reads_end
        self.stream: Evictable | None = None

    def attach(self, stream: Evictable) -> None:
        """Give the slot to its stream, which ends if the slot has been taken away meanwhile."""
        self.stream = stream
        if self.evicted:
            stream.evict()

    def evict(self) -> None:
        """Take the slot away from its stream."""
        self.evicted = True
        self.release()
        if self.stream is not None:
            self.stream.evict()

    def set_lingering(self, *, lingers: bool) -> None:
        """Release the slot while its stream lingers, or take it again."""
        self._pool.set_lingering(self, lingers=lingers)

    def release(self) -> None:
        """Release the slot for good; further calls have no effect."""
        self._pool.remove(self)


class _Share:
    """The slots of one client, oldest first."""

    __slots__ = ("held", "lingering")

    def __init__(self) -> None:
        self.held: dict[Slot, None] = {}
        self.lingering: dict[Slot, None] = {}


_NOTHING = _Share()


class SlotPool:
    """Count the streams of a process, and of each client.

    Args:
        limit: the number of slots, `None` for no limit.
        limit_per_client: the number of slots that one client may have, `None` for no limit.

    Attributes:
        listener: the object that is notified of changes.
    """

    def __init__(self, limit: int | None, limit_per_client: int | None) -> None:
        self._limit = limit
        self._limit_per_client = limit_per_client
        self._taken: dict[Slot, None] = {}
        self._shares: dict[str, _Share] = {}
        self._last = 0
        self.listener: SlotListener | None = None

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def is_full(self) -> bool:
        """Whether all slots of the process are taken."""
        return self._limit is not None and len(self._taken) >= self._limit

    @property
    def is_overfull(self) -> bool:
        """Whether more slots of the process are taken than there are."""
        return self._limit is not None and len(self._taken) > self._limit

    def is_share_used(self, client: str | None) -> bool:
        """Return whether a client has all of its share in this process."""
        limit = self._limit_per_client
        return client is not None and limit is not None and self.count(client) >= limit

    def is_within_share(self, slot: Slot) -> bool:
        """Return whether a slot is among the oldest of its client, up to the client's share."""
        if slot.client is None or self._limit_per_client is None:
            return True
        before = list(self._share(slot.client).held).index(slot)
        return before < self._limit_per_client

    def take(self, client: str | None, *, reads_end: bool) -> Slot:
        """Take a slot, even if there is none left: the caller has checked that."""
        self._last += 1
        slot = Slot(self, client, self._last, reads_end=reads_end)
        self._add(slot)
        return slot

    def trim(self, client: str | None, elsewhere: int = 0) -> None:
        """Evict streams of a client that linger, if it has too many streams in all.

        Args:
            client: the client.
            elsewhere: the number of its streams in other processes.
        """
        share, limit = self._share(client), self._limit_per_client
        while share.lingering and limit is not None:
            if len(share.held) + len(share.lingering) + elsewhere <= limit:
                return
            next(iter(share.lingering)).evict()

    def set_lingering(self, slot: Slot, *, lingers: bool) -> None:
        """Release the slot of a stream that lingers, or take it again without a check."""
        if lingers and slot in self._taken:
            self._remove(slot)
            if slot.client is not None:
                self._shares.setdefault(slot.client, _Share()).lingering[slot] = None
        elif not lingers and slot in self._share(slot.client).lingering:
            self._share(slot.client).lingering.pop(slot)
            self._add(slot)
            if self.listener is not None:
                self.listener.on_taken(slot)

    def remove(self, slot: Slot) -> None:
        """Release a slot for good."""
        if slot in self._taken:
            self._remove(slot)
        elif slot in self._share(slot.client).lingering:
            self._share(slot.client).lingering.pop(slot)
            self._forget_empty(slot.client)

    def open_slots(self, client: str | None) -> Sequence[Slot]:
        """Return the slots of a client that have an open stream, oldest first."""
        return [slot for slot in self._share(client).held if slot.stream is not None]

    def lingering_clients(self) -> Sequence[str]:
        """Return the clients that have streams which linger."""
        return [client for client, share in self._shares.items() if share.lingering]

    def count(self, client: str | None) -> int:
        """Return the number of slots that a client has in this process."""
        return len(self._share(client).held)

    def oldest(self, client: str | None, *, any_kind: bool) -> Slot | None:
        """Return the oldest stream of a client that may be evicted.

        Args:
            client: the client.
            any_kind: whether streams count if their clients do not understand how they end.
        """
        able = (slot for slot in self.open_slots(client) if any_kind or slot.reads_end)
        return next(able, None)

    def eviction_candidate(self, client: str | None, *, any_kind: bool) -> Slot | None:
        """Return the stream that is evicted for one of `client` if the process is full.

        This is the client's own oldest stream, else the oldest stream of the client that has most
        streams, if it has two or more. So a client with many streams loses them first, and no
        client loses its only one to another.
        """
        own = self.oldest(client, any_kind=any_kind)
        if own is not None or not self._shares:
            return own
        other, share = max(self._shares.items(), key=lambda item: len(item[1].held))
        return self.oldest(other, any_kind=any_kind) if len(share.held) > 1 else None

    def _share(self, client: str | None) -> _Share:
        return _NOTHING if client is None else self._shares.get(client, _NOTHING)

    def _add(self, slot: Slot) -> None:
        self._taken[slot] = None
        if slot.client is not None:
            self._shares.setdefault(slot.client, _Share()).held[slot] = None

    def _remove(self, slot: Slot) -> None:
        del self._taken[slot]
        if slot.client is not None:
            del self._share(slot.client).held[slot]
            self._forget_empty(slot.client)
        if self.listener is not None:
            self.listener.on_released(slot)

    def _forget_empty(self, client: str | None) -> None:
        share = self._share(client)
        if client is not None and not (share.held or share.lingering):
            self._shares.pop(client, None)
