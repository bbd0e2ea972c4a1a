"""What workers serve that share a Redis: the answers in all shapes, and streams that go on.

`LEASE_SECONDS`, where it is set, is the time within which a worker that has died is known to be.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, current_stream, resume_endpoint, streaming
from sse_middleware.stores.redis import RedisStore
from tests.support import scripted_app


@streaming()
async def ticks(request: Request) -> Response:
    """Count to `n`, with `pause` seconds between; with `?chat=` it is that chat's stream."""
    query = request.query_params
    if chat := query.get("chat"):
        current_stream().name(f"chat:{chat}")

    async def events() -> AsyncIterator[bytes]:
        for number in range(1, int(query.get("n", "1000000")) + 1):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(float(query.get("pause", "0.05")))

    return StreamingResponse(events(), media_type="text/event-stream")


@streaming(stream_max_seconds=0.4, cap_action="rotate")
async def turns(request: Request) -> Response:
    """Count, and send the client round every 0.4 s."""
    return await ticks(request)


async def block(request: Request) -> Response:
    """Block the event loop for so many `seconds`."""
    time.sleep(float(request.query_params["seconds"]))  # noqa: ASYNC251 - it is to block
    return Response()


def _store() -> RedisStore | None:
    if "LEASE_SECONDS" not in os.environ:
        return None
    lease_seconds = float(os.environ["LEASE_SECONDS"])
    return RedisStore(os.environ["SSE_REDIS_URL"], lease_seconds=lease_seconds)


app = Starlette(
    routes=[
        *scripted_app.app.routes,
        Route("/ticks", ticks),
        Route("/turns", turns),
        Route("/chats/{chat}", resume_endpoint("chat:{chat}")),
        Route("/block", block, methods=["POST"]),
    ]
)
app.add_middleware(SSEMiddleware, store=_store(), identify=lambda _: "somebody")
