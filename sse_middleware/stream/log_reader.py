"""A connection that has fallen behind its producer reads the log, until it has caught up."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from sse_middleware.errors import StoreError
from sse_middleware.stores.base import EventStore
from sse_middleware.stream.connection import Connection


class LogReader:
    """Read the log for a connection whose client is slower than others.

    Args:
        store: has the log.
        stream_id: the public id of the stream.
        connection: the connection.
        after: the number of the last event that its client has or will have.
        clock: returns the time.
        on_done: is called when the connection has caught up, or has ended.
    """

    __slots__ = ("_clock", "_connection", "_on_done", "_store", "_stream_id", "_task")

    def __init__(
        self,
        store: EventStore,
        stream_id: str,
        connection: Connection,
        after: int,
        *,
        clock: Callable[[], float],
        on_done: Callable[[], None],
    ) -> None:
        self._store = store
        self._stream_id = stream_id
        self._connection = connection
        self._clock = clock
        self._on_done = on_done
        self._task = asyncio.ensure_future(self._run(after))

    async def aclose(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _run(self, after: int) -> None:
        connection = self._connection
        await connection.until_written()
        try:
            async with aclosing(self._store.follow(self._stream_id, after)) as log:
                await connection.follow(log, after, self._clock)
        except StoreError:
            connection.on_store_failure()
        self._on_done()
