"""Background writes run in the context and in the task that middlewares outside of ours expect."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.asgi import Exchange, http_scope, running, stream_start
from tests.support.batching import (
    Headers,
    SlowExchange,
    assert_whole,
    both,
    burst,
    event,
    last,
    middleware,
    nothing_left,
    numbers,
    open_stream,
    served,
    virtual_loop,
)
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio


# Contexts


REQUEST: ContextVar[str] = ContextVar("request", default="none")


LEAK: ContextVar[str] = ContextVar("leak", default="clean")


def looking(app: ASGIApp, seen: dict[str, set[str]]) -> ASGIApp:
    """Return a middleware that sets a variable for its request, and reads it in each write."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        seen[path] = set()

        async def sending(message: Message) -> None:
            seen[path] |= {REQUEST.get(), LEAK.get()}
            LEAK.set(path)
            await send(message)
            seen[path] |= {REQUEST.get(), LEAK.get()}

        token = REQUEST.set(path)
        try:
            await app(scope, receive, sending)
        finally:
            REQUEST.reset(token)

    return outer


@both
@pytest.mark.parametrize("slow", [False, True], ids=["at once", "slow"])
async def test_every_write_of_many_streams_sees_the_context_of_its_own_request(
    headers: Headers, *, slow: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        await asyncio.sleep(2.5)  # heartbeats
        await burst(send, 4, 7)
        if scope["path"].endswith("1"):
            await asyncio.sleep(3600)  # until the cap ends it
        if scope["path"].endswith("2"):
            raise ValueError
        await burst(send, 7, 9)
        await send(last())

    seen: dict[str, set[str]] = {}
    wrapped = looking(marking(app, heartbeat_interval=1, stream_max_seconds=4), seen)

    async def one(path: str) -> Exchange:
        exchange = (SlowExchange if slow else Exchange)(http_scope(headers=headers, path=path))
        with suppress(ValueError):
            await wrapped(exchange.scope, exchange.receive, exchange.send)
        return exchange

    paths = [f"/{number}" for number in range(100)]
    async with nothing_left():
        exchanges = await asyncio.gather(*map(one, paths))
    for path, exchange in zip(paths, exchanges, strict=True):
        assert_whole(exchange, 6 if path.endswith(("1", "2")) else 8)
        assert exchange.body.count(b"heartbeat\n") >= 2
        assert seen[path] == {path, "clean"}
    assert (REQUEST.get(), LEAK.get()) == ("none", "clean")


@both
async def test_held_events_see_what_an_outer_middleware_has_set_at_the_response_start(
    headers: Headers,
) -> None:
    seen: list[str] = []

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        await asyncio.sleep(2.5)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                REQUEST.set("set at the start")
            seen.append(REQUEST.get())
            await send(message)

        await middleware(behave, exchange, heartbeat_interval=1)(scope, receive, sending)

    exchange = Exchange(http_scope(headers=headers))
    await outer(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 3)
    assert len(seen) >= 5
    assert set(seen) == {"set at the start"}


# Outer middlewares that need the current task


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def within(guard: Callable[[], Any], *, pause: float = 0.001) -> Callable[[ASGIApp], ASGIApp]:
    """Return a middleware that does each write within `guard()`, after a pause."""

    def around(app: ASGIApp) -> ASGIApp:
        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                manager = guard()
                async with AsyncExitStack() as stack:
                    if hasattr(manager, "__aenter__"):
                        await stack.enter_async_context(manager)
                    else:
                        stack.enter_context(manager)
                    if pause:
                        await asyncio.sleep(pause)
                    await send(message)

            await app(scope, receive, sending)

        return outer

    return around


def within_lock(lock: object) -> Callable[[ASGIApp], ASGIApp]:
    return within(lambda: lock)


def guards() -> Iterator[Any]:
    yield pytest.param(lambda: within(lambda: asyncio.timeout(60)), id="asyncio.timeout")
    yield pytest.param(lambda: within(lambda: anyio.fail_after(60)), id="anyio.fail_after")
    yield pytest.param(lambda: within(anyio.CancelScope), id="anyio.CancelScope")
    yield pytest.param(lambda: within_lock(anyio.Lock()), id="anyio.Lock")
    yield pytest.param(lambda: within_lock(asyncio.Lock()), id="asyncio.Lock")
    yield pytest.param(lambda: Passing, id="BaseHTTPMiddleware")


@both
@pytest.mark.parametrize("guard", list(guards()))
async def test_bursts_heartbeats_and_a_blocked_write_pass_guards_outside_of_us(
    headers: Headers, guard: Callable[[], Callable[[ASGIApp], ASGIApp]]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 41, 4):
            await burst(send, number, number + 4)
            await asyncio.sleep(0.7)
        await send(last())

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        wrapped = guard()(marking(app, heartbeat_interval=0.5))
        async with running(wrapped, exchange):
            for _ in range(4):
                await asyncio.sleep(1.3)
                exchange.block()
                await asyncio.sleep(0.4)
                exchange.unblock()
            assert exchange.task is not None
            await exchange.task
        await asyncio.sleep(0.1)
    assert_whole(exchange, 40)
    assert exchange.body.count(b"heartbeat\n") >= 3
    assert exchange.ended


@both
@pytest.mark.parametrize(
    "guard", [lambda: asyncio.timeout(1), lambda: anyio.fail_after(1)], ids=["asyncio", "anyio"]
)
async def test_a_time_out_around_a_background_write_shows_at_the_apps_next_send(
    headers: Headers, guard: Callable[[], Any]
) -> None:
    raised: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.5)
        await send(event(4))
        await asyncio.sleep(2.5)
        exchange.unblock()
        try:
            await send(event(5))
        except TimeoutError:
            raised.append(virtual_loop().time())
            raise

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        wrapped = within(guard, pause=0)(marking(app, linger_seconds=0))
        began = virtual_loop().time()
        with pytest.raises(TimeoutError):
            await wrapped(exchange.scope, exchange.receive, exchange.send)
    assert [at - began for at in raised] == [pytest.approx(3, abs=0.1)]
    assert_whole(exchange, 1)


