"""The ends of the logs that this process has written, until Redis drops the logs.

A failover loses the last writes of the old master. A log whose end is among them is running again,
as far as Redis knows, and its process lives. So its process writes the end again when a reader asks
for news of a log that has ended.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from sse_middleware.stores.expiries import Expiries
from sse_middleware.stores.redis.client import FAILURES
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.log import RedisLog
from sse_middleware.stores.redis.refusals import is_there
from sse_middleware.stores.redis.scripts import Command, milliseconds

logger = logging.getLogger("sse_middleware")


class EndedLogs:
    """Write the ends of logs again.

    Args:
        client: sends commands.
        ttl: how long a log is kept after its end, in seconds.
        answer: is called with a process, `news` or `gone`, and a stream: the answer to a request.
    """

    def __init__(
        self, client: CommandClient, ttl: float, answer: Callable[[str, str, str], None]
    ) -> None:
        self._client = client
        self._ttl = ttl
        self._answer = answer
        self._ends: dict[str, tuple[Command, float]] = {}  # with the times for which they are kept
        self._expiries = Expiries()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, log: RedisLog) -> None:
        """Keep the end of a log that Redis has."""
        end, stream_id = log.pending.ended, log.info.stream_id
        if end is not None:
            seconds = log.info.seconds_kept(self._ttl)
            self._ends[stream_id] = (end.id, *end.fields), seconds
            self._expiries.add(stream_id, seconds, time.monotonic())

    def drop_expired(self, now: float) -> None:
        """Drop the ends of logs that Redis has dropped."""
        while (expiry := self._expiries.next())[1] <= now:
            stream_id = expiry[0]
            _, seconds = self._ends.pop(stream_id)
            self._expiries.discard(stream_id, seconds)

    def on_follow(self, process: str, stream_id: str) -> None:
        """Handle that a process follows a log that this process does not write."""
        if stream_id not in self._ends:
            self._answer(process, "gone", stream_id)
            return
        task = asyncio.get_running_loop().create_task(self._restore_for(process, stream_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def restore(self, stream_id: str) -> bool:
        """Write the end of a log if Redis has lost it; return whether Redis has it.

        Raises:
            Exception: one of `FAILURES`.
        """
        if stream_id not in self._ends:
            return False
        (end, seconds), keys = self._ends[stream_id], self._client.keys
        log, expiry = keys.log(stream_id), milliseconds(seconds)
        (added,) = await self._client.write([("XADD", log, "NOMKSTREAM", *end)])
        if isinstance(added, bytes):  # it was lost
            keys_of_log = (log, keys.info(stream_id))
            await self._client.write([("PEXPIRE", key, expiry) for key in keys_of_log])
        return isinstance(added, bytes) or is_there(added)

    async def close(self) -> None:
        """Write no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _restore_for(self, process: str, stream_id: str) -> None:
        try:
            found = await self.restore(stream_id)
        except FAILURES as exc:  # the process follows it again later
            logger.debug("the end of a log is not written again: %s", type(exc).__name__)
        else:
            self._answer(process, "news" if found else "gone", stream_id)
