"""The end of a stream in a drain."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sse_middleware import drain
from tests.support.asgi import Exchange


def assert_shut_down(exchange: Exchange) -> None:
    assert exchange.ended
    assert exchange.names[-1] == "complete"
    assert json.loads(exchange.events[-1].data)["reason"] == "shutdown"
    assert exchange.last_event_id.endswith(".cut")
    assert exchange.retry is not None
    assert 1000 <= exchange.retry <= 2000


@asynccontextmanager
async def draining() -> AsyncIterator[asyncio.Task[None]]:
    """Begin to drain, as a signal does, and wait for the end of the drain."""
    task = asyncio.ensure_future(drain())
    await asyncio.sleep(0.001)
    try:
        yield task
    finally:
        await task
