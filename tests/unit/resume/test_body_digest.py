"""The body of a request is hashed part by part, if its stream may be kept, and never stored."""

import sys
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from types import FrameType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming
from tests.support.asgi import Exchange, body, http_scope, stream_start
from tests.support.resuming import Chunked, back, id_of, memory, texts

pytestmark = pytest.mark.anyio

NAMED = [(b"accept", b"text/event-stream;events=named")]
PART = 1024
PARTS = 960
ROOM = 8 * PART
"""More than the objects of one request take, and far less than the uploaded bytes."""


class Upload(Exchange):
    """A request with a body of many parts, each made when it is received."""

    def __init__(self, parts: int = PARTS) -> None:
        super().__init__(http_scope(method="POST", path="/upload", headers=NAMED))
        self._body = None
        self._left = parts

    async def receive(self) -> Message:
        if not self._left:
            return await super().receive()
        self._left -= 1
        return {"type": "http.request", "body": bytes(PART), "more_body": self._left > 0}


async def discard_body(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


async def json_app(scope: Scope, receive: Receive, send: Send) -> None:
    await discard_body(receive)
    await JSONResponse({})(scope, receive, send)


async def stream_app(_: Scope, receive: Receive, send: Send) -> None:
    await discard_body(receive)
    await send(stream_start())
    await send(body(b"data: 1\n\ndata: 2\n\n", more=False))


async def peak_of(app: ASGIApp) -> int:
    """Return the most bytes that are allocated at a time during an upload."""
    first = Upload()  # for caches
    await app(first.scope, first.receive, first.send)
    upload = Upload()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await app(upload.scope, upload.receive, upload.send)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, {"mark": "*"}, {"mark": "/upload"}], ids=str)
async def test_an_upload_needs_no_more_memory_than_without_the_middleware(
    options: dict[str, Any],
) -> None:
    bare = await peak_of(json_app)
    assert bare < ROOM
    assert await peak_of(SSEMiddleware(json_app, **options)) < bare + ROOM


async def test_the_upload_of_a_stream_needs_the_memory_of_a_stream_without_one() -> None:
    async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\ndata: 2\n\n", more=False))

    control = await peak_of(SSEMiddleware(answer_at_once, mark="*", store=memory()))
    uploaded = await peak_of(SSEMiddleware(stream_app, mark="*", store=memory()))
    assert uploaded < control + ROOM


# Which bodies are hashed


async def hashed_parts(app: ASGIApp, parts: int = 3) -> int:
    """Return how many parts of the body of an upload are hashed."""
    updates: list[str] = []

    def on_event(frame: FrameType, event: str, function: object) -> None:
        if event == "c_call" and "blake2b" in str(getattr(function, "__self__", "")):
            updates.append(frame.f_code.co_qualname)

    upload = Upload(parts)
    sys.setprofile(on_event)
    try:
        await app(upload.scope, upload.receive, upload.send)
    finally:
        sys.setprofile(None)
    return updates.count("BodyDigest.add")


async def unmarked(request: Request) -> Response:
    await request.body()
    return JSONResponse({})


async def two_events() -> AsyncIterator[str]:
    yield "data: 1\n\ndata: 2\n\n"


@streaming()
async def marked(request: Request) -> Response:
    await request.body()
    return StreamingResponse(two_events(), media_type="text/event-stream")


@streaming(enabled=False)
async def disabled(request: Request) -> Response:
    return await marked(request)


def routed(endpoint: Any) -> Starlette:
    route = Route("/upload", endpoint, methods=["POST"])
    return Starlette(routes=[Mount("/", routes=[route])])


def reading(app: ASGIApp) -> ASGIApp:
    """Return `app` inside a layer that reads the body before the request is routed."""

    async def read(request: Request, call_next: RequestResponseEndpoint) -> Response:
        await request.body()
        return await call_next(request)

    return BaseHTTPMiddleware(app, read)


@pytest.mark.parametrize("layers", [[], [reading]], ids=["routed", "read before"])
async def test_only_the_body_for_a_marked_endpoint_is_hashed(layers: Sequence[Any]) -> None:
    async def hashed(endpoint: Any, **options: Any) -> int:
        app: ASGIApp = routed(endpoint)
        for layer in layers:
            app = layer(app)
        return await hashed_parts(SSEMiddleware(app, store=memory(), **options))

    assert await hashed(marked) == 3
    assert await hashed(unmarked) == 0
    assert await hashed(unmarked, mark="/upload") == 3
    assert await hashed(unmarked, mark="/other") == 0
    assert await hashed(disabled, mark="*") == 0
    assert await hashed(marked, replay_max_events=0) == 0


async def test_an_app_without_routes_and_marks_has_no_body_hashed() -> None:
    assert await hashed_parts(SSEMiddleware(json_app)) == 0
    assert await hashed_parts(SSEMiddleware(json_app, mark="*")) == 3


async def test_a_body_over_the_limit_is_hashed_up_to_it() -> None:
    app = SSEMiddleware(json_app, mark="*")
    assert await hashed_parts(app, 1024) == 1024
    assert await hashed_parts(app, 1500) == 1024


async def test_a_body_that_is_read_before_its_request_is_routed_identifies_its_stream() -> None:
    app = SSEMiddleware(reading(routed(marked)), store=memory())

    async def post(headers: Any, *parts: bytes) -> Exchange:
        exchange = Chunked(http_scope(method="POST", path="/upload", headers=headers), *parts)
        await app(exchange.scope, exchange.receive, exchange.send)
        return exchange

    whole = await post(NAMED, b"{", b"}")
    assert texts(whole) == ["1", "2"]
    assert texts(await post(back(id_of(whole, 1)), b"{}")) == ["2"]
    assert (await post(back(id_of(whole, 1)), b"[]")).names[0] == "reset"