# A send is a coroutine


@both
async def test_a_send_may_be_a_task_of_its_own(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Any) -> None:
        await asyncio.create_task(send(stream_start()))
        await asyncio.create_task(send(event(1)))
        await asyncio.gather(*(send(event(number)) for number in range(2, 6)))
        async with anyio.create_task_group() as group:
            for number in range(6, 9):
                group.start_soon(send, event(number))
        await asyncio.wait_for(send(event(9)), 1)
        async with asyncio.timeout(1):
            await send(event(10))
        with anyio.fail_after(1):
            await asyncio.shield(asyncio.ensure_future(send(event(11))))
        await asyncio.create_task(send(last()))

    exchange = await served(behave, headers)
    assert_whole(exchange, 11)
    assert exchange.ended


@both
async def test_the_start_and_the_first_events_may_be_tasks_of_one_turn(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(send, stream_start())
            for number in range(1, 4):
                group.start_soon(send, event(number))
        await send(last())

    exchange = await served(behave, headers)
    assert_whole(exchange, 3)
    if headers:
        assert exchange.names[0] == "start"


@both
async def test_a_send_that_is_cancelled_while_it_waits_loses_no_earlier_event(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Any) -> None:
        await open_stream(send)
        await send(event(1))
        exchange.block()
        sent = [1]
        with suppress(TimeoutError):
            for number in range(2, 100):
                async with asyncio.timeout(1):
                    await send(event(number, size=1000))
                sent.append(number)
        exchange.unblock()
        await send(last())
        await asyncio.sleep(0.1)
        seen = numbers(exchange)
        assert seen[: len(sent)] == sent
        assert seen in (sent, [*sent, sent[-1] + 1])

    await served(behave, headers)
