"""The streams that a page follows in a browser, and what the server has seen of it.

The same routes stand below several prefixes: at the root behind us, below `/inside` and `/outside`
with CORS on that side of us, below `/named` with an identity, below `/without` without us. Each
request carries a `key`, under which `/told/{key}` tells of it.
"""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware, current_stream, resume_endpoint, streaming
from tests.e2e.browser import client_page, eventsource_page

TICK_SECONDS = 0.02
FRIENDS = r"http://(127\.0\.0\.1|friend\.localhost):\d+"
"""The origins to which CORS gives what it stands around."""

runs: defaultdict[str, list[str]] = defaultdict(list)
"""The last event ids with which the app was asked, by key: one for each of its runs."""
left: defaultdict[str, int] = defaultdict(int)
"""How many runs are over."""
asked: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
"""The method and the status of each request as the server has seen it."""


def _stream(request: Request, numbers: Iterable[int], *, ids: bool = False) -> Response:
    """Send numbers, with ids of their own or without, at the pace of `pause`."""
    key = request.query_params["key"]
    pause = float(request.query_params.get("pause", TICK_SECONDS))
    runs[key].append(request.headers.get("last-event-id", ""))

    async def events() -> AsyncIterator[str]:
        try:
            await asyncio.sleep(float(request.query_params.get("delay", "0")))
            for number in numbers:
                yield f"id: {number}\ndata: {number}\n\n" if ids else f"data: {number}\n\n"
                await asyncio.sleep(pause)
            if "completes" in request.query_params:
                yield "event: complete\ndata: {}\n\n"
            if "boom" in request.query_params:
                raise ValueError("swordfish")
        finally:
            left[key] += 1

    return StreamingResponse(events(), media_type="text/event-stream")


def _wanted(request: Request) -> int:
    return int(request.query_params.get("n", "20"))


async def poll(request: Request) -> Response:
    """Send `n` numbers."""
    return _stream(request, range(_wanted(request)))


@streaming()
async def job(request: Request) -> Response:
    """Send `n` numbers, which are all there is."""
    return await poll(request)


async def live(request: Request) -> Response:
    """Send the numbers of a clock from now on; what nobody listens to is lost."""
    key = request.query_params["key"]
    runs[key].append(request.headers.get("last-event-id", ""))

    async def events() -> AsyncIterator[str]:
        for number in itertools.count(int(time.monotonic() / TICK_SECONDS)):
            await asyncio.sleep(number * TICK_SECONDS - time.monotonic())
            yield f"retry: 100\ndata: {number}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def numbered(request: Request) -> Response:
    """Number the events and go on behind the last event id, as the middleware knows nothing of."""
    behind = int(request.headers.get("last-event-id", "0"))
    return _stream(request, itertools.count(behind + 1), ids=True)


@streaming(ids="app", stream_key=lambda scope: parse_qs(scope["query_string"])[b"key"][0].decode())
async def keyed(request: Request) -> Response:
    """Number `n` events and keep none."""
    return _stream(request, range(1, _wanted(request) + 1), ids=True)


async def chat(request: Request) -> Response:
    """Answer in a chat, in a stream that goes by its name."""
    current_stream().name(f"chat:{request.path_params['chat']}")
    return await poll(request)


async def page(request: Request) -> Response:
    return HTMLResponse(eventsource_page.PAGE)


async def sse_client(request: Request) -> Response:
    return HTMLResponse(client_page.PAGE)


async def told(request: Request) -> Response:
    """Tell what the server has seen of a key."""
    key = request.path_params["key"]
    return JSONResponse({"runs": runs[key], "left": left[key], "asked": asked[key]})


def _routes() -> list[BaseRoute]:
    return [
        Route("/page", page),
        Route("/client", sse_client),
        Route("/told/{key}", told),
        Route("/poll", poll),
        Route("/job", job, methods=["GET", "POST"]),
        Route("/live", live),
        Route("/numbered", numbered),
        Route("/keyed", keyed),
        Route("/chats/{chat}", chat),
        Route("/chats/{chat}/live", resume_endpoint("chat:{chat}")),
    ]


def _below(prefix: str) -> Starlette:
    return Starlette(routes=[Mount(prefix, routes=_routes())])


def _visitor(scope: Any) -> str | None:
    return Request(scope).cookies.get("visitor")


_cors: dict[str, Any] = {
    "allow_origin_regex": FRIENDS,
    "allow_credentials": True,
    "allow_methods": ["GET", "POST", "DELETE"],
}
_root, _inside, _outside, _named = (_below(at) for at in ("", "/inside", "/outside", "/named"))
_root.add_middleware(SSEMiddleware)
_inside.add_middleware(CORSMiddleware, **_cors)
_inside.add_middleware(SSEMiddleware, identity_cookies=("visitor",))
_outside.add_middleware(SSEMiddleware, identity_cookies=("visitor",))
_outside.add_middleware(CORSMiddleware, **_cors)
_named.add_middleware(SSEMiddleware, identify=_visitor)
_APPS = {"inside": _inside, "outside": _outside, "named": _named, "without": _below("/without")}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Lead to the app below the prefix, and take note of what is asked and answered."""
    path = scope.get("path", "")
    keys = parse_qs(scope.get("query_string", b"")).get(b"key", [])

    async def noted(message: Message) -> None:
        if keys and message["type"] == "http.response.start":
            asked[keys[0].decode()].append((scope["method"], message["status"]))
        await send(message)

    await _APPS.get(path.split("/")[1] if path else "", _root)(scope, receive, noted)
