"""The app as a plain ASGI callable, without any framework."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.e2e.matrix import app_parts

EVENTS = b"text/event-stream"
JSON = b"application/json"
TEXT = b"text/plain"


async def handle(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    query = dict(parse_qsl(scope["query_string"].decode()))
    if scope["type"] == "websocket":
        await _echo(query["key"], receive, send)
        return
    match scope["method"], scope["path"]:
        case "GET" | "HEAD", "/stream" | "/kept":
            content = app_parts.events(
                query["key"], int(query["n"]), float(query["pause"]), boom="boom" in query
            )
            await _stream(content, EVENTS, receive, send)
        case "POST", "/stream":
            body = await _body(receive)
            n, pause = int(query["n"]), float(query["pause"])
            content = app_parts.events_of_upload(query["key"], body, n, pause)
            await _stream(content, EVENTS, receive, send)
        case "GET", "/lines":
            await _stream(app_parts.lines(query["key"]), b"application/x-ndjson", receive, send)
        case "GET" | "HEAD", "/json":
            await _answer(200, JSON, b'{"answer": 42}', send)
        case "GET", "/background":
            await _answer(200, JSON, b"{}", send)
            app_parts.note(query["key"], "background")
        case "GET", "/file":
            await _file(send)
        case "POST", "/upload":
            await _answer(200, TEXT, app_parts.digest(await _body(receive)).encode(), send)
        case "GET", "/boom":
            raise ValueError("swordfish of plain_asgi")
        case "GET", "/state":
            await _answer(200, JSON, json.dumps(app_parts.noted(query["key"])).encode(), send)
        case _:
            await _answer(404, TEXT, b"not found", send)


async def _stream(
    content: AsyncIterator[bytes], media_type: bytes, receive: Receive, send: Send
) -> None:
    """Stream until the content ends or the client leaves, whichever is first."""

    async def write() -> None:
        headers = [(b"content-type", media_type), (b"set-cookie", b"1"), (b"set-cookie", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in content:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(write()), asyncio.create_task(listen())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        written, _ = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(written, Exception):
        raise written


async def _answer(status: int, media_type: bytes, body: bytes, send: Send) -> None:
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _file(send: Send) -> None:
    body = app_parts.FILE.read_bytes()
    headers = [(b"Content-Type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for at in range(0, len(body), 16384):
        chunk = memoryview(body)[at : at + 16384].tobytes()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _echo(key: str, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while True:
        message: Any = await receive()
        if message["type"] == "websocket.disconnect":
            app_parts.note(key, f"closed by {message['code']}")
            return
        await send({"type": "websocket.send", "text": message["text"]})


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    app_parts.note("plain_asgi.lifespan", "started")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("plain_asgi: stopped")  # noqa: T201 - for the server's log
    await send({"type": "lifespan.shutdown.complete"})


app: ASGIApp = (
    SSEMiddleware(handle, mark=app_parts.MARK, marks=app_parts.MARKS)
    if app_parts.WITH_US
    else handle
)
