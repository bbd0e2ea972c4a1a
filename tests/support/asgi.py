"""What the tests of this project ask for, beside the in-process client that all may use.

Its waits have no limit here: on the virtual clock, an hour passes in no time.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from sse_middleware import testing
from sse_middleware.testing import EVENTSOURCE_HEADERS, http_scope, running

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


class Exchange(testing.Exchange):
    """One request, without a limit for waits."""

    def __init__(self, scope: Scope, *, body: bytes = b"", timeout: float | None = None) -> None:
        super().__init__(scope, body=body, timeout=timeout)


async def handle(
    app: ASGIApp,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    body: bytes = b"",
    **scope: Any,
) -> Exchange:
    """Run `app` on one request to its end, however long it takes."""
    exchange = Exchange(http_scope(headers=headers, **scope), body=body)
    await app(exchange.scope, exchange.receive, exchange.send)
    return exchange


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
