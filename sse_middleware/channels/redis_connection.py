"""A connection to Redis of our own, for one thing: to publish, or to listen.

redis-py connects and logs in; from then on bytes come and go without a task, a stream or a queue
between them and whoever uses the line, for this runs for each event. Whoever uses it sets the time
limits, and makes it anew where anything has gone wrong.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from hiredis import Reader
from redis.asyncio import Redis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError as LostConnectionError

from sse_middleware.stores.redis.client import FAILURES

logger = logging.getLogger("sse_middleware")


class RedisConnection(asyncio.Protocol):
    """One connection.

    Args:
        client: to the same Redis, in the same way.
        heard: is told of each reply, in the turn of the loop in which it came; of an exception
            where something was refused.

    Attributes:
        lost: done when the connection is, with the reason for its result.
    """

    def __init__(self, client: Redis, heard: Callable[[Any], None]) -> None:
        pool = client.connection_pool
        # RESP 2 says no more than was asked for.
        options = {**pool.connection_kwargs, "socket_timeout": None, "protocol": 2}
        self._connection: Any = pool.connection_class(**options)
        self._replies = Reader(replyError=DefaultParser.parse_error)
        self._heard = heard
        self._transport: Any = None
        self._predecessor: asyncio.BaseProtocol | None = None
        self.lost: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """Whether something can be said."""
        transport = self._transport
        return transport is not None and not (self.lost.done() or transport.is_closing())

    async def open(self) -> None:
        """Connect.

        Raises:
            Exception: one of `FAILURES`.
        """
        await self._connection.connect()
        # What it has asked is answered, so nothing is in its streams.
        transport = self._connection._writer.transport  # noqa: SLF001 - there is no other way
        self._predecessor = transport.get_protocol()
        transport.set_protocol(self)
        self._transport = transport
        if not self.is_open:
            raise LostConnectionError("the connection is closed already")

    def say(self, packed: bytes) -> None:
        """Send commands, packed; whatever is answered comes by `heard`."""
        try:
            self._transport.write(packed)
        except RuntimeError as exc:  # uvloop's, where it is closing
            self.cut(exc)

    def cut(self, reason: BaseException) -> None:
        """Give it up at once."""
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Let go of it."""
        self._heard = _nobody
        try:
            await self._connection.disconnect(nowait=True)
        except FAILURES:  # it is gone as it is
            return

    def data_received(self, data: bytes) -> None:
        """Take in what has come."""
        try:
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not False:
                self._heard(reply)
        except Exception as exc:
            logger.exception("a connection to Redis is made anew, whatever this was")
            self.cut(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that there is no more."""
        if self._predecessor is not None:  # or redis-py's streams take theirs for open
            self._predecessor.connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(exc or LostConnectionError("Redis has closed the connection"))


def _nobody(_: Any) -> None:
    """Be told of what nobody waits for any more."""


def packed(words: Iterable[str | bytes | int]) -> bytes:
    """Return words as they go over the wire (RESP, "Sending commands to a Redis server")."""
    parts: list[bytes] = []
    for word in words:
        said = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(said), said))
    return b"".join(parts)


def packed_command(*words: str | bytes | int) -> bytes:
    """Return a command as it goes over the wire."""
    return b"*%d\r\n%b" % (len(words), packed(words))
