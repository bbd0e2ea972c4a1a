"""Streams behind a proxy that compresses: marked, unmarked, and of sse-starlette.

An event follows the first one after a request for `/release?key=`.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, current_stream, resume_endpoint

_released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def stream(request: Request) -> Response:
    key = request.query_params["key"]
    current_stream().name(key)

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await _released[key].wait()
        yield b"data: 2\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def by_library(request: Request) -> Response:
    key = request.query_params["key"]

    async def events() -> AsyncIterator[dict[str, int]]:
        yield {"data": 1}
        await _released[key].wait()
        yield {"data": 2}

    return EventSourceResponse(events(), sep="\n")


async def release(request: Request) -> Response:
    _released[request.query_params["key"]].set()
    return Response()


async def document(_: Request) -> Response:
    return JSONResponse({"text": "x" * 5000})


app = Starlette(
    routes=[
        Route("/marked", stream),
        Route("/marked/by-name/{name}", resume_endpoint("{name}")),
        Route("/marked/library", by_library),
        Route("/unmarked", stream),
        Route("/library", by_library),
        Route("/document", document),
        Route("/release", release),
    ]
)
app.add_middleware(SSEMiddleware, mark=["/marked", "/marked/*"], identify=lambda _: "one user")
