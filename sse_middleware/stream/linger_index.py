"""Indexes of the streams that linger. All their operations take constant time.

All that is ordered is in an `OrderedDict`: a `dict` searches for its first key among the deleted
ones, so that a queue in it takes time in proportion to its length.
"""

from collections import OrderedDict
from typing import Final, NamedTuple, Protocol

from sse_middleware.http.request import SSERequest

_LATE_SECONDS: Final = 1.0
"""How much later than the next request of its client the disconnect of a stream may arrive.

The two come by different connections, perhaps through a proxy. After a longer time, the client of
the stream is taken for another page at the same address, whose connection is interrupted.
"""


class RequestKey(NamedTuple):
    """All of a request that a client repeats when it reloads a page.

    Attributes:
        path: the path.
        query: the query string.
        method: the HTTP method.
        accept: the `Accept` header, since an endpoint may send other responses too.
        identity: the identity of the client.
        body_digest: the digest of the body of a POST.
    """

    path: str
    query: bytes
    method: str
    accept: bytes
    identity: str
    body_digest: str | None


class LingeringStream(Protocol):
    """A stream that continues without a reader.

    Attributes:
        client: the identity of its client, or else the client's address.
        request_key: the request that has opened it, `None` if it cannot be recognized.
    """

    client: str
    request_key: RequestKey | None

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


class RequestIndex:
    """The lingering streams of each request that can be recognized when it is repeated.

    Attributes:
        paths: the paths of these requests, each with the requests and their streams. It remains one
            object, so that a lookup for each request of the app costs no call.
    """

    __slots__ = ("_latest", "paths")

    def __init__(self) -> None:
        self._latest: OrderedDict[RequestKey, tuple[RequestKey, float]] = OrderedDict()
        self.paths: dict[str, dict[RequestKey, dict[LingeringStream, None]]] = {}

    def add(self, stream: LingeringStream) -> None:
        """Add a stream."""
        key = stream.request_key
        if key is not None:
            self.paths.setdefault(key.path, {}).setdefault(key, {})[stream] = None

    def discard(self, stream: LingeringStream) -> None:
        """Remove a stream if it is there."""
        key = stream.request_key
        streams = None if key is None else self.paths.get(key.path, {}).get(key)
        if key is None or streams is None or stream not in streams:
            return
        del streams[stream]
        if not streams:
            del self.paths[key.path][key]
        if not self.paths[key.path]:
            del self.paths[key.path]

    def on_opened(self, key: RequestKey, now: float) -> None:
        """Store the key of the latest stream of a request for a second."""
        self._latest.pop(key, None)
        self._latest[key] = key, now
        while now - next(iter(self._latest.values()))[1] > _LATE_SECONDS:
            self._latest.popitem(last=False)

    def is_repeated(self, stream: LingeringStream, now: float) -> bool:
        """Return whether the request of a stream has just been made again."""
        if stream.request_key is None or stream.request_key not in self._latest:
            return False
        key, opened_at = self._latest[stream.request_key]
        return key is not stream.request_key and now - opened_at <= _LATE_SECONDS

    def find(self, key: RequestKey) -> tuple[LingeringStream, ...]:
        """Return the streams of a request."""
        return tuple(self.paths.get(key.path, {}).get(key, ()))


def request_key(
    request: SSERequest, identity: str | None, body_digest: str | None
) -> RequestKey | None:
    """Return the key of a request, `None` without an identity, or if its body is not known.

    Args:
        request: the request.
        identity: the identity of its client.
        body_digest: the digest of its body; the body of a GET has no meaning (RFC 9110 9.3.1).
    """
    if not identity or (request.method != "GET" and body_digest is None):
        return None
    return RequestKey(
        path=request.request_path,
        query=request.scope.get("query_string") or b"",
        method=request.method,
        accept=request.headers.get(b"accept", b""),
        identity=identity,
        body_digest=body_digest,
    )
