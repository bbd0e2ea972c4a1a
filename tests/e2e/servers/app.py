"""A Starlette app behind the middleware, to be run by real servers."""

import asyncio
import gc
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware

left: dict[str, int] = {}
"""How often each way out of a stream was taken."""

in_flight: set[object] = set()
"""The requests that a server has given us and not got back."""

asked = asyncio.Semaphore(0)
"""How many events of `/wait-for-each` may be sent."""


def _leave(how: str) -> None:
    left[how] = left.get(how, 0) + 1


async def count(request: Request) -> Response:
    """Send `n` events with `pause` seconds between them; `boom` raises behind them.

    Behind each number stand `size` further bytes.
    """
    query = request.query_params
    more = " " * int(query.get("size", "0"))

    async def events() -> AsyncIterator[bytes]:
        try:
            for number in range(int(query.get("n", "3"))):
                yield f"data: {number}{more}\n\n".encode()
                await asyncio.sleep(float(query.get("pause", "0.01")))
            if "boom" in query:
                raise ValueError("swordfish")
        finally:
            _leave("finally")

    return StreamingResponse(
        events(), media_type="text/event-stream", background=BackgroundTask(_leave, "background")
    )


async def wait_for_each(request: Request) -> Response:
    """Send three events, each when somebody has asked for one at `/ask`."""

    async def events() -> AsyncIterator[bytes]:
        for number in range(3):
            await asked.acquire()
            yield f"data: {number}\n\n".encode()

    return StreamingResponse(events(), media_type="text/event-stream")


async def ask(request: Request) -> Response:
    asked.release()
    return Response()


async def flood(request: Request) -> Response:
    """Send as much as the client takes, with hardly a turn of the loop."""

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * 4000 + b"\n\n"

    return StreamingResponse(
        events(), media_type="text/event-stream", background=BackgroundTask(_leave, "background")
    )


async def state(request: Request) -> Response:
    """Tell what this process holds."""
    gc.collect()
    with open("/proc/self/statm") as statm:  # noqa: ASYNC230, PTH123 - a file without a disk
        pages = int(statm.read().split()[1])
    return JSONResponse(
        {
            "left": left,
            "requests": len(in_flight),
            "tasks": len(asyncio.all_tasks()),
            "objects": len(gc.get_objects()),
            "resident_mib": pages * 4 / 1024,
        }
    )


_app = Starlette(
    routes=[
        Route("/count", count, methods=["GET", "POST"]),
        Route("/wait-for-each", wait_for_each),
        Route("/ask", ask),
        Route("/flood", flood),
        Route("/state", state),
    ]
)
_app.add_middleware(SSEMiddleware)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Count the requests around the middleware."""
    request = object()
    in_flight.add(request)
    try:
        await _app(scope, receive, send)
    finally:
        in_flight.discard(request)
