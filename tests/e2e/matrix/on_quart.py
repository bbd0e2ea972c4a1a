"""The app in Quart, with its `asgi_app` wrapped."""

from quart import Quart, Response, request, send_file, websocket

from sse_middleware import SSEMiddleware
from tests.e2e.matrix import app_parts

app = Quart(__name__)


@app.get("/kept")
@app.route("/stream", methods=["GET", "POST"])
async def stream() -> Response:
    query = request.args
    key, n, pause = query["key"], int(query["n"]), float(query["pause"])
    content = app_parts.events(key, n, pause, boom="boom" in query)
    if request.method == "POST":
        content = app_parts.events_of_upload(key, await request.body, n, pause)
    response = Response(content, content_type="text/event-stream")
    response.timeout = None
    response.set_cookie("one", "1")
    response.set_cookie("two", "2")
    return response


@app.get("/lines")
async def lines() -> Response:
    response = Response(app_parts.lines(request.args["key"]), content_type="application/x-ndjson")
    response.timeout = None
    return response


@app.get("/json")
async def json() -> dict[str, int]:
    return {"answer": 42}


@app.get("/background")
async def background() -> dict[str, int]:
    key = request.args["key"]

    async def task() -> None:
        app_parts.note(key, "background")

    app.add_background_task(task)
    return {}


@app.get("/file")
async def file() -> Response:
    return await send_file(app_parts.FILE, conditional=True)


@app.post("/upload")
async def upload() -> str:
    return app_parts.digest(await request.body)


@app.get("/boom")
async def boom() -> str:
    raise ValueError("swordfish of quart")


@app.get("/state")
async def state() -> list[str]:
    return app_parts.noted(request.args["key"])


@app.websocket("/echo")
async def echo() -> None:
    try:
        while True:
            await websocket.send(await websocket.receive())
    finally:
        app_parts.note(websocket.args["key"], "closed")


@app.before_serving
async def started() -> None:
    app_parts.note("quart.lifespan", "started")


@app.after_serving
async def stopped() -> None:
    print("quart: stopped")  # noqa: T201 - for the server's log


if app_parts.WITH_US:
    # The way that Quart's own documentation wraps an app.
    app.asgi_app = SSEMiddleware(app.asgi_app, mark=app_parts.MARK, marks=app_parts.MARKS)  # type: ignore[method-assign]
