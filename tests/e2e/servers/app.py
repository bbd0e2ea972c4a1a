"""A Starlette app with the middleware, for real servers."""

import asyncio
import gc
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming

left: dict[str, int] = {}
"""How often a stream has run its `finally` block, and its background task."""

counts = {"begun": 0, "in_flight": 0, "yielded": 0}
"""The requests that have begun, those that run, and the events that apps have yielded."""

asked = asyncio.Semaphore(0)
"""How many events of `/wait-for-each` may be sent."""


def _leave(how: str) -> None:
    left[how] = left.get(how, 0) + 1


async def count(request: Request) -> Response:
    """Send `n` events with `pause` seconds after each; with `boom`, raise an exception at the end.

    Each event is padded by `size` bytes.
    """
    query = request.query_params
    more = " " * int(query.get("size", "0"))

    async def events() -> AsyncIterator[bytes]:
        try:
            for number in range(int(query.get("n", "3"))):
                counts["yielded"] += 1
                yield f"data: {number}{more}\n\n".encode()
                await asyncio.sleep(float(query.get("pause", "0.01")))
            if "boom" in query:
                raise ValueError("swordfish")
        finally:
            _leave("finally")

    return StreamingResponse(
        events(), media_type="text/event-stream", background=BackgroundTask(_leave, "background")
    )


@streaming(stream_max_seconds=None)
async def uncapped(request: Request) -> Response:
    """Do the same without a cap."""
    return await count(request)


async def wait_for_each(request: Request) -> Response:
    """Send three events, each after a request to `/ask`."""

    async def events() -> AsyncIterator[bytes]:
        for number in range(3):
            await asked.acquire()
            yield f"data: {number}\n\n".encode()

    return StreamingResponse(events(), media_type="text/event-stream")


async def ask(request: Request) -> Response:
    asked.release()
    return Response()


async def flood(request: Request) -> Response:
    """Send as much as the client reads, and rarely yield to the event loop."""

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * 4000 + b"\n\n"

    return StreamingResponse(
        events(), media_type="text/event-stream", background=BackgroundTask(_leave, "background")
    )


async def state(request: Request) -> Response:
    """Return the number of requests, tasks and objects of this process, and its memory."""
    gc.collect()
    with open("/proc/self/statm") as statm:  # noqa: ASYNC230, PTH123 - a file without a disk
        pages = int(statm.read().split()[1])
    return JSONResponse(
        {
            "left": left,
            **counts,
            "tasks": len(asyncio.all_tasks()),
            "objects": len(gc.get_objects()),
            "resident_mib": pages * 4 / 1024,
        }
    )


_app = Starlette(
    routes=[
        Route("/count", count, methods=["GET", "POST"]),
        Route("/uncapped", uncapped),
        Route("/wait-for-each", wait_for_each),
        Route("/ask", ask),
        Route("/flood", flood),
        Route("/state", state),
    ]
)
_app.add_middleware(SSEMiddleware, mark="*")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Count the requests around the middleware, except those for the state."""
    if scope["type"] != "http" or scope["path"] == "/state":
        await _app(scope, receive, send)
        return
    counts["begun"] += 1
    counts["in_flight"] += 1
    try:
        await _app(scope, receive, send)
    finally:
        counts["in_flight"] -= 1
