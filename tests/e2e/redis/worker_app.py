"""The app of workers that share a Redis: the scripted app, and endless streams.

`LEASE_SECONDS`, if it is set, is the time after which the streams of a dead worker are lost, and
`KEY_SCHEMA` another version of the keys in Redis.
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
from sse_middleware.stores.redis import RedisStore, keys
from tests.support import scripted_app
from tests.support.product_constants import override

if "KEY_SCHEMA" in os.environ:
    override(int(os.environ["KEY_SCHEMA"]), "SCHEMA", keys)


@streaming()
async def ticks(request: Request) -> Response:
    """Count to `n` with `pause` seconds after each number; `?chat=` names the stream."""
    query = request.query_params
    if chat := query.get("chat"):
        current_stream().name(f"chat:{chat}")

    async def events() -> AsyncIterator[bytes]:
        for number in range(1, int(query.get("n", "1000000")) + 1):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(float(query.get("pause", "0.05")))

    return StreamingResponse(events(), media_type="text/event-stream")


@streaming(enabled=False)
async def control(request: Request) -> Response:
    """Count in a stream of which the middleware does not know."""
    return await ticks(request)


@streaming(stream_max_seconds=0.4, cap_action="rotate")
async def turns(request: Request) -> Response:
    """Count, and rotate the client every 0.4 s."""
    return await ticks(request)


async def block(request: Request) -> Response:
    """Block the event loop for `seconds`."""
    time.sleep(float(request.query_params["seconds"]))  # noqa: ASYNC251 - the request is to block
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
        Route("/control", control),
        Route("/chats/{chat}", resume_endpoint("chat:{chat}"), methods=["GET", "DELETE"]),
        Route("/block", block, methods=["POST"]),
    ]
)
app.add_middleware(SSEMiddleware, mark="*", store=_store(), identify=lambda _: "one user")
