"""Indexes of the streams that linger. All their operations take constant time.

All that is ordered is in an `OrderedDict`: a `dict` searches for its first key among the deleted
ones, so that a queue in it takes time in proportion to its length.
"""

from collections import OrderedDict
from typing import Protocol


class LingeringStream(Protocol):
    """A stream that continues without a reader.

    Attributes:
        client: the identity of its client, or else the client's address.
    """

    client: str

    def expire(self) -> None:
        """End the stream."""


class ClientShares:
    """The lingering streams of each client, and the client that has most of them."""

    __slots__ = ("_clients", "_most", "_size", "_streams")

    def __init__(self) -> None:
        self._streams: dict[str, OrderedDict[LingeringStream, None]] = {}  # oldest first
        self._clients: dict[int, OrderedDict[str, None]] = {}  # by the number of their streams
        self._most = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, stream: LingeringStream) -> None:
        """Add a stream; one that is there already keeps its position."""
        streams = self._streams.setdefault(stream.client, OrderedDict())
        if stream not in streams:
            streams[stream] = None
            self._size += 1
            self._move(stream.client, len(streams) - 1, len(streams))

    def discard(self, stream: LingeringStream) -> None:
        """Remove a stream if it is there."""
        streams = self._streams.get(stream.client)
        if streams is not None and stream in streams:
            del streams[stream]
            self._size -= 1
            self._move(stream.client, len(streams) + 1, len(streams))
            if not streams:
                del self._streams[stream.client]

    def expiration_candidate(self) -> LingeringStream:
        """Return the oldest stream of the client that has most streams.

        Of several such clients, it is the one that has had as many for longest.
        """
        client = next(iter(self._clients[self._most]))
        return next(iter(self._streams[client]))

    def _move(self, client: str, before: int, after: int) -> None:
        """Store that the number of a client's streams has changed by one."""
        if before:
            del self._clients[before][client]
            if not self._clients[before]:
                del self._clients[before]
        if after:
            self._clients.setdefault(after, OrderedDict())[client] = None
        if after > self._most or self._most not in self._clients:
            self._most = after
