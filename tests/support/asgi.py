"""What the tests of this project ask for, beside the in-process client that all may use."""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from sse_middleware.testing import EVENTSOURCE_HEADERS, Exchange, handle, http_scope, running

__all__ = [
    "EVENTSOURCE",
    "Exchange",
    "body",
    "handle",
    "http_scope",
    "running",
    "stream_of",
    "stream_start",
]

EVENTSOURCE = EVENTSOURCE_HEADERS


def stream_of(*chunks: bytes, pause: float = 0.0, headers: list[Any] | None = None) -> ASGIApp:
    """Return a plain ASGI app that streams `chunks`, each after a pause."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(stream_start(headers))
        for chunk in chunks:
            await asyncio.sleep(pause)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def stream_start(headers: list[Any] | None = None) -> Message:
    """Return the response start of an event stream."""
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream"), *(headers or [])],
    }


def body(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
