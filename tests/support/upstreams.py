"""An upstream service on a real socket, which sends what a test says."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

Answer = Callable[["Visit"], Awaitable[None]]

EVENT_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n"
)


class Visit:
    """One request to the upstream.

    Attributes:
        request: the bytes of the head of the request.
        body: those of its body.
        is_closed: set when the client has closed the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.request = self.body = b""
        self.is_closed = asyncio.Event()

    async def read_request(self) -> None:
        self.request = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)\r\n", self.request.lower())
        if length is not None:
            self.body = await self._reader.readexactly(int(length[1]))
        self._closing = asyncio.ensure_future(self._wait_for_close())

    def json(self) -> dict[str, Any]:
        """Return the body of the request."""
        data: dict[str, Any] = json.loads(self.body)
        return data

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def start(self, headers: bytes = b"") -> None:
        """Send the head of an event stream, whose body is chunked."""
        await self.send(EVENT_STREAM_HEAD + headers + b"transfer-encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def cut(self) -> None:
        """Close the connection in the middle of the response."""
        self._writer.close()

    async def _wait_for_close(self) -> None:
        with suppress(OSError):
            while await self._reader.read(1 << 16):
                pass
        self.is_closed.set()


class Upstream:
    """A running upstream.

    Attributes:
        url: its URL.
        visits: the requests so far.
    """

    def __init__(self) -> None:
        self.url = ""
        self.visits: list[Visit] = []


@asynccontextmanager
async def upstream_service(answer: Answer) -> AsyncIterator[Upstream]:
    """Run an upstream in this event loop, which answers each request by `answer(visit)`."""
    upstream, tasks = Upstream(), set[asyncio.Task[None]]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        visit = Visit(reader, writer)
        try:
            await visit.read_request()
            upstream.visits.append(visit)
            await answer(visit)
            await visit.is_closed.wait()
        except (asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            pass  # the test is over, or its client has left
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
