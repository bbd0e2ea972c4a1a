"""The app in FastAPI: its own event streams, `yield` dependencies and background tasks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from sse_middleware import SSEMiddleware
from tests.e2e.matrix import app_parts


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app_parts.note("fastapi.lifespan", "started")
    yield
    print("fastapi: stopped")  # noqa: T201 - for the server's log


app = FastAPI(lifespan=lifespan)
if app_parts.WITH_US:
    app.add_middleware(SSEMiddleware, mark=app_parts.MARK, marks=app_parts.MARKS)


async def resource(key: str) -> AsyncIterator[str]:
    try:
        yield "resource"
    finally:
        app_parts.note(key, "dependency")


Resource = Annotated[str, Depends(resource)]


@app.get("/kept", response_class=EventSourceResponse)
@app.get("/stream", response_class=EventSourceResponse)
async def stream(
    *,
    key: str,
    n: int,
    pause: float,
    held: Resource,
    tasks: BackgroundTasks,
    boom: bool = False,
) -> AsyncIterator[ServerSentEvent]:
    tasks.add_task(app_parts.note, key, "background")
    async for number in app_parts.numbers(key, n, pause, boom=boom):
        yield ServerSentEvent(data=number)


@app.post("/stream")
async def stream_of_upload(
    *, request: Request, key: str, n: int, pause: float, held: Resource, tasks: BackgroundTasks
) -> StreamingResponse:
    tasks.add_task(app_parts.note, key, "background")
    return StreamingResponse(
        app_parts.events_of_upload(key, await request.body(), n, pause),
        media_type="text/event-stream",
    )


@app.get("/lines")
async def lines(key: str, held: Resource, tasks: BackgroundTasks) -> StreamingResponse:
    tasks.add_task(app_parts.note, key, "background")
    return StreamingResponse(app_parts.lines(key), media_type="application/x-ndjson")


@app.get("/json")
async def json() -> dict[str, int]:
    return {"answer": 42}


@app.get("/background")
async def background(key: str, held: Resource, tasks: BackgroundTasks) -> dict[str, int]:
    tasks.add_task(app_parts.note, key, "background")
    return {}


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(app_parts.FILE)


@app.post("/upload", response_class=PlainTextResponse)
async def upload(request: Request) -> str:
    return app_parts.digest(await request.body())


@app.get("/boom")
async def boom(held: Annotated[str, Depends(resource)]) -> None:
    raise ValueError("swordfish of fastapi")


@app.get("/state")
async def state(key: str) -> list[str]:
    return app_parts.noted(key)


@app.websocket("/echo")
async def echo(websocket: WebSocket, key: str) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as exc:
        app_parts.note(key, f"closed by {exc.code}")
