"""Batching through the whole middleware: which events leave at once, and which share a message.

An event after a pause leaves within its own `send`. The events that the app adds within the same
tick are held. The background writer writes them at the end of the tick, or the app's own task does
so earlier.
"""

import asyncio
import re
from contextlib import nullcontext

import pytest
from starlette.types import Send

from sse_middleware.stream.timers import TICK_SECONDS
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, stream_start
from tests.support.batching import (
    PAUSE,
    Headers,
    assert_whole,
    bodies,
    both,
    burst,
    debug,
    event,
    last,
    middleware,
    numbers,
    open_stream,
    served,
    turns,
    virtual_loop,
)

pytestmark = pytest.mark.anyio


# Events that leave at once


@both
async def test_an_event_after_a_pause_leaves_within_its_own_send(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 6):
            await send(event(number))
            assert numbers(exchange)[-1] == number
            await asyncio.sleep(PAUSE)

    assert_whole(await served(behave, headers), 5)


@both
@pytest.mark.parametrize("pause", [PAUSE, 0.3])
async def test_one_event_a_tick_leaves_as_a_message_of_its_own(
    headers: Headers, pause: float
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 11):
            before = len(bodies(exchange))
            await send(event(number))
            assert len(bodies(exchange)) == before + 1
            await asyncio.sleep(pause)

    assert_whole(await served(behave, headers, heartbeat_interval=None), 10)


async def test_one_chunk_a_tick_leaves_a_plain_stream_as_the_very_message_of_the_app() -> None:
    messages = [event(number) for number in range(2, 6)]
    messages.append(body(b"data: 6\r\n\r\n"))

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await send(event(1))  # its first bytes could be a byte order mark
        await asyncio.sleep(PAUSE)
        for message in messages:
            await send(message)
            assert exchange.messages[-1][1] is message
            await asyncio.sleep(PAUSE)

    assert_whole(await served(behave, []), 6)


