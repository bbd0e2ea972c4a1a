"""An app that starts quickly, and streams for minutes."""

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware


async def search(request: Request) -> StreamingResponse:
    pause = int(request.query_params["delay_ms"]) / 1000

    async def events() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(pause)

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(
    routes=[Route("/stream/search", search)],
    middleware=[Middleware(SSEMiddleware, mark="/stream/*")],
)
