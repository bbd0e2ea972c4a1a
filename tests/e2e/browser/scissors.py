"""A TCP proxy that cuts a connection where the test has asked for it, and passes on all else."""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.support.cutting import How

_HOST = "127.0.0.1"
_READ_BYTES = 1 << 16

STALLED: Literal["stalled"] = "stalled"
"""Neither half hears of a cut, and nothing comes through any more."""
_How = How | Literal["stalled"]


class Scissors:
    """Stand before the server at `server_port`, which may change; run by `standing`.

    Attributes:
        port: where it listens.
        server_port: where new connections lead.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.server_port = server_port
        self._places: deque[tuple[re.Pattern[bytes], _How]] = deque()
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self, *places: bytes, how: _How = How.CLOSED) -> None:
        """Cut behind the first match of each place, one after the other, in any connection.

        Args:
            *places: regular expressions for what a server sends.
            how: what becomes of the two halves of a connection.
        """
        self._places.extend((re.compile(place), how) for place in places)

    def lay_down(self) -> int:
        """Forget the cuts that are still to be made, and tell how many these are."""
        left = len(self._places)
        self._places.clear()
        return left

    async def serve(self, stop: asyncio.Event, started: threading.Event) -> None:
        """Accept connections until `stop` is set."""
        listener = await asyncio.start_server(self._accept, _HOST)
        self.port = listener.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        listener.close()
        for connection in self._connections:
            connection.cancel()
        for outcome in await asyncio.gather(*self._connections, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connect(client, to_client))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(_HOST, self.server_port)
        except OSError:
            to_client.close()
            return
        asking = asyncio.create_task(_forward(client, to_server))
        try:
            how = await self._answer(server, to_client)
            asking.cancel()  # or it would tell the server
            if how is STALLED:
                while await server.read(_READ_BYTES):
                    pass
            if how in {How.RESET, How.UNNOTICED}:
                _reset(to_client)
            to_client.close()
            if how is How.RESET:
                _reset(to_server)
            if how is How.UNNOTICED:
                while await server.read(_READ_BYTES):
                    pass
        except OSError:
            pass  # one of both has gone by itself
        finally:
            asking.cancel()
            for writer in (to_client, to_server):
                writer.close()
            for writer in (to_client, to_server):
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _answer(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> _How | None:
        """Pass on what a server sends until it ends, or up to a place to cut at."""
        kept = b""  # from where the next place may begin
        while data := await server.read(_READ_BYTES):
            passed = len(kept)
            kept += data
            place, how = self._places[0] if self._places else (None, How.CLOSED)
            if place is not None and (found := place.search(kept)) is not None:
                self._places.popleft()
                to_client.write(kept[passed : max(passed, found.end())])
                with contextlib.suppress(OSError):
                    await to_client.drain()
                return how
            to_client.write(data)
            await to_client.drain()
            kept = kept[kept.rfind(b"\n\n") + 1 :]
        return None


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def standing(server_port: int) -> Iterator[Scissors]:
    """Run a proxy in a thread of its own until the block ends."""
    scissors, stop, started = Scissors(server_port), asyncio.Event(), threading.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(scissors.serve(stop, started)), daemon=True
    )
    thread.start()
    try:
        assert started.wait(10)
        yield scissors
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
