"""An app of endless streams, for servers that receive a signal to end.

`DUPLICATE_SIGNAL_SECONDS`, if it is set, is the time within which two signals count as one, and
`SERVER_ENDS_SECONDS` the time that a server has to end after its streams.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware.stream import shutdown
from tests.support.product_constants import override

for name in ("DUPLICATE_SIGNAL_SECONDS", "SERVER_ENDS_SECONDS"):
    if name in os.environ:
        override(float(os.environ[name]), f"_{name}", shutdown)


async def _events(pause: float = 0.1) -> AsyncIterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{number}"
        await asyncio.sleep(pause)


async def feed(request: Request) -> Response:
    """Send a number each `pause` seconds."""
    pause = float(request.query_params.get("pause", "0.1"))
    lines = (f"data: {number}\n\n" async for number in _events(pause))
    return StreamingResponse(lines, media_type="text/event-stream")


async def sse_starlettes(request: Request) -> Response:
    """Do the same by sse-starlette, which polls its server for the end by itself."""
    return EventSourceResponse(_events())


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    """Do the same, and never call `receive`."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for number in _events():
        body = f"data: {number}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def pid(request: Request) -> Response:
    """Return the id of the process that responds."""
    return PlainTextResponse(str(os.getpid()))


app = Starlette(
    routes=[
        Route("/feed", feed),
        Route("/sse-starlette", sse_starlettes),
        Route("/pid", pid),
        Mount("/deaf", deaf),
    ]
)
app.add_middleware(SSEMiddleware, mark="*")
