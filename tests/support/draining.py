"""The end of a stream in a drain."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from sse_middleware import drain
from tests.support.asgi import Exchange, body, stream_start


def assert_shut_down(exchange: Exchange) -> None:
    assert exchange.ended
    assert exchange.names[-1] == "complete"
    assert json.loads(exchange.events[-1].data)["reason"] == "shutdown"
    assert exchange.last_event_id.endswith(".cut")
    assert exchange.retry is not None
    assert 1000 <= exchange.retry <= 2000


def now() -> float:
    """Return the time of the virtual clock."""
    return asyncio.get_running_loop().time()


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    """Send an event each second, and never receive."""
    await send(stream_start())
    for number in range(1, 1000):
        await send(body(b"data: %d\n\n" % number))
        await asyncio.sleep(1)


@asynccontextmanager
async def draining() -> AsyncIterator[asyncio.Task[None]]:
    """Begin to drain, as a signal does, and wait for the end of the drain."""
    task = asyncio.ensure_future(drain())
    await asyncio.sleep(0.001)
    try:
        yield task
    finally:
        await task
