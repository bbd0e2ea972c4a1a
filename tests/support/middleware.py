"""Requests to an app inside the middleware, with the data of its control events."""

import json
from typing import Any

from starlette.types import ASGIApp

from sse_middleware import SSEMiddleware
from tests.support.asgi import EVENTSOURCE, Exchange, handle


def marking(app: Any, **options: Any) -> SSEMiddleware:
    """Return `app` inside a middleware that marks all its streams."""
    return SSEMiddleware(app, **{"mark": "*", **options})


async def eventsource(app: ASGIApp, **options: Any) -> Exchange:
    return await handle(marking(app, **options), headers=EVENTSOURCE)


async def plain(app: ASGIApp, **options: Any) -> Exchange:
    return await handle(marking(app, **options))


def data_of(exchange: Exchange, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads([e for e in exchange.events if e.event == name][-1].data)
    return found
