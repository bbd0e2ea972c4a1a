"""A resume endpoint for pages of other origins: with CORS on each side of it, and without."""

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, resume_endpoint
from tests.support.asgi import Exchange, handle, http_scope, running
from tests.support.resuming import memory

pytestmark = pytest.mark.anyio

PAGE = b"https://page.example"
ANN = (b"authorization", b"Bearer ann")
ORIGIN = (b"origin", PAGE)
STRANGER = (b"origin", b"https://stranger.example")
LIVE = "/live"
WHOLE = b"data: 1\n\ndata: 2\n\n"
_cors: dict[str, Any] = {
    "allow_origins": [PAGE.decode()],
    "allow_methods": ["*"],
    "allow_headers": ["X-Stream-ID", "Authorization"],
    "expose_headers": ["X-Stream-ID"],
    "allow_credentials": True,
}


def app_with(cors: str) -> Starlette:
    """Return an app with CORS `inside` or `outside` of the middleware, `itself`, or for no one."""

    async def answer(request: Request) -> Response:
        async def events() -> Any:
            for number in (1, 2):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(1)

        headers = {"access-control-allow-origin": PAGE.decode()} if cors == "itself" else None
        return StreamingResponse(events(), headers=headers, media_type="text/event-stream")

    app = Starlette(
        routes=[
            Route("/answer", answer, methods=["POST"]),
            Route(LIVE, resume_endpoint(finished="replay")),
        ]
    )
    if cors == "inside":
        app.add_middleware(CORSMiddleware, **_cors)
    app.add_middleware(SSEMiddleware, mark="*", keep=True, store=memory())
    if cors == "outside":
        app.add_middleware(CORSMiddleware, **_cors)
    return app


def allowed(exchange: Exchange) -> list[bytes]:
    """Return the origins that a response allows."""
    headers = exchange.start["headers"]
    return [value for name, value in headers if name == b"access-control-allow-origin"]


async def ask(app: Starlette, *headers: tuple[bytes, bytes], method: str = "GET") -> Exchange:
    return await handle(app, headers=[*headers], path=LIVE, method=method)


async def kept(app: Starlette, *headers: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Open a stream and read it, and return the header that selects it."""
    exchange = Exchange(http_scope(method="POST", path="/answer", headers=[ANN, *headers]))
    async with running(app, exchange):
        await exchange.until_end()
    return b"x-stream-id", exchange.headers[b"x-stream-id"]


@pytest.mark.parametrize("cors", ["inside", "outside"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_with_cors_a_page_may_send_a_public_id_and_read_the_response(
    cors: str, method: str
) -> None:
    app = app_with(cors)
    asks = (
        (b"access-control-request-method", method.encode()),
        (b"access-control-request-headers", b"authorization, x-stream-id"),
    )
    preflight = await ask(app, ORIGIN, *asks, method="OPTIONS")
    assert preflight.status == 200
    assert allowed(preflight) == [PAGE]
    assert b"X-Stream-ID" in preflight.headers[b"access-control-allow-headers"]
    assert (await ask(app, STRANGER, *asks, method="OPTIONS")).status == 400
    selected = await kept(app, ORIGIN)
    for found in (selected, (b"x-stream-id", b"0" * 32)):
        got = await ask(app, ANN, ORIGIN, found, method=method)
        assert allowed(got) == [PAGE]
        assert allowed(await ask(app, ANN, STRANGER, found, method=method)) == []
    assert got.status == 204


@pytest.mark.parametrize("cors", ["inside", "outside", "itself", "nowhere"])
async def test_options_without_a_preflight_lists_the_methods(cors: str) -> None:
    got = await ask(app_with(cors), method="OPTIONS")
    assert (got.status, got.body) == (204, b"")
    assert got.headers[b"allow"] == b"GET, HEAD, POST, DELETE, OPTIONS"


async def test_without_cors_a_preflight_allows_nothing() -> None:
    asks = (
        (b"access-control-request-method", b"GET"),
        (b"access-control-request-headers", b"x-stream-id"),
    )
    app = app_with("itself")
    selected = await kept(app, ORIGIN)
    preflight = await ask(app, ORIGIN, *asks, selected, method="OPTIONS")
    assert preflight.status == 204
    assert not [name for name in preflight.headers if name.startswith(b"access-control")]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST"])
async def test_without_cors_the_recorded_headers_are_for_the_recorded_origin(method: str) -> None:
    app = app_with("itself")
    selected = await kept(app, ORIGIN)
    got = await ask(app, ANN, ORIGIN, selected, method=method)
    assert (got.status, allowed(got)) == (200 if method in ("GET", "HEAD") else 204, [PAGE])
    other = await ask(app, ANN, STRANGER, selected, method=method)
    assert (other.status, allowed(other)) == (got.status, [])
    nobody = await ask(app, ANN, ORIGIN, (b"x-stream-id", b"0" * 32), method=method)
    assert (nobody.status, allowed(nobody)) == (204, [])
    stolen = await ask(app, ORIGIN, selected, method=method)
    assert stolen.start["headers"] == nobody.start["headers"]


async def test_a_stream_without_cors_headers_gets_none() -> None:
    app = app_with("nowhere")
    got = await ask(app, ANN, ORIGIN, await kept(app, ORIGIN))
    assert (got.body, allowed(got)) == (WHOLE, [])
