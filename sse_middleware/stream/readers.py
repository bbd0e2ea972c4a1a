"""The number of connections that follow streams in this process, and its limits."""

import threading

from sse_middleware.http.own_responses import PROCESS, READERS


class ReaderPool:
    """Count the readers: the connections that follow the log of a stream.

    The connection of the client that has opened a stream is none. All event loops may call this.

    Args:
        limit_per_stream: the number of readers that one stream may have.
        limit: the number of readers of all streams together, `None` for no limit.
    """

    def __init__(self, limit_per_stream: int, limit: int | None) -> None:
        self._limit_per_stream = limit_per_stream
        self._limit = limit
        self._readers: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether no stream may have another reader."""
        return self._limit is not None and self._count >= self._limit

    def limit_for(self, stream_id: str) -> str:
        """Return the limit that a reader of a stream would exceed, `""` for none."""
        if self.is_full:
            return PROCESS
        return READERS if self._readers.get(stream_id, 0) >= self._limit_per_stream else ""

    def take(self, stream_id: str) -> str:
        """Count a reader of a stream, or return the limit that it would exceed."""
        with self._lock:
            reached = self.limit_for(stream_id)
            if not reached:
                self._count += 1
                self._readers[stream_id] = self._readers.get(stream_id, 0) + 1
        return reached

    def release(self, stream_id: str) -> None:
        """Count a reader no longer."""
        with self._lock:
            self._count -= 1
            left = self._readers.pop(stream_id) - 1
            if left:
                self._readers[stream_id] = left


def reader_limit(max_streams: int | None, max_readers: int) -> int | None:
    """Return the most readers of a process, `None` for no limit.

    Readers do not count as streams: one returns for each stream that is cut, and is not rejected
    because all streams are open. One stream may have all its readers.
    """
    return None if max_streams is None else max(max_streams, max_readers)
