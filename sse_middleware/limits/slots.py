"""Limits: who has a place for a stream, and who gives way for a new one. No I/O, no clock.

A process has so many places, and a client its share of them. A stream takes one when it opens and
gives it back at its end; one that waits for a reader has none, and is the first to go when its
client opens another. A client gives way to himself, and to others only while he has several.
"""

from collections.abc import Sequence
from typing import Protocol


class Evictable(Protocol):
    """A stream that has a place."""

    def evict(self) -> None:
        """End it, because its place is needed."""

    def watch_for_disconnect(self) -> None:
        """See whether its client is still there."""

    def blocked_at(self) -> int | None:
        """Return how far it has got in a write that is under way, `None` where none is."""


class SlotListener(Protocol):
    """Whoever counts for all processes."""

    def hold(self, place: "Slot") -> None:
        """Hear that a place counts."""

    def drop(self, place: "Slot") -> None:
        """Hear that it does not, or not any more."""


class Slot:
    """The place of one stream; made by `SlotPool`.

    Attributes:
        client: whose it is, `None` where that cannot be told.
        number: which of the places of this process it is, in the order in which they were taken.
        tells_end: whether the client understands how its stream ends.
        stream: the stream, once it is open.
        evicted: whether the place has gone to another one.
    """

    __slots__ = ("_places", "client", "evicted", "number", "stream", "tells_end")

    def __init__(
        self, places: "SlotPool", client: str | None, number: int, *, tells_end: bool
    ) -> None:
        self._places = places
        self.evicted = False
        self.client = client
        self.number = number
        self.tells_end = tells_end
        self.stream: Evictable | None = None

    def attach(self, stream: Evictable) -> None:
        """Give the place to its stream, unless it has gone to another meanwhile."""
        self.stream = stream
        if self.evicted:
            stream.evict()

    def evict(self) -> None:
        """Take the place away from its stream."""
        self.evicted = True
        self.release()
        if self.stream is not None:
            self.stream.evict()

    def set_lingering(self, *, lingers: bool) -> None:
        """Give the place back while its stream waits for a reader, or take it again."""
        self._places.set_waiting(self, waits=lingers)

    def release(self) -> None:
        """Give the place back for good; to do so twice does no harm."""
        self._places.remove(self)


class _Share:
    """What one client has, oldest first."""

    __slots__ = ("held", "waiting")

    def __init__(self) -> None:
        self.held: dict[Slot, None] = {}
        self.waiting: dict[Slot, None] = {}


_NOTHING = _Share()


class SlotPool:
    """Count the streams of a process, and of each client.

    Args:
        most: how many streams there may be, `None` for any number.
        most_of_client: how many of them one client may have, `None` for any number.

    Attributes:
        listener: who is told of what changes.
    """

    def __init__(self, most: int | None, most_of_client: int | None) -> None:
        self._most = most
        self._most_of_client = most_of_client
        self._taken: dict[Slot, None] = {}
        self._shares: dict[str, _Share] = {}
        self._last = 0
        self.listener: SlotListener | None = None

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def is_full(self) -> bool:
        """Whether the process has no place left."""
        return self._most is not None and len(self._taken) >= self._most

    @property
    def is_overdrawn(self) -> bool:
        """Whether more places of the process are taken than there are."""
        return self._most is not None and len(self._taken) > self._most

    def is_used_up(self, client: str | None) -> bool:
        """Whether a client has all of its share in this process."""
        most = self._most_of_client
        return client is not None and most is not None and len(self._share(client).held) >= most

    def is_within_share(self, place: Slot) -> bool:
        """Tell whether a place is none that its client has too many, in this process."""
        if place.client is None or self._most_of_client is None:
            return True
        before = list(self._share(place.client).held).index(place)
        return before < self._most_of_client

    def take(self, client: str | None, *, tells_end: bool) -> Slot:
        """Take a place, also where there is none; ask before."""
        self._last += 1
        place = Slot(self, client, self._last, tells_end=tells_end)
        self._add(place)
        return place

    def trim(self, client: str | None, elsewhere: int = 0) -> None:
        """Let streams of a client go that wait for readers, where it has too many in all.

        Args:
            client: whose.
            elsewhere: how many it has in other processes.
        """
        share, most = self._share(client), self._most_of_client
        while share.waiting and most is not None:
            if len(share.held) + len(share.waiting) + elsewhere <= most:
                return
            next(iter(share.waiting)).evict()

    def set_waiting(self, place: Slot, *, waits: bool) -> None:
        """Take note that a stream waits for a reader, or has found one, which needs no asking."""
        if waits and place in self._taken:
            self._remove(place)
            if place.client is not None:
                self._shares.setdefault(place.client, _Share()).waiting[place] = None
        elif not waits and place in self._share(place.client).waiting:
            self._share(place.client).waiting.pop(place)
            self._add(place)
            if self.listener is not None:
                self.listener.hold(place)

    def remove(self, place: Slot) -> None:
        """Forget a place."""
        if place in self._taken:
            self._remove(place)
        elif place in self._share(place.client).waiting:
            self._share(place.client).waiting.pop(place)
            self._forget_empty(place.client)

    def open_slots(self, client: str | None) -> Sequence[Slot]:
        """Return the places of a client that have a stream already, oldest first."""
        return [place for place in self._share(client).held if place.stream is not None]

    def clients_waiting(self) -> Sequence[str]:
        """Return the clients that have streams which wait for readers."""
        return [client for client, share in self._shares.items() if share.waiting]

    def count(self, client: str | None) -> int:
        """Return how many places of this process a client has."""
        return len(self._share(client).held)

    def oldest(self, client: str | None, *, any_kind: bool) -> Slot | None:
        """Return the oldest stream of a client that may end for another one.

        Args:
            client: whose.
            any_kind: whether also one may whose client does not understand how it ends.
        """
        able = (place for place in self.open_slots(client) if any_kind or place.tells_end)
        return next(able, None)

    def eviction_candidate(self, client: str | None, *, any_kind: bool) -> Slot | None:
        """Return the stream that gives way for one of `client` where the process is full.

        That is its own oldest; else the oldest of whoever has most, which are two at least: so
        that whoever takes many places loses them first, and nobody his only one.
        """
        own = self.oldest(client, any_kind=any_kind)
        if own is not None or not self._shares:
            return own
        other, share = max(self._shares.items(), key=lambda item: len(item[1].held))
        return self.oldest(other, any_kind=any_kind) if len(share.held) > 1 else None

    def _share(self, client: str | None) -> _Share:
        return _NOTHING if client is None else self._shares.get(client, _NOTHING)

    def _add(self, place: Slot) -> None:
        self._taken[place] = None
        if place.client is not None:
            self._shares.setdefault(place.client, _Share()).held[place] = None

    def _remove(self, place: Slot) -> None:
        del self._taken[place]
        if place.client is not None:
            del self._share(place.client).held[place]
            self._forget_empty(place.client)
        if self.listener is not None:
            self.listener.drop(place)

    def _forget_empty(self, client: str | None) -> None:
        share = self._share(client)
        if client is not None and not (share.held or share.waiting):
            self._shares.pop(client, None)
