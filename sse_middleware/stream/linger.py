"""Streams that linger: their producers continue for some time after the last client has left.

A lingering stream expires, which cancels its app, in one of three cases:

- Its time (`SSE_LINGER_SECONDS`) is over.
- Too many streams linger (`SSE_MAX_LINGERING`). The oldest stream of the client with the most
  lingering streams expires.
- Its client makes the same request again without an event id, as a reloaded page does. Without an
  id, the client cannot resume the stream.

In the last two cases only streams count whose clients have left on their own. A stream that the
middleware has disconnected itself (rotation, drain) counts after the time in which its client is
expected to reconnect.
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
    """All lingering streams of a process.

    Args:
        limit: the maximum number of streams whose clients have left on their own.
        observers: are notified when a stream begins or ceases to linger.

    Attributes:
        paths: the paths of the requests that end a lingering stream if they are repeated.
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
        """Add a stream. It does not count against the limit before `count` is called."""
        self._remove(stream)
        if stream not in self._streams:
            self._streams[stream] = None
            self._notify(1)

    def count(self, stream: LingeringStream, now: float) -> None:
        """Count a stream against the limit; if too many are counted, one of them expires.

        The stream expires at once if its client has just repeated its request.
        """
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
        """Remove a stream, because a client follows it again or it has ended."""
        self._remove(stream)
        if stream in self._streams:
            del self._streams[stream]
            self._notify(-1)

    def on_opened(self, key: RequestKey, now: float) -> None:
        """Handle that a client has opened a stream by a request without an event id."""
        self.end_repeated(key)
        self._requests.on_opened(key, now)

    def end_repeated(self, key: RequestKey) -> None:
        """End the counted streams that the same request has opened."""
        for stream in self._requests.find(key):
            self.discard(stream)
            stream.expire()

    def _remove(self, stream: LingeringStream) -> None:
        """Undo `count`: the stream is not in the limit, and a repeated request does not end it."""
        self._left.discard(stream)
        self._requests.discard(stream)

    def _notify(self, more: int) -> None:
        for observer in self._observers:
            observer.lingering(more)


class Linger:
    """The times of one lingering stream.

    Args:
        queue: the lingering streams of the process.
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
        """Handle that the last client of the stream has left.

        Args:
            now: the time.
            seconds: how long the stream lingers; infinite if only the end of the drain ends it.
            expected_until: the time until which the client is expected to reconnect, because the
                middleware has disconnected it; `now` if the client has left on its own.
        """
        self._queue.add(self._stream)
        self.deadline = now + seconds
        self.counts_at = expected_until if seconds < math.inf else math.inf
        self.count(now)

    def count(self, now: float) -> None:
        """Count the stream against the limit once the time of `counts_at` has come."""
        if now >= self.counts_at:
            self.counts_at = math.inf
            self._queue.count(self._stream, now)

    def stop(self) -> None:
        """Handle that a client follows the stream again, or that the stream has ended."""
        self.deadline = self.counts_at = math.inf
        self._queue.discard(self._stream)
