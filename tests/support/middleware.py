"""Requests to an app inside the middleware, with the data of its control events."""

import json
from typing import Any

from starlette.types import ASGIApp

from sse_middleware import SSEMiddleware
from tests.support.asgi import EVENTSOURCE, Exchange, handle


async def eventsource(app: ASGIApp, **options: Any) -> Exchange:
    return await handle(SSEMiddleware(app, **options), headers=EVENTSOURCE)


async def plain(app: ASGIApp, **options: Any) -> Exchange:
    return await handle(SSEMiddleware(app, **options))


def data_of(exchange: Exchange, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads([e for e in exchange.events if e.event == name][-1].data)
    return found
