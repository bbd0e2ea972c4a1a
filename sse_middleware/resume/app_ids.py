"""Find the event that has an id of the app, in the log of a stream that the app does not keep."""

import asyncio
from contextlib import aclosing
from typing import Final

from sse_middleware.http.body_digest import BodyDigest
from sse_middleware.http.request import SSERequest
from sse_middleware.protocol.wire import event_id
from sse_middleware.resume.authorization import Authorization
from sse_middleware.resume.log_events import blocks_after
from sse_middleware.resume.lookup import Lookup
from sse_middleware.stores.base import LogSnapshot, LogState
from sse_middleware.stream.context import Context

_PAUSES: Final = (0.05, 0.1, 0.2)
"""The pauses before an event is looked up again that another process may be about to store."""


class AppIds:
    """Find events by ids of the app.

    Args:
        context: the objects that all requests share.
        lookup: finds the streams.
        access: decides which requests may read them.
    """

    def __init__(self, context: Context, lookup: Lookup, access: Authorization) -> None:
        self._context = context
        self._lookup = lookup
        self._access = access

    async def find(
        self, name: str, held: str, request: SSERequest, body: BodyDigest | None
    ) -> tuple[LogSnapshot | None, int]:
        """Return the log that has the app's id `held`, if the client may read it, and the number.

        Another process may run the stream, and may be about to store the event.
        """
        self._lookup.check_room()
        store = self._context.store
        found = await self._lookup.find_named(name, request)
        if not self._access.is_opened_by(found, request):
            if found is not None:
                await self._lookup.find_nothing(request)
            return None, 0
        if not await self._access.may_resume(found.info, request, body):
            return None, 0
        after = await self._find_number(found, held)
        for pause in _PAUSES if store.is_shared else ():
            if after is not None or found.state is not LogState.RUNNING:
                break
            await asyncio.sleep(pause)
            found = await store.find(found.info.stream_id) or found
            after = await self._find_number(found, held)
        return (None, 0) if after is None else (found, after)

    async def _find_number(self, found: LogSnapshot, held: str) -> int | None:
        """Return the number of the event that has the app's id `held`, `None` if none has."""
        wanted, found_at = held.encode(), None
        number = found.first - 1
        if found.last <= number:
            return None  # the log is empty
        async with aclosing(blocks_after(self._context.store, found, number)) as blocks:
            async for at, block in blocks:
                if event_id(block) == wanted:
                    found_at = at
        return found_at
