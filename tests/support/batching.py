"""Apps, clients and assertions for the tests of batching."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware.stream.timers import TICK_SECONDS
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, stream_start
from tests.support.clock import VirtualClockLoop
from tests.support.middleware import marking

PAUSE = 2 * TICK_SECONDS


Headers = list[tuple[bytes, bytes]]


App = Callable[[Exchange, Send], Awaitable[None]]
"""The behaviour of an app of these tests; it may inspect the messages that have left."""


both = pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])


class SlowExchange(Exchange):
    """A server with writes that each take some turns of the loop."""

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        await super().send(message)
        self._writing = True
        try:
            await asyncio.sleep(0)
        finally:
            self._writing = False


def event(number: int, *, size: int = 0) -> Message:
    """Return the message of one event, `size` bytes long or as short as possible."""
    data = b"data: %d " % number
    return body(data.ljust(size - 2, b"x") + b"\n\n")


def last(data: bytes = b"") -> Message:
    return body(data, more=False)


def debug(number: int) -> Message:
    """Return a message of a kind that the middleware does not know."""
    return {"type": "http.response.debug", "info": {"number": number}}


def numbers(exchange: Exchange) -> list[int]:
    """Return the numbers of the app's events that have left."""
    return [int(e.data.split()[0]) for e in exchange.events if e.event == "message"]


def ids(exchange: Exchange) -> list[int]:
    """Return the numbers in our ids of the app's events."""
    return [int(str(e.id).rpartition("-")[2]) for e in exchange.events if e.event == "message"]


def bodies(exchange: Exchange) -> list[bytes]:
    """Return the body messages that have left, without empty ones."""
    return [m["body"] for _, m in exchange.messages if m.get("body")]


def assert_whole(exchange: Exchange, count: int) -> None:
    """Check that the events 1 to `count` have left, in order, each once."""
    assert numbers(exchange) == list(range(1, count + 1))
    if exchange.scope["headers"] == EVENTSOURCE:
        assert ids(exchange) == list(range(1, count + 1))
    assert exchange.overlaps == 0


async def open_stream(send: Send) -> None:
    """Send the response start, and wait for the tick in which our first bytes leave."""
    await send(stream_start())
    await asyncio.sleep(PAUSE)


async def burst(send: Send, first: int, stop: int, *, size: int = 0) -> None:
    """Send the events from `first` to the one before `stop`, without a pause."""
    for number in range(first, stop):
        await send(event(number, size=size))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def middleware(behave: App, exchange: Exchange, **options: Any) -> SSEMiddleware:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await behave(exchange, send)

    return marking(app, **options)


async def served(behave: App, headers: Headers, **options: Any) -> Exchange:
    """Run an app to its end, with a client that reads all events, unless the app blocks it."""
    exchange = Exchange(http_scope(headers=headers))
    app = middleware(behave, exchange, **options)
    await app(exchange.scope, exchange.receive, exchange.send)
    return exchange


def virtual_loop() -> VirtualClockLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    return loop


@asynccontextmanager
async def nothing_left(*, collect: bool = False) -> AsyncIterator[None]:
    """Check that the block leaves no task, and no call of the exception handler of the loop."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    before = asyncio.all_tasks()
    yield
    await turns(3)  # the background writer ends in the turn after the last stream
    assert asyncio.all_tasks() - before == set()
    if collect:  # this takes some time
        gc.collect()
    assert reported == []


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch": False},
    {"chunk_delay_ms": 5},
    {"stream_max_seconds": 0.07},
    {"rollout_percent": 0},
]
