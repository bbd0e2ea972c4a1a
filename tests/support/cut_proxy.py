"""A TCP proxy that cuts connections at given bytes of their responses."""

import asyncio
import contextlib
import enum
import itertools
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

_HOST = "127.0.0.1"
_READ_BYTES = 1 << 16
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_NO_CONTENT = b"HTTP/1.1 204"


class How(enum.StrEnum):
    """How the two halves of a connection are cut."""

    CLOSED = "closed"
    """Both are closed in order (FIN)."""
    RESET = "reset"
    """Both are reset (RST)."""
    UNNOTICED = "unnoticed"
    """The client's half is reset; the server keeps writing, as it does into a dead network."""


@dataclass(frozen=True)
class Cut:
    """A cut of one connection.

    Attributes:
        place: the number of bytes of the response (including its head and the framing of its
            chunks) that pass; or a regular expression, and the cut follows its first match.
        how: how the connection is cut.
        held: whether no byte passes before the response is complete, so that its producer has
            ended before the cut.
    """

    place: int | bytes
    how: How = How.CLOSED
    held: bool = False

    def end_in(self, response: bytes) -> int | None:
        """Return the offset of the cut in a partial response, `None` if it is not reached yet."""
        if isinstance(self.place, int):
            return self.place if len(response) >= self.place else None
        found = re.search(self.place, response)
        return None if found is None else found.end()


class CuttingProxy:
    """Forward connections to servers, and cut the first ones, each by its own cut.

    Args:
        ports: of the servers; each connection goes to the next one, as with a load balancer.
        cuts: of the first connections.

    Attributes:
        port: the port of 127.0.0.1 on which the proxy listens.
        made: the cuts that were made; a cut after the end of a response is not made.
        passed: the number of bytes of the longest response that passed.
    """

    def __init__(self, ports: Sequence[int], cuts: Iterable[Cut] = ()) -> None:
        self.port = 0
        self.made: list[Cut] = []
        self.passed = 0
        self._server_ports: Iterator[int] = itertools.cycle(ports)
        self._cuts = iter(cuts)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, _HOST)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        cut = next(self._cuts, None)
        try:
            from_server, to_server = await asyncio.open_connection(_HOST, next(self._server_ports))
        except OSError:
            reset(to_client)
            return
        forwarding = asyncio.create_task(forward(from_client, to_server))
        try:
            if await self._answer(from_server, to_client, cut):
                return
            assert cut is not None
            self.made.append(cut)
            forwarding.cancel()
            if cut.how is How.CLOSED:
                to_client.close()
                to_server.write_eof()
            else:
                reset(to_client)
            if cut.how is not How.RESET:
                # A socket that is closed before all is read would be reset.
                while await from_server.read(_READ_BYTES):
                    pass
        except OSError:
            pass  # the client or the server has closed the connection
        finally:
            forwarding.cancel()
            if cut is not None and cut.how is How.RESET:
                reset(to_server)
            for writer in (to_client, to_server):
                writer.close()
            for writer in (to_client, to_server):
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _answer(
        self, from_server: asyncio.StreamReader, to_client: asyncio.StreamWriter, cut: Cut | None
    ) -> bool:
        """Forward a response, and return whether all of it passed."""
        response, passed = b"", 0
        async for data in _arriving(from_server, held=cut is not None and cut.held):
            response += data
            end = None if cut is None else cut.end_in(response)
            to_client.write(response[passed:end])
            await to_client.drain()
            passed = len(response) if end is None else end
            self.passed = max(self.passed, passed)
            if end is not None:
                return False
        return True


async def _arriving(reader: asyncio.StreamReader, *, held: bool) -> AsyncIterator[bytes]:
    if held:
        response = b""
        while not response.endswith(_LAST_CHUNK) and not response.startswith(_NO_CONTENT):
            data = await reader.read(_READ_BYTES)
            if not data:
                break
            response += data
        yield response
    while data := await reader.read(_READ_BYTES):
        yield data


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until the end, and pass the end on."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
        writer.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
