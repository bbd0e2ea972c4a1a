"""Several tasks of one app that write to one stream, and event loops with eager tasks."""

import asyncio
import re
import sys
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.asgi import EVENTSOURCE, Exchange, http_scope, running
from tests.support.batching import (
    PAUSE,
    Headers,
    SlowExchange,
    assert_whole,
    both,
    burst,
    debug,
    event,
    ids,
    last,
    nothing_left,
    numbers,
    open_stream,
    served,
    turns,
)
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio


# Several tasks of one app


@both
@pytest.mark.parametrize("options", [{}, {"batch": False}, {"chunk_delay_ms": 1}], ids=str)
@pytest.mark.parametrize("kind", [Exchange, SlowExchange])
@pytest.mark.parametrize("blocked", [False, True], ids=["reading", "blocked"])
async def test_tasks_that_write_at_once_never_overlap_and_each_keeps_its_order(
    headers: Headers, options: dict[str, Any], kind: type[Exchange], *, blocked: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)

        async def write(writer: int) -> None:
            for number in range(30):
                await send(event(1000 * writer + number))
                if (number + writer) % 3 == 0:
                    await asyncio.sleep(0)
                if number % 7 == writer:
                    await send(debug(number))
                if number % 11 == writer:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(write(writer) for writer in range(1, 6)))
        await send(last())

    async with nothing_left():
        exchange = kind(http_scope(headers=headers))
        async with running(marking(app, heartbeat_interval=0.05, **options), exchange):
            while blocked and not exchange.ended:
                exchange.block()
                await asyncio.sleep(0.08)
                exchange.unblock()
                await asyncio.sleep(0.01)
            assert exchange.task is not None
            await exchange.task
    assert exchange.overlaps == 0
    seen = numbers(exchange)
    for writer in range(1, 6):
        own = [number for number in seen if number // 1000 == writer]
        assert own == list(range(1000 * writer, 1000 * writer + 30))
    assert len(seen) == 150
    if headers:
        assert ids(exchange) == list(range(1, 151))


@both
@pytest.mark.parametrize("kind", [Exchange, SlowExchange])
@pytest.mark.parametrize(
    "message", [debug(0), event(0, size=20_000), last()], ids=["other", "large", "end"]
)
async def test_a_task_that_never_stops_writing_keeps_no_other_one_waiting(
    headers: Headers, kind: type[Exchange], message: Message
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)

        async def flood() -> None:
            while True:
                await burst(send, 1, 4)
                await asyncio.sleep(0)

        flooding = asyncio.ensure_future(flood())
        await turns(3)
        other = asyncio.ensure_future(send(message))
        await turns(200)
        assert other.done()
        flooding.cancel()
        await asyncio.wait([flooding])

    async with nothing_left():
        exchange = kind(http_scope(headers=headers))
        await marking(app)(exchange.scope, exchange.receive, exchange.send)


async def test_ids_count_up_though_a_task_comes_as_another_one_is_about_to_write_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Any) -> None:
        await open_stream(send)
        writers = [asyncio.create_task(send(event(number))) for number in range(1, 4)]
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_soon(exchange.unblock)
        for number in range(4, 10):
            writers.append(asyncio.create_task(send(event(number))))
            await asyncio.sleep(0)
        await asyncio.gather(*writers)
        await send(last())

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    async with running(marking(app, batch=False), exchange):
        await exchange.until("start")
        exchange.block()
        assert exchange.task is not None
        await exchange.task
    assert ids(exchange) == list(range(1, 10))


@pytest.mark.parametrize("ahead", range(8))
async def test_ids_count_up_to_a_last_message_that_waits_while_another_task_writes(
    ahead: int,
) -> None:
    async def behave(exchange: Exchange, send: Any) -> None:
        await open_stream(send)
        await burst(send, 1, 3)
        exchange.block()
        await asyncio.sleep(PAUSE)
        end = asyncio.create_task(send(last(b"data: 3 \n\n")))
        await asyncio.sleep(PAUSE)
        asyncio.get_running_loop().call_soon(exchange.unblock)
        await turns(ahead)
        await send(event(4))
        await end

    exchange = await served(behave, EVENTSOURCE)
    numbered = re.findall(rb"id: \S+-(\d+)\n", exchange.body)
    assert list(map(int, numbered)) == sorted(map(int, numbered))
    assert len(numbered) >= 3


# Tasks that begin at once (asyncio.eager_task_factory)


@both
@pytest.mark.parametrize("kind", [Exchange, SlowExchange])
@pytest.mark.parametrize("count", [1, 400])
async def test_with_eager_tasks_bursts_heartbeats_ends_and_blocked_writes_are_unchanged(
    headers: Headers, kind: type[Exchange], count: int
) -> None:
    if sys.version_info < (3, 12):
        pytest.skip("tasks begin eagerly from Python 3.12 on")
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 16, 3):
            await burst(send, number, number + 3)
            await asyncio.sleep(0.5)
        if scope["path"] == "/capped":
            await asyncio.sleep(10)
        await send(last())

    wrapped = marking(app, heartbeat_interval=1, stream_max_seconds=3)
    async with nothing_left():
        exchanges = [kind(http_scope(headers=headers)) for _ in range(count)]
        exchanges.append(kind(http_scope(headers=headers, path="/capped")))
        all_of_them = asyncio.gather(*(wrapped(x.scope, x.receive, x.send) for x in exchanges))
        await asyncio.sleep(0.7)
        exchanges[0].block()
        await asyncio.sleep(0.6)
        exchanges[0].unblock()
        await all_of_them
    for exchange in exchanges:
        assert_whole(exchange, 15)
        assert exchange.ended is (bool(headers) or exchange is not exchanges[-1])
    if headers:
        assert all(exchange.names.count("heartbeat") >= 1 for exchange in exchanges)


async def test_with_eager_tasks_held_events_follow_a_blocked_write() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("tasks begin eagerly from Python 3.12 on")
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        await burst(send, 4, 7)
        exchange.unblock()
        await asyncio.sleep(0.1)
        assert_whole(exchange, 6)

    async with nothing_left(collect=True):
        await served(behave, EVENTSOURCE)
