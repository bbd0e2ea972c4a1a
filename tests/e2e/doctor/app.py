"""Streams for the doctor: marked, unmarked, outside of the middleware, and of sse-starlette."""

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware

COUNT = 8
PAUSE_SECONDS = 0.5


async def count(_: Request) -> Response:
    """Send events with pauses."""

    async def events() -> AsyncIterator[bytes]:
        for number in range(COUNT):
            yield f"data: {number}\n\n".encode()
            await asyncio.sleep(PAUSE_SECONDS)

    return StreamingResponse(events(), media_type="text/event-stream")


async def think(_: Request) -> Response:
    """Send one event, and then nothing for longer than any proxy waits."""

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.sleep(60)

    return StreamingResponse(events(), media_type="text/event-stream")


async def other(_: Request) -> Response:
    """Send the events by sse-starlette, with its pings."""

    async def events() -> AsyncIterator[dict[str, int]]:
        for number in range(COUNT):
            yield {"data": number}
            await asyncio.sleep(PAUSE_SECONDS)

    return EventSourceResponse(events(), ping=1)


app = Starlette(
    routes=[
        Route("/marked", count),
        Route("/unmarked", count),
        Route("/outside", count),
        Route("/thinking", think),
        Route("/sse-starlette", other),
    ]
)
app.add_middleware(SSEMiddleware, mark="/marked", exclude=["/outside", "/sse-starlette"])
