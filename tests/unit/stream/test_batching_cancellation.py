"""Cancellation at every await of a batched stream."""

import asyncio
import gc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from sse_middleware.stream.timers import TICK_SECONDS
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.batching import (
    OPTIONS,
    Headers,
    SlowExchange,
    both,
    burst,
    debug,
    event,
    last,
    middleware,
    nothing_left,
    numbers,
    open_stream,
    served,
    turns,
)
from tests.support.middleware import marking
from tests.support.samples import sampled_turns

pytestmark = pytest.mark.anyio


async def steady(exchange: Exchange, send: Send) -> None:
    """Send events in all ways; their numbers, in order, are those from 1 on."""
    await send(stream_start())
    await send(event(1))
    await asyncio.sleep(0)
    await burst(send, 2, 5)
    await send(debug(0))
    await asyncio.sleep(0)
    await burst(send, 5, 12, size=4000)  # more than is held at most
    await asyncio.sleep(0.06)  # a heartbeat
    await send(event(12))
    await send(body(b"data: "))
    await send(body(b"13 \n\ndata: 14 \n\n"))
    await send(last(b"data: 15 \n\n"))
    await asyncio.sleep(0)


@both
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [Exchange, SlowExchange])
@pytest.mark.parametrize("blocked", [False, True], ids=["reading", "blocked"])
async def test_a_cancellation_at_any_turn_leaves_no_task_no_gap_and_writes_nothing_later(
    headers: Headers, options: dict[str, Any], kind: type[Exchange], *, blocked: bool
) -> None:
    done = False
    for turn in sampled_turns(30 if blocked else 300):
        async with nothing_left():
            exchange = kind(http_scope(headers=headers))
            app = middleware(steady, exchange, **{"heartbeat_interval": 0.05, **options})
            async with running(app, exchange):
                assert exchange.task is not None
                for number in range(turn):
                    if blocked and number == turn // 2:
                        exchange.block()
                    step = TICK_SECONDS / 2.5 if number < 40 else 0.004
                    await asyncio.sleep(step if number % 2 else 0)
                done = exchange.task.done()
                exchange.task.cancel()
                await asyncio.wait([exchange.task])
                written = len(exchange.messages)
        exchange.unblock()
        await asyncio.sleep(2)
        assert len(exchange.messages) == written
        seen = numbers(exchange)
        assert seen == list(range(1, len(seen) + 1))
        assert exchange.overlaps == 0
        if done:
            break
    assert done or blocked
    gc.collect()


def test_a_cancellation_at_any_turn_of_a_file_that_is_sent_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "recorded.sse"
    file.write_bytes(b"".join(bytes(event(n, size=5000)["body"]) for n in range(1, 60)))

    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        await send({"type": "http.response.pathsend", "path": str(file)})

    async def cancelled_at(turn: int) -> Exchange:
        async with nothing_left():
            exchange = SlowExchange(http_scope(headers=EVENTSOURCE))
            async with running(middleware(behave, exchange), exchange):
                assert exchange.task is not None
                await turns(turn)
                exchange.task.cancel()
                await asyncio.wait([exchange.task])
        return exchange

    for turn in range(0, 60, 2):
        exchange = asyncio.run(cancelled_at(turn))
        seen = numbers(exchange)
        assert seen == list(range(1, len(seen) + 1))


@both
async def test_a_cancelled_send_of_one_task_costs_the_other_tasks_nothing(headers: Headers) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def wait(number: int) -> None:
            await send(event(number, size=1000))

        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        await burst(send, 4, 15, size=1000)  # the client has 1, and 2 and 3 are under way
        waiting = [asyncio.create_task(wait(number)) for number in range(15, 26)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        exchange.unblock()
        await send(event(26))
        await send(last())

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        await marking(app)(exchange.scope, exchange.receive, exchange.send)
    seen = numbers(exchange)
    assert seen[:14] == list(range(1, 15))
    assert seen[-1] == 26
    assert all(one < other for one, other in pairwise(seen))


@both
@pytest.mark.parametrize("message", [debug(0), last(), event(4)], ids=["other", "end", "event"])
@pytest.mark.parametrize("batch", [True, False], ids=["batched", "unbatched"])
async def test_a_message_that_waits_at_the_cap_never_follows_the_end(
    headers: Headers, message: Message, *, batch: bool
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 3)
        exchange.block()
        waiting = asyncio.ensure_future(send(event(3)))
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(3.4, exchange.unblock)
        await send(message)
        await waiting
        await asyncio.sleep(3600)

    capped: dict[str, Any] = {"stream_max_seconds": 3, "cap_action": "complete"}
    exchange = await served(behave, headers, batch=batch, **capped)
    assert numbers(exchange)[:3] == [1, 2, 3]
    assert exchange.overlaps == 0
    ends = [m.get("more_body") is False for _, m in exchange.messages]
    has_ended = message == last()  # before the cap, though its client reads it later
    if headers:
        assert exchange.names.count("complete") == 1
        assert (b"finished" if has_ended else b"duration_cap") in exchange.body
    assert ends.count(True) == (1 if headers or has_ended else 0)
    assert not any(ends[:-1])


def test_streams_that_end_with_their_loop_end_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        number = 1
        while True:
            await burst(send, number, number + 3)
            number += 3
            await asyncio.sleep(0.001)

    async def serve() -> list[SlowExchange]:
        wrapped = marking(app)
        exchanges = [SlowExchange(http_scope(headers=EVENTSOURCE)) for _ in range(20)]
        tasks = [asyncio.ensure_future(wrapped(x.scope, x.receive, x.send)) for x in exchanges]
        await asyncio.sleep(0.02)
        for exchange in exchanges[::2]:
            exchange.block()
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)
        return exchanges  # asyncio.run cancels what is left

    for exchange in asyncio.run(serve()):
        seen = numbers(exchange)
        assert seen == list(range(1, len(seen) + 1))
        assert exchange.overlaps == 0
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
