"""A connection to Redis of our own, for one thing: to publish, or to listen.

redis-py's pool, retries and time-outs cost most of what a command does there, and this runs for
each event. Whoever uses it sets the time limits, and makes it anew where anything has gone wrong.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from sse_middleware.stores.redis_client import FAILURES
from sse_middleware.stores.redis_link import Command


class Line:
    """One connection, which connects when it is used.

    Args:
        client: to the same Redis, in the same way.
    """

    def __init__(self, client: Redis) -> None:
        pool = client.connection_pool
        # Without a time-out redis-py writes in our task, and not in one more; RESP 2 says no more
        # than was asked for.
        options = {**pool.connection_kwargs, "socket_timeout": None, "protocol": 2}
        self._connection: Any = pool.connection_class(**options)

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return their answers, an exception where one was refused.

        Raises:
            Exception: one of `FAILURES`; the outcome is unknown, and the line is to be closed.
        """
        packed = b"".join(map(_packed, commands))
        await self._connection.send_packed_command(packed, check_health=False)
        return [await self._answer() for _ in commands]

    async def say(self, *command: str | bytes) -> None:
        """Send one command; its answer comes by `hear`."""
        await self._connection.send_command(*command, check_health=False)

    async def hear(self) -> Any:
        """Return what comes next, however long that takes."""
        return await self._connection.read_response()

    async def close(self) -> None:
        """Cut it."""
        try:
            await self._connection.disconnect(nowait=True)
        except FAILURES:  # it is gone as it is
            return

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as exc:
            return exc


def _packed(command: Command) -> bytes:
    """Return a command as it goes over the wire (RESP, "Sending commands to a Redis server")."""
    parts = [b"*%d\r\n" % len(command)]
    for word in command:
        said = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(said), said))
    return b"".join(parts)
