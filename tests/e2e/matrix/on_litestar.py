"""The app in Litestar, with our middleware in its list."""

from typing import Any

from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import WebSocketDisconnect
from litestar.middleware import DefineMiddleware
from litestar.response import File, Response, ServerSentEvent, Stream
from litestar.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.e2e.matrix import app_parts


async def _note(key: str, step: str) -> None:
    app_parts.note(key, step)


@get(["/stream", "/kept"])
async def stream(key: str, n: int, pause: float, boom: int = 0) -> ServerSentEvent:
    return ServerSentEvent(
        app_parts.numbers(key, n, pause, boom=bool(boom)),
        background=BackgroundTask(_note, key, "background"),
    )


@post("/stream", status_code=200)
async def stream_of_upload(
    request: Request[Any, Any, Any], key: str, n: int, pause: float
) -> Stream:
    return Stream(
        app_parts.events_of_upload(key, await request.body(), n, pause),
        media_type="text/event-stream",
        background=BackgroundTask(_note, key, "background"),
    )


@get("/lines")
async def lines(key: str) -> Stream:
    return Stream(
        app_parts.lines(key),
        media_type="application/x-ndjson",
        background=BackgroundTask(_note, key, "background"),
    )


@get("/json")
async def json() -> dict[str, int]:
    return {"answer": 42}


@get("/background")
async def background(key: str) -> Response[dict[str, int]]:
    return Response({}, background=BackgroundTask(_note, key, "background"))


@get("/file")
async def file() -> File:
    return File(app_parts.FILE)


@post("/upload", status_code=200, request_max_body_size=None)
async def upload(request: Request[Any, Any, Any]) -> str:
    return app_parts.digest(await request.body())


@get("/boom")
async def boom() -> None:
    raise ValueError("swordfish of litestar")


@get("/state")
async def state(key: str) -> list[str]:
    return app_parts.noted(key)


@websocket("/echo")
async def echo(socket: WebSocket[Any, Any, Any], key: str) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect as exc:
        app_parts.note(key, f"closed by {exc.code}")


async def started() -> None:
    app_parts.note("litestar.lifespan", "started")


async def stopped() -> None:
    print("litestar: stopped")  # noqa: T201 - for the server's log


class Passing:
    """Do nothing: Litestar logs an exception once more for each middleware that it passes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


middleware = DefineMiddleware(SSEMiddleware, mark=app_parts.MARK, marks=app_parts.MARKS)

app = Litestar(
    [stream, stream_of_upload, lines, json, background, file, upload, boom, state, echo],
    middleware=[middleware if app_parts.WITH_US else Passing],
    on_startup=[started],
    on_shutdown=[stopped],
)