@both
async def test_the_response_start_leaves_before_its_send_returns(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        assert [m["type"] for _, m in exchange.messages] == ["http.response.start"]

    await served(behave, headers)


# Events that leave together


@both
@pytest.mark.parametrize("count", [2, 3, 100])
async def test_a_burst_leaves_as_two_messages(headers: Headers, count: int) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        before = len(bodies(exchange))
        await burst(send, 1, count + 1)
        assert numbers(exchange) == [1]
        await asyncio.sleep(PAUSE)
        assert len(bodies(exchange)) == before + 2

    assert_whole(await served(behave, headers), count)


@both
async def test_a_burst_after_the_response_start_leaves_as_one_message(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        await burst(send, 1, 101)
        await asyncio.sleep(0)
        assert len(exchange.messages) == 2

    assert_whole(await served(behave, headers), 100)


@both
async def test_successive_bursts_leave_in_order_with_any_message_in_between(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        number = 1
        for count, pause in ((5, 0), (1, 0), (20, 0.001), (2, 0), (2, 0), (300, 2.0), (3, 0)):
            await burst(send, number, number + count)
            number += count
            await asyncio.sleep(pause)
        await send(last())

    assert_whole(await served(behave, headers), 333)


@both
async def test_a_large_burst_leaves_in_messages_of_16_kib(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        before = len(bodies(exchange))
        await burst(send, 1, 101, size=1000)
        await asyncio.sleep(PAUSE)
        first, *middle, rest = map(len, bodies(exchange)[before:])
        assert first < 1100
        assert len(middle) >= 5
        with_ids = (1 << 14) + 17 * 40  # the bytes of the app count, without our lines
        assert all(1 << 14 <= size < with_ids + 1100 for size in middle)
        assert rest < with_ids + 1100

    assert_whole(await served(behave, headers), 100)


@both
async def test_one_large_event_leaves_with_the_few_before_it(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        await send(event(4, size=20_000))
        assert numbers(exchange) == [1, 2, 3, 4]
        await send(event(5))

    assert_whole(await served(behave, headers), 5)


async def test_the_last_message_of_a_plain_stream_includes_the_held_events() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        before = len(exchange.messages)
        await burst(send, 1, 6)
        await send(last(b"data: 6\n\n"))
        assert len(exchange.messages) == before + 2

    exchange = await served(behave, [])
    assert exchange.ended
    assert_whole(exchange, 6)


async def test_an_eventsource_receives_the_end_in_one_message_with_all_held_events() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        before = len(exchange.messages)
        await burst(send, 1, 6)
        await send(last(b"data: 6\n\n"))
        # Our app yields before it reports an end, so the background writer may be first.
        assert len(exchange.messages) <= before + 3

    exchange = await served(behave, EVENTSOURCE)
    assert exchange.names[-1] == "complete"
    assert exchange.ended
    assert exchange.body.count(b"event: complete") == 1
    assert_whole(exchange, 6)


@both
async def test_the_whole_of_a_short_response_leaves_in_order(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        await burst(send, 1, 6)
        await send(last())

    exchange = await served(behave, headers)
    assert len(exchange.messages) <= 3
    assert exchange.ended
    assert_whole(exchange, 5)


# The time for which events are held


@both
async def test_held_events_leave_at_the_end_of_the_tick(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        for number in range(1, 31, 3):
            await open_stream(send) if number == 1 else await asyncio.sleep(PAUSE)
            began = virtual_loop().time()
            await burst(send, number, number + 3)
            await asyncio.sleep(1)
            (first, _), (rest, _) = exchange.messages[-2:]
            assert first == began
            assert began < rest <= began + TICK_SECONDS + 1e-6

    assert_whole(await served(behave, headers, heartbeat_interval=None), 30)


@both
@pytest.mark.parametrize("step", [0.1, 0.4, 0.9])
async def test_no_event_of_a_fast_stream_is_late_by_more_than_a_tick(
    headers: Headers, step: float
) -> None:
    sent: list[float] = []

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 101):
            sent.append(virtual_loop().time())
            await send(event(number))
            await asyncio.sleep(step * TICK_SECONDS)

    exchange = await served(behave, headers)
    assert_whole(exchange, 100)
    left = {
        int(number): at
        for at, message in exchange.messages
        for number in re.findall(rb"data: (\d+) ", message.get("body", b""))
    }
    for number, at in enumerate(sent, start=1):
        assert at <= left[number] <= at + TICK_SECONDS + 1e-6


async def test_our_first_event_leaves_by_itself_if_the_app_is_silent() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        began = virtual_loop().time()
        await asyncio.sleep(1)
        assert exchange.names == ["start"]
        assert exchange.messages[-1][0] <= began + TICK_SECONDS + 1e-6

    await served(behave, EVENTSOURCE)


async def test_a_heartbeat_waits_for_no_tick() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        began = virtual_loop().time()
        await asyncio.sleep(3.5)
        beats = [at - began for at, m in exchange.messages if b"heartbeat\n" in m.get("body", b"")]
        assert beats == pytest.approx([1, 2, 3], abs=TICK_SECONDS / 2)

    await served(behave, EVENTSOURCE, heartbeat_interval=1)


@both
async def test_events_held_by_a_blocked_write_leave_within_a_tick_of_its_end(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 3)
        exchange.block()
        await asyncio.sleep(PAUSE)
        await burst(send, 3, 6)
        exchange.unblock()
        await asyncio.sleep(1.5 * TICK_SECONDS)
        assert_whole(exchange, 5)

    await served(behave, headers)


@both
async def test_events_of_one_task_leave_after_the_blocked_write_of_another(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        exchange.block()
        blocked = asyncio.ensure_future(send(event(1)))
        await asyncio.sleep(PAUSE)
        await burst(send, 2, 4)
        await asyncio.sleep(10 * PAUSE)
        exchange.unblock()
        await turns(3)
        assert_whole(exchange, 3)
        await blocked

    await served(behave, headers)


@both
@pytest.mark.parametrize("how", ["ends", "returns", "raises"])
async def test_an_end_waits_for_no_tick(headers: Headers, how: str) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 6)
        if how == "ends":
            await send(last())
        if how == "raises":
            raise ValueError

    exchange = Exchange(http_scope(headers=headers))
    began = virtual_loop().time()
    with pytest.raises(ValueError) if how == "raises" else nullcontext():
        await middleware(behave, exchange)(exchange.scope, exchange.receive, exchange.send)
    assert virtual_loop().time() == pytest.approx(began + PAUSE)
    assert_whole(exchange, 5)


# Order


@both
async def test_messages_of_other_kinds_stay_between_the_events_they_came_between(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 40, 4):
            await burst(send, number, number + 3)
            await send(debug(number + 3))
            if number % 8 == 1:
                await asyncio.sleep(0)
        await send(last())

    exchange = await served(behave, headers)
    order: list[int] = []
    for _, message in exchange.messages:
        if message["type"] == "http.response.debug":
            order.append(message["info"]["number"])
        else:
            order += map(int, re.findall(rb"data: (\d+) ", message.get("body", b"")))
    assert order == list(range(1, 41))


async def test_a_message_of_another_kind_is_passed_on_as_the_same_object() -> None:
    message = debug(0)

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        await send(message)
        assert exchange.messages[-1][1] is message

    assert_whole(await served(behave, EVENTSOURCE), 3)


@both
async def test_comments_and_cut_events_of_one_burst_keep_their_order(headers: Headers) -> None:
    chunks = [
        *(b"data: 1 \n\n", b": a comment\n", b"data", b": 2", b" \n", b"\n", b"\n"),
        *(b"data: 3 \r\n\r", b"\n", b": another\r\n\r", b"\ndata: 4 \r\n", b"\r\n"),
        *(b"", b"data: 5 \n\ndata: 6 \n\ndata: ", b"7 \n\n", b"retry: 5\n\n: ", b"c\n"),
    ]

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for chunk in chunks:
            await send(body(chunk))
        await send(last())

    exchange = await served(behave, headers)
    assert_whole(exchange, 7)
    if headers:
        assert exchange.body.index(b": a comment") < exchange.body.index(b"data: 2")
    else:
        assert exchange.body == b"".join(chunks)


@both
async def test_an_event_cut_over_pauses_and_bursts_leaves_when_it_is_whole(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 3)
        for part in (b"da", b"ta: 3", b" \r\n"):
            await send(body(part))
            await asyncio.sleep(PAUSE)
            assert numbers(exchange) == [1, 2]
        await send(body(b"\r"))
        assert numbers(exchange) == [1, 2, 3]
        await asyncio.sleep(0)
        await send(body(b"\n"))
        await burst(send, 4, 6)
        await send(last())

    exchange = await served(behave, headers)
    assert_whole(exchange, 5)


async def test_heartbeats_come_between_bursts_and_inside_none() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 61, 3):
            await burst(send, number, number + 3)
            await asyncio.sleep(0.25)
        await send(last())

    exchange = await served(behave, EVENTSOURCE, heartbeat_interval=1)
    assert exchange.names.count("heartbeat") in {4, 5}
    assert_whole(exchange, 60)


async def test_a_heartbeat_that_comes_due_inside_a_burst_leaves_with_it() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 101):
            await send(event(number))
            virtual_loop().pass_time(0.1)  # the loop does not run in this time

    exchange = await served(behave, EVENTSOURCE, heartbeat_interval=1)
    assert exchange.names.count("heartbeat") in {8, 9}
    assert_whole(exchange, 100)


async def test_a_plain_client_gets_no_heartbeat_while_events_are_held() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 31, 3):
            await burst(send, number, number + 3)
            await asyncio.sleep(0.9)

    exchange = await served(behave, [], heartbeat_interval=1)
    assert b": heartbeat" not in exchange.body
    assert_whole(exchange, 30)
