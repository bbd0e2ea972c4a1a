"""A gateway that passes requests on to a service, with the headers of both sides.

`INNER_URL` is the service. The gateway does not mark what it passes on below `/unmarked`.
"""

import os
from collections.abc import AsyncIterator

import httpx2 as httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware
from tests.support.waiting import HANG_SECONDS

_OF_ONE_CONNECTION = {"connection", "host", "keep-alive", "transfer-encoding", "date", "server"}
_client = httpx.AsyncClient(
    base_url=os.environ.get("INNER_URL", "http://127.0.0.1"),
    timeout=HANG_SECONDS,
    limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
)


async def proxy(request: Request) -> Response:
    path = request.url.path.removeprefix("/unmarked")
    asked = _client.build_request(
        request.method,
        f"{path}?{request.url.query}",
        headers=[pair for pair in request.headers.items() if pair[0] not in _OF_ONE_CONNECTION],
        content=await request.body(),
    )
    answer = await send(asked)
    return StreamingResponse(
        parts(answer),
        answer.status_code,
        {name: value for name, value in answer.headers.items() if name not in _OF_ONE_CONNECTION},
        background=BackgroundTask(answer.aclose),
    )


async def send(asked: httpx.Request) -> httpx.Response:
    """Send a request to the next service too if a service ends before it has answered."""
    try:
        return await _client.send(asked, stream=True)
    except httpx.TransportError:
        return await _client.send(asked, stream=True)


async def parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()


app = Starlette(routes=[Route("/{path:path}", proxy, methods=["GET", "POST", "DELETE"])])
app.add_middleware(SSEMiddleware, mark=["/ticks", "/chats/*"])
