"""Streams below layers that compress them with Brotli, outside and inside of the middleware.

An event follows the first one after a request for `/release`.
"""

import asyncio
from collections.abc import AsyncIterator

from brotli_asgi import BrotliMiddleware
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from sse_middleware import SSEMiddleware

_released = asyncio.Event()


async def stream(_: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await _released.wait()
        yield b"data: 2\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def release(_: Request) -> Response:
    _released.set()
    return Response()


_streams: ASGIApp = Starlette(routes=[Route("/stream", stream)])
app = Starlette(
    routes=[
        Mount("/none", _streams),
        Mount("/without", BrotliMiddleware(_streams)),
        Mount("/outside", BrotliMiddleware(SSEMiddleware(_streams, mark="*"))),
        Mount("/inside", SSEMiddleware(BrotliMiddleware(_streams), mark="*")),
        Mount("/unmarked", SSEMiddleware(BrotliMiddleware(_streams))),
        Route("/release", release),
    ]
)
