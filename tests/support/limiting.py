"""Requests of several clients and their responses, for the tests of limits."""

import json
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.types import ASGIApp

from sse_middleware import SSEMiddleware
from tests.support.asgi import EVENTSOURCE, Exchange, http_scope, running
from tests.support.resuming import resumable

PLAIN = [(b"accept", b"text/event-stream")]
"""A client that is no `EventSource` and wants a stream."""
ANY = [(b"accept", b"*/*")]
"""A client that accepts any response."""


def steady_rate(count: int) -> str:
    """Return a rate whose window neither begins nor ends during a test.

    The windows of `limits` begin at multiples of their length: at each full hour, for example, half
    of the openings before it are allowed again.
    """
    now, margin = time.time(), 600
    hours = (1, 2, 3, 5, 7, 11)
    steady = (n for n in hours if margin < now % (n * 3600) < n * 3600 - margin)
    return f"{count} per {next(steady)} hours"


def limited(app: ASGIApp, **options: Any) -> SSEMiddleware:
    """Return `app` inside a middleware with limits and without a cap; its streams linger."""
    return resumable(app, **{"stream_max_seconds": None, **options})


def asked(
    app: ASGIApp,
    headers: list[tuple[bytes, bytes]],
    *more: tuple[bytes, bytes],
    address: str = "192.0.2.1",
    **scope: Any,
) -> AbstractAsyncContextManager[Exchange]:
    """Run `app` on a request from an address."""
    scope.setdefault("client", (address, 50000))
    return running(app, Exchange(http_scope(headers=[*headers, *more], **scope)))


def tab(
    app: ASGIApp, *more: tuple[bytes, bytes], **scope: Any
) -> AbstractAsyncContextManager[Exchange]:
    """Run `app` on a request of an `EventSource`."""
    return asked(app, EVENTSOURCE, *more, **scope)


async def answer(exchange: Exchange) -> tuple[int, str]:
    """Wait for a response and return its status and the code of its error, `""` for none."""
    await exchange._until(lambda: bool(exchange.messages), "a response start")
    if exchange.status == 200:
        return 200, ""
    await exchange.until_end()
    assert exchange.headers[b"content-type"] == b"application/json"
    assert exchange.headers[b"cache-control"] == b"no-store"
    assert int(exchange.headers[b"retry-after"]) > 0
    assert int(exchange.headers[b"content-length"]) == len(exchange.body)
    data = json.loads(exchange.body)
    assert data.keys() == {"error", "trace_id"}
    assert data["error"].keys() == {"type", "code", "message"}
    assert data["trace_id"] == exchange.headers[b"x-trace-id"].decode()
    return exchange.status, data["error"]["code"]


def reasons(exchange: Exchange) -> list[str]:
    """Return the reasons of the `complete` events that a client has received."""
    return [
        json.loads(event.data)["reason"] for event in exchange.events if event.event == "complete"
    ]
