"""Streams that linger: they continue without a client for some time, and their number is limited.

A stream that the middleware has disconnected itself is not counted while its client is expected. Of
too many streams, a client that has more than others loses its own: they expire. So does a stream
whose client makes the same request again: it has lost its event ids, as a page that is reloaded.
"""

import math
from collections.abc import Collection, Sequence

from sse_middleware.observability.observer import Observer
from sse_middleware.stream.linger_index import (
    ClientShares,
    LingeringStream,
    RequestIndex,
    RequestKey,
)


class LingerQueue:
    """The streams that wait for a reader.

    Args:
        limit: the maximum number of streams whose clients have left on their own.
        observers: are notified of changes.

    Attributes:
        paths: the paths of the requests that end a stream if they are repeated.
    """

    __slots__ = ("_left", "_limit", "_observers", "_requests", "_streams", "paths")

    def __init__(self, limit: int, observers: Sequence[Observer]) -> None:
        self._limit = limit
        self._observers = observers
        self._streams: dict[LingeringStream, None] = {}
        self._left = ClientShares()
        self._requests = RequestIndex()
        self.paths: Collection[str] = self._requests.paths

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: LingeringStream) -> None:
        """Add a stream that does not count against the limit."""
        self._remove(stream)
        if stream not in self._streams:
            self._streams[stream] = None
            self._notify(1)

    def count(self, stream: LingeringStream, now: float) -> None:
        """Count a stream that has been added; let one expire if there are too many."""
        if stream in self._streams:
            if self._requests.is_repeated(stream, now):
                self.discard(stream)
                stream.expire()
                return
            self._left.add(stream)
            self._requests.add(stream)
        if len(self._left) > self._limit:
            candidate = self._left.expiration_candidate()
            self.discard(candidate)
            candidate.expire()

    def discard(self, stream: LingeringStream) -> None:
        """Remove a stream that does not linger any more."""
        self._remove(stream)
        if stream in self._streams:
            del self._streams[stream]
            self._notify(-1)

    def on_opened(self, key: RequestKey, now: float) -> None:
        """Handle that a client has opened a stream without an event id."""
        self.end_repeated(key)
        self._requests.on_opened(key, now)

    def end_repeated(self, key: RequestKey) -> None:
        """End the streams whose clients have left on their own and make their request again."""
        for stream in self._requests.find(key):
            self.discard(stream)
            stream.expire()

    def _remove(self, stream: LingeringStream) -> None:
        """Count a stream no longer, and do not end it if its request is repeated."""
        self._left.discard(stream)
        self._requests.discard(stream)

    def _notify(self, more: int) -> None:
        for observer in self._observers:
            observer.lingering(more)


class Linger:
    """The time for which one stream lingers.

    Args:
        queue: counts the streams.
        stream: the stream.

    Attributes:
        deadline: the time at which it expires, infinite for never.
        counts_at: the time from which it counts against the limit, infinite for never.
    """

    __slots__ = ("_queue", "_stream", "counts_at", "deadline")

    def __init__(self, queue: LingerQueue, stream: LingeringStream) -> None:
        self._queue = queue
        self._stream = stream
        self.deadline = self.counts_at = math.inf

    def start(self, now: float, seconds: float, *, expected_until: float) -> None:
        """Begin to linger.

        Args:
            now: the time.
            seconds: how long the stream lingers; infinite if the drain ends it.
            expected_until: the time until which the client is expected, because the middleware has
                disconnected it.
        """
        self._queue.add(self._stream)
        self.deadline = now + seconds
        self.counts_at = expected_until if seconds < math.inf else math.inf
        self.count(now)

    def count(self, now: float) -> None:
        """Count the stream against the limit, once its client is not expected any more."""
        if now >= self.counts_at:
            self.counts_at = math.inf
            self._queue.count(self._stream, now)

    def stop(self) -> None:
        """Linger no longer."""
        self.deadline = self.counts_at = math.inf
        self._queue.discard(self._stream)
