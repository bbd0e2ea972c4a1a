"""Look up the streams of clients that return, within limits.

Any client can send ids that no stream has, and in Redis each of them is looked up several times.
So the limits are checked first: whether the process has room for a reader at all, and whether the
client has sent too many unknown ids. Neither check needs the store.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from sse_middleware.http.own_responses import PROCESS, RATE, RETRY_SECONDS
from sse_middleware.http.request import SSERequest
from sse_middleware.http.routes import UNMATCHED
from sse_middleware.protocol.event_ids import new_secret, stream_id
from sse_middleware.stores.base import LogSnapshot, find_patiently
from sse_middleware.stream.context import Context


class MissLimit(Protocol):
    """Limits the unknown ids that a client may send."""

    async def seconds_until_lookup(self, request: SSERequest) -> int:
        """Return the seconds until an id of a client is looked up again, 0 for now."""

    async def count_miss(self, request: SSERequest) -> None:
        """Count an unknown id."""


class LimitReachedError(Exception):
    """A reader is not admitted.

    Attributes:
        reason: the limit, as in `own_responses.REJECTIONS`.
        retry_after: the seconds after which the client may try again.
        route: the bounded name of the stream's route.
    """

    def __init__(
        self, reason: str, retry_after: int = RETRY_SECONDS, *, route: str = UNMATCHED
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.route = route


class Lookup:
    """Look up streams.

    Args:
        context: the objects that all requests share.
        limit: limits the unknown ids, `None` for no limit.
    """

    def __init__(self, context: Context, limit: MissLimit | None) -> None:
        self._context = context
        self._limit = limit

    def check_room(self) -> None:
        """Check that the process has room for another reader.

        Raises:
            LimitReachedError: it has none.
        """
        if self._context.readers.is_full:
            raise LimitReachedError(PROCESS)

    async def find(self, name: str, request: SSERequest) -> LogSnapshot | None:
        """Return the log of a stream by its public id, `None` if there is none.

        Raises:
            LimitReachedError: the client has sent too many unknown ids.
            StoreError: the store is out of reach.
        """
        return await self._find(self._context.store.find, name, request)

    async def find_named(self, name: str, request: SSERequest) -> LogSnapshot | None:
        """Return the latest log of a name, for a client that has a part of it already.

        Only reads are limited: a page may stop its stream at any time, also after its end.

        Raises:
            LimitReachedError: the client has sent too many unknown ids.
            StoreError: the store is out of reach.
        """
        find = self._context.store.find_named
        patiently = partial(find_patiently, find) if self._context.store.is_shared else find
        if request.method != "GET":
            return await patiently(name)
        return await self._find(patiently, name, request)

    async def _find(
        self, find: Callable[[str], Awaitable[LogSnapshot | None]], key: str, request: SSERequest
    ) -> LogSnapshot | None:
        seconds = 0 if self._limit is None else await self._limit.seconds_until_lookup(request)
        if seconds:
            raise LimitReachedError(RATE, seconds)
        found = await find(key)
        if found is None:
            await self.count_miss(request)
        return found

    async def count_miss(self, request: SSERequest) -> None:
        """Count an id that is unknown, or of a stream that the client may not read."""
        if self._limit is not None:
            await self._limit.count_miss(request)

    async def find_nothing(self, request: SSERequest) -> None:
        """Treat a stream that the client may not read as unknown, which may take longer."""
        await self.count_miss(request)
        await self._context.store.find(stream_id(new_secret()))
