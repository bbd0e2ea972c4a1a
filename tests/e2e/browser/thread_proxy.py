"""A TCP proxy in a thread, which cuts connections after bytes that the test names."""

import asyncio
import contextlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.support.cut_proxy import How, forward, reset
from tests.support.waiting import HANG_SECONDS

_HOST = "127.0.0.1"
_READ_BYTES = 1 << 16

STALLED: Literal["stalled"] = "stalled"
"""Neither half is closed, and no more bytes pass."""
_How = How | Literal["stalled"]


class ThreadProxy:
    """Forward connections to the server at `server_port`, which may change; see `running_proxy`.

    Attributes:
        port: the port of 127.0.0.1 on which the proxy listens.
        server_port: the target of new connections.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.server_port = server_port
        self._places: deque[tuple[re.Pattern[bytes], _How]] = deque()
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self, *places: bytes, how: _How = How.CLOSED) -> None:
        """Cut after the first match of each place, one after the other, in any connection.

        Args:
            *places: regular expressions for the bytes that a server sends.
            how: how the two halves of a connection are cut.
        """
        self._places.extend((re.compile(place), how) for place in places)

    def discard_cuts(self) -> int:
        """Discard the cuts that are not made yet, and return their number."""
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
        forwarding = asyncio.create_task(forward(client, to_server))
        try:
            how = await self._answer(server, to_client)
            forwarding.cancel()  # it would pass the end of the connection on
            if how is STALLED:
                while await server.read(_READ_BYTES):
                    pass
            if how in {How.RESET, How.UNNOTICED}:
                reset(to_client)
            to_client.close()
            if how is How.RESET:
                reset(to_server)
            if how is How.UNNOTICED:
                while await server.read(_READ_BYTES):
                    pass
        except OSError:
            pass  # the client or the server has closed the connection
        finally:
            forwarding.cancel()
            for writer in (to_client, to_server):
                writer.close()
            for writer in (to_client, to_server):
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _answer(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> _How | None:
        """Forward the bytes of a server to their end, or up to the place of a cut."""
        kept = b""  # since the last event: a place may begin in it
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


@contextmanager
def running_proxy(server_port: int) -> Iterator[ThreadProxy]:
    """Run a proxy in a thread of its own until the block ends."""
    proxy, stop, started = ThreadProxy(server_port), asyncio.Event(), threading.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(proxy.serve(stop, started)), daemon=True
    )
    thread.start()
    try:
        assert started.wait(HANG_SECONDS)
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(HANG_SECONDS)
        loop.close()
