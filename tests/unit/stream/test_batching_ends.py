"""Held events at the end of a stream: none is lost, and nothing is left afterwards."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sse_middleware.stream.timers import current_timers
from tests.support.asgi import EVENTSOURCE, Exchange, http_scope, running, stream_start
from tests.support.batching import (
    PAUSE,
    Headers,
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
    turns,
    virtual_loop,
)
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio


def timers() -> list[asyncio.TimerHandle]:
    """Return the timers of the running loop that will fire."""
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if not handle.cancelled()]


# Nothing is lost at the end


@both
async def test_held_events_leave_before_an_exception_of_the_app(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 6)
        assert numbers(exchange) == [1]
        raise ValueError

    exchange = Exchange(http_scope(headers=headers))
    app = middleware(behave, exchange)
    async with nothing_left():
        with pytest.raises(ValueError):
            await app(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 5)
    assert exchange.ended is bool(headers)
    assert exchange.names[-1] == ("error" if headers else "message")


@both
async def test_held_events_leave_if_the_app_returns_without_an_end(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 6)
        assert numbers(exchange) == [1]

    async with nothing_left():
        exchange = await served(behave, headers)
        assert_whole(exchange, 5)
    assert not exchange.ended


@both
@pytest.mark.parametrize("wait", [0, 1, 2])
async def test_held_events_leave_if_the_app_is_cancelled(headers: Headers, wait: int) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 6)
        assert exchange.task is not None
        exchange.task.cancel()
        if wait:
            await turns(wait)
            pytest.fail("it was cancelled in vain")

    async with nothing_left(collect=True):
        exchange = Exchange(http_scope(headers=headers))
        async with running(middleware(behave, exchange), exchange):
            assert exchange.task is not None
            await asyncio.wait([exchange.task])
            assert exchange.task.cancelled() or not wait
    assert_whole(exchange, 5)
    assert exchange.ended == (
        headers == EVENTSOURCE and bool(wait)
    )  # a client that reads end events gets one


@both
async def test_held_events_leave_before_the_end_at_the_cap(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(2.9)
        await burst(send, 1, 6)
        virtual_loop().pass_time(0.2)  # the cap comes while something is held
        await send(event(6))
        await asyncio.sleep(10)

    async with nothing_left():
        exchange = await served(behave, headers, stream_max_seconds=3, cap_action="complete")
    assert_whole(exchange, 5)
    assert exchange.names[-1] == ("complete" if headers else "message")
    assert exchange.ended is bool(headers)


@both
async def test_events_held_by_a_blocked_write_leave_before_the_end_at_the_cap(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        await burst(send, 4, 7)
        await asyncio.sleep(10)

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        app = middleware(behave, exchange, stream_max_seconds=3, cap_action="complete")
        async with running(app, exchange):
            await asyncio.sleep(3.5)
            exchange.unblock()
            assert exchange.task is not None
            await exchange.task
    assert_whole(exchange, 6)
    assert exchange.names[-1] == ("complete" if headers else "message")


@both
@pytest.mark.parametrize("how", ["raises", "returns", "ends"])
async def test_events_held_by_a_blocked_write_leave_if_the_client_reads_in_time(
    headers: Headers, how: str
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        await burst(send, 4, 7)
        asyncio.get_running_loop().call_later(0.9, exchange.unblock)
        if how == "raises":
            raise ValueError
        if how == "ends":
            await send(last())

    exchange = Exchange(http_scope(headers=headers))
    async with nothing_left():
        app = middleware(behave, exchange)
        with pytest.raises(ValueError) if how == "raises" else nullcontext():
            await app(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 6)


@both
@pytest.mark.parametrize("how", ["raises", "returns", "is cancelled", "meets its cap"])
async def test_events_that_a_blocked_client_does_not_read_in_time_are_discarded(
    headers: Headers, how: str
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        await burst(send, 4, 7)
        if how == "raises":
            raise ValueError
        if how == "is cancelled":
            assert exchange.task is not None
            exchange.task.cancel()
        if how != "returns":
            await asyncio.sleep(3600)

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        app = middleware(behave, exchange, stream_max_seconds=3, heartbeat_interval=1)
        async with running(app, exchange):
            assert exchange.task is not None
            await asyncio.wait([exchange.task])
    exchange.unblock()
    await asyncio.sleep(20)
    assert_whole(exchange, 1)  # no event after a gap, and none after the app has left
    assert not exchange.ended


@both
async def test_a_client_that_has_left_gets_nothing_and_nothing_hangs(headers: Headers) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        await receive()
        await burst(send, 1, 4)
        exchange.disconnect()
        assert (await receive())["type"] == "http.disconnect"

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        async with running(marking(app), exchange):
            assert exchange.task is not None
            await exchange.task
        written = len(exchange.messages)
    await asyncio.sleep(20)
    assert len(exchange.messages) == written
    assert numbers(exchange) in ([1], [1, 2, 3])


@both
async def test_a_client_that_has_left_without_reading_gets_nothing_that_was_held(
    headers: Headers,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        await receive()
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        await burst(send, 4, 7)
        asyncio.get_running_loop().call_later(1, exchange.disconnect)
        assert (await receive())["type"] == "http.disconnect"

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        async with running(marking(app, linger_seconds=0), exchange):
            assert exchange.task is not None
            began = virtual_loop().time()
            await exchange.task
            assert virtual_loop().time() - began < 3
        exchange.unblock()
    await asyncio.sleep(20)
    assert_whole(exchange, 1)


@both
async def test_a_send_returns_if_the_client_leaves_with_much_to_be_written(
    headers: Headers,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        await receive()
        listener = asyncio.ensure_future(receive())
        await asyncio.sleep(0.1)
        exchange.disconnect()
        async with asyncio.timeout(5):
            await burst(send, 1, 40, size=1000)  # more than is held at most
        assert (await listener)["type"] == "http.disconnect"

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        await marking(app)(exchange.scope, exchange.receive, exchange.send)


# After the last stream


@both
async def test_when_all_streams_have_ended_no_task_and_at_most_one_timer_is_left(
    headers: Headers,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        await asyncio.sleep(float(scope["path"][1:]))
        await burst(send, 4, 7)
        await send(last())

    wrapped = marking(app, heartbeat_interval=5, stream_max_seconds=60, replay_max_events=0)
    loop, before = asyncio.get_running_loop(), len(timers())
    async with nothing_left():
        exchanges = [
            Exchange(http_scope(headers=headers, path=f"/{number / 3}")) for number in range(50)
        ]
        await asyncio.gather(*(wrapped(x.scope, x.receive, x.send) for x in exchanges))
        await asyncio.sleep(PAUSE)
    left = [timer for timer in timers() if timer.when() > loop.time()]
    assert len(left) <= before + 1
    assert all(timer.when() <= loop.time() + 5.005 for timer in left)
    for exchange in exchanges:
        assert_whole(exchange, 6)
    del left
    await asyncio.sleep(6)
    assert len(timers()) == before


async def test_streams_one_after_another_share_their_timers() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        seen.add(current_timers())
        await send(last())

    seen = {current_timers()}
    for _ in range(20):
        assert_whole(
            await served(behave, EVENTSOURCE, heartbeat_interval=1, replay_max_events=0), 3
        )
        await asyncio.sleep(PAUSE)
        assert len(seen) == 1
        assert len(timers()) <= 1
    await asyncio.sleep(2)
    assert timers() == []
