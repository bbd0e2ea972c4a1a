"""A connection to Redis for one purpose: to publish, or to listen.

redis-py connects and logs in. After that, the usual way of an event is: `send` writes packed
commands to the transport, and `data_received` parses replies and calls `on_reply`. There is no
task, stream or queue in between, because this code runs for each event. Owners of a connection set
the timeouts, and open a new connection after a failure.

redis-py has no public access to the transport. If the private attribute that contains it is
missing, the connection sends and receives through redis-py's ordinary API, with one task for each
direction. This is slower, and all else stays the same.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from hiredis import Reader, pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import ResponseError

from sse_middleware.stores.redis.client import FAILURES
from sse_middleware.stores.redis.scripts import Command

logger = logging.getLogger("sse_middleware")

_UNEXPECTED: Final = "Channels: an unexpected error. The connection to Redis is made again."

PING: Final[bytes] = pack_command(("PING",))


class RedisConnection(asyncio.Protocol):
    """One connection.

    Args:
        client: a client of the same Redis, with the same options.
        on_reply: is called with each reply, and with an exception for a refused command.

    Attributes:
        lost: done when the connection is lost; its result is the reason.
    """

    def __init__(self, client: Redis, on_reply: Callable[[Any], None]) -> None:
        pool = client.connection_pool
        # RESP 2 has no messages that were not requested.
        options = {**pool.connection_kwargs, "socket_timeout": None, "protocol": 2}
        self._connection: Any = pool.connection_class(**options)
        self._replies = Reader(replyError=DefaultParser.parse_error)
        self._on_reply = on_reply
        self._transport: Any = None
        self._predecessor: asyncio.BaseProtocol | None = None
        self._tasks: _ConnectionTasks | None = None
        self.lost: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        if self.lost.done():
            return False
        transport = self._transport
        return self._tasks is not None if transport is None else not transport.is_closing()

    async def open(self) -> None:
        """Connect.

        Raises:
            Exception: one of `FAILURES`.
        """
        await self._connection.connect()
        transport = _transport_of(self._connection)
        if transport is None:
            self._tasks = _ConnectionTasks(self._connection, self._on_reply, self.abort)
            return
        # All commands of the login are answered, so redis-py's streams contain no data.
        self._predecessor = transport.get_protocol()
        transport.set_protocol(self)
        self._transport = transport
        if not self.is_open:
            raise LostConnectionError("the connection is closed already")

    def send(self, packed: bytes) -> None:
        """Send packed commands; `on_reply` receives the replies."""
        if self._tasks is not None:
            self._tasks.send(packed)
        elif self._transport is not None:
            try:
                self._transport.write(packed)
            except RuntimeError as exc:  # uvloop raises it if the transport is closing
                self.abort(exc)

    def abort(self, reason: BaseException) -> None:
        """Close the connection at once."""
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._transport is not None:
            self._transport.abort()
        if self._tasks is not None:
            self._tasks.cancel()

    async def close(self) -> None:
        """Close the connection; later replies are ignored."""
        self._on_reply = _ignore
        if self._tasks is not None:
            await self._tasks.close()
        try:
            await self._connection.disconnect(nowait=True)
        except FAILURES:  # it is closed already
            return

    def data_received(self, data: bytes) -> None:
        """Parse replies."""
        try:
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not False:
                self._on_reply(reply)
        except Exception as exc:
            logger.exception(_UNEXPECTED)
            self.abort(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        """Record that the connection is lost."""
        if self._predecessor is not None:  # redis-py's streams must notice it too
            self._predecessor.connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(exc or LostConnectionError("Redis has closed the connection"))


class _ConnectionTasks:
    """Send and receive through redis-py's ordinary API.

    Args:
        connection: of redis-py, connected.
        on_reply: is called with each reply.
        failed: is called once, with the reason, if the connection is lost.
    """

    def __init__(
        self,
        connection: Any,
        on_reply: Callable[[Any], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._connection = connection
        self._on_reply = on_reply
        self._failed = failed
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()
        create_task = asyncio.get_running_loop().create_task
        self._tasks = [create_task(self._send()), create_task(self._receive())]

    def send(self, packed: bytes) -> None:
        self._unsent.put_nowait(packed)

    def cancel(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def close(self) -> None:
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self) -> None:
        try:
            while True:
                packed = await self._unsent.get()
                await self._connection.send_packed_command(packed, check_health=False)
        except FAILURES as exc:
            self._failed(exc)

    async def _receive(self) -> None:
        try:
            while True:
                self._on_reply(await self._read_reply())
        except FAILURES as exc:
            self._failed(exc)
        except Exception as exc:
            logger.exception(_UNEXPECTED)
            self._failed(exc)

    async def _read_reply(self) -> Any:
        """Return the next reply, an exception for a refused command."""
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as exc:
            return exc


def pack_commands(commands: Sequence[Command]) -> bytes:
    """Return commands as bytes of the Redis protocol."""
    packed: list[bytes] = [pack_command(command) for command in commands]  # type: ignore[arg-type]
    return b"".join(packed)


def _transport_of(connection: Any) -> Any:
    """Return the transport of a connection of redis-py, `None` if this version hides it."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    return transport if hasattr(transport, "set_protocol") else None


def _ignore(_: Any) -> None:
    """Ignore a reply to a connection that is closed."""
