"""Carry the requests of a client of httpx2 to an ASGI app in the same process, and stream.

`httpx2.ASGITransport` returns a response when its app has ended it, which is too late for a stream.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message

logger = logging.getLogger(__name__)


class InProcessTransport(httpx2.AsyncBaseTransport):
    """Run an app for each request, no faster than its response is read.

    Args:
        app: the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Store the app."""
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Run the app until its response starts."""
        exchange = _Exchange(self._app, request, await request.aread())
        self._tasks.add(exchange.task)
        exchange.task.add_done_callback(self._on_return)
        start = await exchange.next_message()
        return httpx2.Response(start["status"], headers=start["headers"], stream=exchange)

    async def aclose(self) -> None:
        """Stop the apps that run."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_return(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("an app in this process has failed", exc_info=exc)


class _Exchange(httpx2.AsyncByteStream):
    """One request, and the body of its response."""

    def __init__(self, app: ASGIApp, request: httpx2.Request, body: bytes) -> None:
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(1)
        self._disconnected = asyncio.Event()
        self._body: bytes | None = body
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("127.0.0.1", 0),
            "server": (request.url.host, request.url.port),
        }
        self.task = asyncio.create_task(self._run(app, scope))

    async def next_message(self) -> Message:
        """Return the next message of the app; raise if it ends without one."""
        message = await self._messages.get()
        if message is None:
            raise httpx2.RemoteProtocolError("the app has ended without a response")
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            message = await self.next_message()
            if body := message.get("body"):
                yield body
            if not message.get("more_body"):
                return

    async def aclose(self) -> None:
        """Disconnect; as with a server, it is the app that ends."""
        self._disconnected.set()
        while not self._messages.empty():  # the app may wait for room
            self._messages.get_nowait()

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            await self._send(None)

    async def _send(self, message: Message | None) -> None:
        if not self._disconnected.is_set():
            await self._messages.put(message)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}
