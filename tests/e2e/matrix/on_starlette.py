"""The app in Starlette, with the one line that its users write."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from sse_middleware import SSEMiddleware
from tests.e2e.matrix import app_parts


async def stream(request: Request) -> Response:
    query = request.query_params
    key, n, pause = query["key"], int(query["n"]), float(query["pause"])
    content = app_parts.events(key, n, pause, boom="boom" in query)
    if request.method == "POST":
        content = app_parts.events_of_upload(key, await request.body(), n, pause)
    response = StreamingResponse(
        content,
        media_type="text/event-stream",
        background=BackgroundTask(app_parts.note, key, "background"),
    )
    response.set_cookie("one", "1")
    response.set_cookie("two", "2")
    return response


async def lines(request: Request) -> Response:
    key = request.query_params["key"]
    return StreamingResponse(
        app_parts.lines(key),
        media_type="application/x-ndjson",
        background=BackgroundTask(app_parts.note, key, "background"),
    )


async def json(request: Request) -> Response:
    return JSONResponse({"answer": 42})


async def background(request: Request) -> Response:
    key = request.query_params["key"]
    return JSONResponse({}, background=BackgroundTask(app_parts.note, key, "background"))


async def file(request: Request) -> Response:
    return FileResponse(app_parts.FILE)


async def upload(request: Request) -> Response:
    return Response(app_parts.digest(await request.body()))


async def boom(request: Request) -> Response:
    raise ValueError("swordfish of starlette")


async def state(request: Request) -> Response:
    return JSONResponse(app_parts.noted(request.query_params["key"]))


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as exc:
        app_parts.note(websocket.query_params["key"], f"closed by {exc.code}")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app_parts.note("starlette.lifespan", "started")
    yield
    print("starlette: stopped")  # noqa: T201 - for the server's log


app = Starlette(
    routes=[
        Route("/stream", stream, methods=["GET", "POST"]),
        Route("/kept", stream),
        Route("/lines", lines),
        Route("/json", json),
        Route("/background", background),
        Route("/file", file),
        Route("/upload", upload, methods=["POST"]),
        Route("/boom", boom),
        Route("/state", state),
        WebSocketRoute("/echo", echo),
    ],
    lifespan=lifespan,
)
if app_parts.WITH_US:
    app.add_middleware(SSEMiddleware, mark=app_parts.MARK, marks=app_parts.MARKS)
