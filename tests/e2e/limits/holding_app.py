"""An app whose streams hold a resource that only the `finally` block of their body releases."""

import asyncio
import gc
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware

counts = {"begun": 0, "running": 0, "held": 0}
"""The requests that have begun, those that run, and the resources that are held."""


async def _events() -> AsyncIterator[bytes]:
    try:
        while True:
            yield b"data: x\n\n"
            await asyncio.sleep(0.01)
    finally:
        counts["held"] -= 1


async def stream(request: Request) -> Response:
    """Take the resource, and stream until the client leaves."""
    counts["held"] += 1
    return StreamingResponse(_events(), media_type="text/event-stream")


async def state(request: Request) -> Response:
    """Return the counts, after the generators that are no longer used were finalized."""
    gc.collect()
    await asyncio.sleep(0)
    return JSONResponse(counts)


_app = Starlette(
    routes=[Route("/marked", stream), Route("/unmarked", stream), Route("/state", state)]
)
_app.add_middleware(SSEMiddleware, mark="/marked")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Count the requests around the middleware, except those for the state."""
    if scope["type"] != "http" or scope["path"] == "/state":
        await _app(scope, receive, send)
        return
    counts["begun"] += 1
    counts["running"] += 1
    try:
        await _app(scope, receive, send)
    finally:
        counts["running"] -= 1
