"""The streams that a page follows in a browser, and the server's record of its requests.

The same routes are at the root, with the middleware; below `/inside` and `/outside`, with CORS on
that side of the middleware; below `/named`, with an identity; and below `/without`, without the
middleware. All streams but that of `/poll` are marked. Each request has a `key`; `/record/{key}`
returns its record.
"""

import asyncio
import itertools
import json
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
"""The origins that CORS allows."""

runs: defaultdict[str, list[str]] = defaultdict(list)
"""The last event id of each run of the app, by key."""
left: defaultdict[str, list[int]] = defaultdict(list)
"""The runs that have ended, in this order, counted from 1, by key."""
asked: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
"""The method and the status of each request, by key."""
released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
"""Set once a page has received the start of a stream with `?held=1`."""


def _stream(
    request: Request, numbers: Iterable[int], *, ids: bool = False, retry_ms: int | None = None
) -> Response:
    """Send numbers, with ids or without, with `pause` seconds after each."""
    key = request.query_params["key"]
    pause = float(request.query_params.get("pause", TICK_SECONDS))
    runs[key].append(request.headers.get("last-event-id", ""))
    number_of_run = len(runs[key])

    async def events() -> AsyncIterator[str]:
        try:
            if retry_ms is not None:
                yield f"retry: {retry_ms}\n\n"
            await asyncio.sleep(float(request.query_params.get("delay", "0")))
            if "held" in request.query_params:
                await released[key].wait()
            for number in numbers:
                yield f"id: {number}\ndata: {number}\n\n" if ids else f"data: {number}\n\n"
                await asyncio.sleep(pause)
            if "completes" in request.query_params:
                yield "event: complete\ndata: {}\n\n"
            if "boom" in request.query_params:
                raise ValueError("swordfish")
        finally:
            left[key].append(number_of_run)

    return StreamingResponse(events(), media_type="text/event-stream")


def _wanted(request: Request) -> int:
    return int(request.query_params.get("n", "20"))


async def poll(request: Request) -> Response:
    """Send `n` numbers, for a page that gets the next ones by reconnection."""
    return _stream(request, range(_wanted(request)), retry_ms=100)


@streaming()
async def job(request: Request) -> Response:
    """Send `n` numbers, after the upload of a form if there is one."""
    await request.body()
    return _stream(request, range(_wanted(request)))


@streaming(cap_action="rotate")
async def live(request: Request) -> Response:
    """Send the numbers of a clock; a client without a connection misses them."""
    key = request.query_params["key"]
    runs[key].append(request.headers.get("last-event-id", ""))

    async def events() -> AsyncIterator[str]:
        for number in itertools.count(int(time.monotonic() / TICK_SECONDS)):
            await asyncio.sleep(number * TICK_SECONDS - time.monotonic())
            yield f"retry: 100\ndata: {number}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@streaming(cap_action="rotate")
async def numbered(request: Request) -> Response:
    """Send numbers with ids of the app, which resumes the stream itself."""
    last = int(request.headers.get("last-event-id", "0"))
    return _stream(request, itertools.count(last + 1), ids=True)


@streaming(ids="app", stream_key=lambda scope: parse_qs(scope["query_string"])[b"key"][0].decode())
async def keyed(request: Request) -> Response:
    """Send `n` numbers with ids of the app, which keeps no events."""
    return _stream(request, range(1, _wanted(request) + 1), ids=True)


@streaming()
async def chat(request: Request) -> Response:
    """Respond in a chat, in a stream with a name."""
    current_stream().name(f"chat:{request.path_params['chat']}")
    return await job(request)


@streaming()
async def allowing(request: Request) -> Response:
    """Respond in a chat, and let the page of the request read the response, without middleware."""
    response = await chat(request)
    response.headers["access-control-allow-origin"] = request.headers.get("origin", "null")
    response.headers["access-control-allow-credentials"] = "true"
    return response


@streaming()
async def search(request: Request) -> Response:
    """Answer a question with itself, and name the sources at the end."""

    async def events() -> AsyncIterator[str]:
        for word in request.query_params["query"].split():
            yield f"event: content_chunk\ndata: {json.dumps({'content': f'{word} '})}\n\n"
            await asyncio.sleep(0.3)
        await released["search"].wait()
        yield 'event: complete\ndata: {"sources": ["a", "b"]}\n\n'

    return StreamingResponse(events(), media_type="text/event-stream")


async def page(request: Request) -> Response:
    return HTMLResponse(eventsource_page.PAGE)


async def service_worker(request: Request) -> Response:
    """Return a worker that responds to the requests of its pages."""
    return Response(eventsource_page.SERVICE_WORKER, media_type="text/javascript")


async def sse_client(request: Request) -> Response:
    return HTMLResponse(client_page.PAGE)


async def release(request: Request) -> Response:
    """Let the streams of a key send their events."""
    released[request.path_params["key"]].set()
    return Response()


async def record(request: Request) -> Response:
    """Return the record of a key."""
    key = request.path_params["key"]
    ends = {"left": len(left[key]), "ended": left[key]}
    return JSONResponse({"runs": runs[key], **ends, "asked": asked[key]})


def _routes() -> list[BaseRoute]:
    return [
        Route("/page", page),
        Route("/worked/page", page),
        Route("/worked/client", sse_client),
        Route("/worked/worker.js", service_worker),
        Route("/client", sse_client),
        Route("/release/{key}", release, methods=["POST"]),
        Route("/record/{key}", record),
        Route("/poll", poll),
        Route("/job", job, methods=["GET", "POST"]),
        Route("/live", live),
        Route("/numbered", numbered),
        Route("/stream/search", search),
        Route("/keyed", keyed),
        Route("/chats/{chat}", chat),
        Route("/allowing/{chat}", allowing),
        Route("/chats/{chat}/live", resume_endpoint("chat:{chat}")),
    ]


def _below(prefix: str) -> Starlette:
    return Starlette(routes=[Mount(prefix, routes=_routes())])


def _visitor(scope: Any) -> str | None:
    return Request(scope).cookies.get("visitor")


_cors: dict[str, Any] = {
    "allow_origin_regex": FRIENDS,
    "allow_credentials": True,
    "allow_methods": ["GET", "HEAD", "POST", "DELETE"],
    "allow_headers": ["X-Stream-ID"],
    "expose_headers": ["X-Stream-ID"],
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
    """Call the app below the prefix, and record the request and its status."""
    path = scope.get("path", "")
    keys = parse_qs(scope.get("query_string", b"")).get(b"key", [])

    async def noted(message: Message) -> None:
        if keys and message["type"] == "http.response.start":
            asked[keys[0].decode()].append((scope["method"], message["status"]))
        await send(message)

    await _APPS.get(path.split("/")[1] if path else "", _root)(scope, receive, noted)
