"""What leaves together and what alone: an event behind a pause at once, a burst as one message.

Through the whole middleware. An event that comes behind a pause leaves within its own `send`; what
the app adds within the tick is held, and is written by the scribe when it is over, or earlier by
the app's own task.
"""

import asyncio
import gc
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware.stream.timers import TICK_SECONDS, current_timers
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.anyio

PAUSE = 2 * TICK_SECONDS
Headers = list[tuple[bytes, bytes]]
App = Callable[[Exchange, Send], Awaitable[None]]
"""What an app of these tests does; it may look at what has left already."""

both = pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])


class SlowExchange(Exchange):
    """A server whose every write takes some turns of the loop."""

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        await super().send(message)
        self._writing = True
        try:
            await asyncio.sleep(0)
        finally:
            self._writing = False


def event(number: int, *, size: int = 0) -> Message:
    """Return the message of one event, `size` bytes long or as short as can be."""
    data = b"data: %d " % number
    return body(data.ljust(size - 2, b"x") + b"\n\n")


def last(data: bytes = b"") -> Message:
    return body(data, more=False)


def debug(number: int) -> Message:
    """Return a message of a kind that we know nothing of."""
    return {"type": "http.response.debug", "info": {"number": number}}


def numbers(exchange: Exchange) -> list[int]:
    """Return the numbers of the app's events that have left."""
    return [int(e.data.split()[0]) for e in exchange.events if e.event == "message"]


def ids(exchange: Exchange) -> list[int]:
    """Return what our ids of the app's events count."""
    return [int(str(e.id).rpartition("-")[2]) for e in exchange.events if e.event == "message"]


def bodies(exchange: Exchange) -> list[bytes]:
    """Return the body messages that have left, without empty ones."""
    return [m["body"] for _, m in exchange.messages if m.get("body")]


def assert_whole(exchange: Exchange, count: int) -> None:
    """See that the events 1 to `count` have left, in order, each once."""
    assert numbers(exchange) == list(range(1, count + 1))
    if exchange.scope["headers"] == EVENTSOURCE:
        assert ids(exchange) == list(range(1, count + 1))
    assert exchange.overlaps == 0


async def open_stream(send: Send) -> None:
    """Send the response start, and let the tick go by in which our first bytes leave."""
    await send(stream_start())
    await asyncio.sleep(PAUSE)


async def burst(send: Send, first: int, behind: int, *, size: int = 0) -> None:
    """Send the events from `first` to the one before `behind`, without a pause."""
    for number in range(first, behind):
        await send(event(number, size=size))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def middleware(behave: App, exchange: Exchange, **options: Any) -> SSEMiddleware:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await behave(exchange, send)

    return SSEMiddleware(app, **options)


async def served(behave: App, headers: Headers, **options: Any) -> Exchange:
    """Run an app to its end, with a client that reads everything, unless the app has it stop."""
    exchange = Exchange(http_scope(headers=headers))
    app = middleware(behave, exchange, **options)
    await app(exchange.scope, exchange.receive, exchange.send)
    return exchange


def virtual_loop() -> VirtualClockLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    return loop


def timers() -> list[asyncio.TimerHandle]:
    """Return the timers of the running loop that will fire."""
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if not handle.cancelled()]


@asynccontextmanager
async def nothing_left_behind(*, collect: bool = False) -> AsyncIterator[None]:
    """See that what runs in here leaves no task, and nothing to the loop's exception handler."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    before = asyncio.all_tasks()
    yield
    await turns(3)  # the scribe goes home in the turn behind the last stream
    assert asyncio.all_tasks() - before == set()
    if collect:  # this takes its time
        gc.collect()
    assert told == []


# What leaves at once


@both
async def test_an_event_behind_a_pause_leaves_within_its_own_send(headers: Headers) -> None:
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


# What leaves together


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
async def test_a_burst_behind_the_response_start_leaves_as_one_message(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        await burst(send, 1, 101)
        await asyncio.sleep(0)
        assert len(exchange.messages) == 2

    assert_whole(await served(behave, headers), 100)


@both
async def test_burst_upon_burst_leaves_in_order_whatever_lies_between(headers: Headers) -> None:
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
        with_ids = (1 << 14) + 17 * 40  # what the app has written is counted, without our lines
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


async def test_the_last_message_of_a_plain_stream_takes_along_what_is_held() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        before = len(exchange.messages)
        await burst(send, 1, 6)
        await send(last(b"data: 6\n\n"))
        assert len(exchange.messages) == before + 2

    exchange = await served(behave, [])
    assert exchange.ended
    assert_whole(exchange, 6)


async def test_an_eventsource_is_told_of_the_end_in_one_message_behind_all_that_is_held() -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        before = len(exchange.messages)
        await burst(send, 1, 6)
        await send(last(b"data: 6\n\n"))
        # Ours lets the loop turn before it tells of an end, and so the scribe may come first.
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


# How long it is held


@both
async def test_what_is_held_leaves_when_the_tick_is_over(headers: Headers) -> None:
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


async def test_our_first_event_leaves_by_itself_where_the_app_is_silent() -> None:
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
async def test_what_is_held_behind_a_blocked_write_leaves_as_soon_as_that_has_ended(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 3)
        exchange.block()
        await asyncio.sleep(PAUSE)
        await burst(send, 3, 6)
        exchange.unblock()
        await turns(3)
        assert_whole(exchange, 5)

    await served(behave, headers)


@both
async def test_what_one_task_holds_behind_a_blocked_write_of_another_leaves_behind_it(
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
            virtual_loop().pass_time(0.1)  # the loop does not turn meanwhile

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


# Nothing is lost at the end


@both
async def test_what_is_held_leaves_before_an_exception_of_the_app(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 6)
        assert numbers(exchange) == [1]
        raise ValueError

    exchange = Exchange(http_scope(headers=headers))
    app = middleware(behave, exchange)
    async with nothing_left_behind():
        with pytest.raises(ValueError):
            await app(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 5)
    assert exchange.ended is bool(headers)
    assert exchange.names[-1] == ("error" if headers else "message")


@both
async def test_what_is_held_leaves_where_the_app_just_returns(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 6)
        assert numbers(exchange) == [1]

    async with nothing_left_behind():
        exchange = await served(behave, headers)
        assert_whole(exchange, 5)
    assert not exchange.ended


@both
@pytest.mark.parametrize("wait", [0, 1, 2])
async def test_what_is_held_leaves_where_the_app_is_cancelled(headers: Headers, wait: int) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 6)
        assert exchange.task is not None
        exchange.task.cancel()
        if wait:
            await turns(wait)
            pytest.fail("it was cancelled in vain")

    async with nothing_left_behind(collect=True):
        exchange = Exchange(http_scope(headers=headers))
        async with running(middleware(behave, exchange), exchange):
            assert exchange.task is not None
            await asyncio.wait([exchange.task])
            assert exchange.task.cancelled() or not wait
    assert_whole(exchange, 5)
    assert exchange.ended == (headers == EVENTSOURCE and bool(wait))  # who reads ends, gets one


@both
async def test_what_is_held_leaves_before_the_end_at_the_cap(headers: Headers) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(2.9)
        await burst(send, 1, 6)
        virtual_loop().pass_time(0.2)  # the cap comes while something is held
        await send(event(6))
        await asyncio.sleep(10)

    async with nothing_left_behind():
        exchange = await served(behave, headers, stream_max_seconds=3)
    assert_whole(exchange, 5)
    assert exchange.names[-1] == ("complete" if headers else "message")
    assert exchange.ended is bool(headers)


@both
async def test_what_is_held_behind_a_blocked_write_leaves_before_the_end_at_the_cap(
    headers: Headers,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        await burst(send, 4, 7)
        await asyncio.sleep(10)

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        app = middleware(behave, exchange, stream_max_seconds=3)
        async with running(app, exchange):
            await asyncio.sleep(3.5)
            exchange.unblock()
            assert exchange.task is not None
            await exchange.task
    assert_whole(exchange, 6)
    assert exchange.names[-1] == ("complete" if headers else "message")


@both
@pytest.mark.parametrize("how", ["raises", "returns", "ends"])
async def test_what_is_held_behind_a_blocked_write_leaves_when_the_client_reads_on_in_time(
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
    async with nothing_left_behind():
        app = middleware(behave, exchange)
        with pytest.raises(ValueError) if how == "raises" else nullcontext():
            await app(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 6)


@both
@pytest.mark.parametrize("how", ["raises", "returns", "is cancelled", "meets its cap"])
async def test_what_a_blocked_client_did_not_take_in_time_is_given_up_with_all_behind_it(
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

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        app = middleware(behave, exchange, stream_max_seconds=3, heartbeat_interval=1)
        async with running(app, exchange):
            assert exchange.task is not None
            await asyncio.wait([exchange.task])
    exchange.unblock()
    await asyncio.sleep(20)
    assert_whole(exchange, 1)  # no event behind a gap, and none when the app has left
    assert not exchange.ended


@both
async def test_a_client_that_has_left_gets_nothing_and_nothing_hangs(headers: Headers) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        await receive()
        await burst(send, 1, 4)
        exchange.disconnect()
        assert (await receive())["type"] == "http.disconnect"

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        async with running(SSEMiddleware(app), exchange):
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

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        async with running(SSEMiddleware(app), exchange):
            assert exchange.task is not None
            began = virtual_loop().time()
            await exchange.task
            assert virtual_loop().time() - began < 3
        exchange.unblock()
    await asyncio.sleep(20)
    assert_whole(exchange, 1)


@both
async def test_a_client_that_leaves_just_as_much_is_to_be_written_lets_the_send_go_on(
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

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)


# Contexts

REQUEST: ContextVar[str] = ContextVar("request", default="nobody's")
LEAK: ContextVar[str] = ContextVar("leak", default="clean")


def looking(app: ASGIApp, seen: dict[str, set[str]]) -> ASGIApp:
    """Return a middleware that sets a variable for its request, and looks at it in each write."""

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
            await asyncio.sleep(3600)  # till the cap ends it
        if scope["path"].endswith("2"):
            raise ValueError
        await burst(send, 7, 9)
        await send(last())

    seen: dict[str, set[str]] = {}
    wrapped = looking(SSEMiddleware(app, heartbeat_interval=1, stream_max_seconds=4), seen)

    async def one(path: str) -> Exchange:
        exchange = (SlowExchange if slow else Exchange)(http_scope(headers=headers, path=path))
        with suppress(ValueError):
            await wrapped(exchange.scope, exchange.receive, exchange.send)
        return exchange

    paths = [f"/{number}" for number in range(100)]
    async with nothing_left_behind():
        exchanges = await asyncio.gather(*map(one, paths))
    for path, exchange in zip(paths, exchanges, strict=True):
        assert_whole(exchange, 6 if path.endswith(("1", "2")) else 8)
        assert exchange.body.count(b"heartbeat\n") >= 2
        assert seen[path] == {path, "clean"}
    assert (REQUEST.get(), LEAK.get()) == ("nobody's", "clean")


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


# Writes that wait


@both
async def test_while_one_stream_is_blocked_the_others_go_on_and_it_goes_on_later(
    headers: Headers,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 22, 3):
            await burst(send, number, number + 3)
            await asyncio.sleep(0.5)
        if scope["path"] != "/capped":
            await send(last())
        await asyncio.sleep(10)

    async with nothing_left_behind():
        wrapped = SSEMiddleware(app, heartbeat_interval=1, stream_max_seconds=4)
        names = ("/blocked", "/one", "/other", "/capped")
        blocked, *others = [Exchange(http_scope(headers=headers, path=path)) for path in names]
        async with running(wrapped, blocked):
            await blocked.until("message")
            blocked.block()
            tasks = [wrapped(x.scope, x.receive, x.send) for x in others]
            whole = asyncio.gather(*tasks)
            await asyncio.sleep(3.45)
            for exchange in others[:2]:
                assert numbers(exchange) == list(range(1, 22))
            assert len(numbers(blocked)) < 4
            blocked.unblock()
            await whole
            assert blocked.task is not None
            await blocked.task
    for exchange in (blocked, *others):
        assert_whole(exchange, 21)
        assert exchange.ended is (bool(headers) or exchange is not others[2])
    assert headers == [] or all(x.names.count("heartbeat") >= 2 for x in others)


def tasks_of_writes(app: ASGIApp, pairs: list[tuple[object, object]]) -> ASGIApp:
    """Return a middleware that notes in which task each write begins, and in which it ends."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            before = asyncio.current_task()
            await send(message)
            pairs.append((before, asyncio.current_task()))

        await app(scope, receive, sending)

    return outer


@both
@pytest.mark.parametrize("kind", [Exchange, SlowExchange])
async def test_a_write_has_one_task_from_its_begin_to_its_end(
    headers: Headers, kind: type[Exchange]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 31, 3):
            await burst(send, number, number + 3)
            await asyncio.sleep(0.5)
        await send(last())

    pairs: list[tuple[object, object]] = []
    wrapped = tasks_of_writes(SSEMiddleware(app, heartbeat_interval=1), pairs)
    async with nothing_left_behind():
        exchanges = [kind(http_scope(headers=headers)) for _ in range(10)]
        all_of_them = asyncio.gather(*(wrapped(x.scope, x.receive, x.send) for x in exchanges))
        for exchange in exchanges[::2]:
            await asyncio.sleep(0.1)
            exchange.block()
        for exchange in exchanges[::2]:
            await asyncio.sleep(0.5)
            exchange.unblock()
        await all_of_them
    for exchange in exchanges:
        assert_whole(exchange, 30)
    assert pairs
    assert all(before is after is not None for before, after in pairs)


# Middlewares outside of us that need the current task


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def within(guard: Callable[[], Any], *, pause: float = 0.001) -> Callable[[ASGIApp], ASGIApp]:
    """Return a middleware that does each write within `guard()`, behind a pause."""

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

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        wrapped = guard()(SSEMiddleware(app, heartbeat_interval=0.5))
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

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        wrapped = within(guard, pause=0)(SSEMiddleware(app))
        began = virtual_loop().time()
        with pytest.raises(TimeoutError):
            await wrapped(exchange.scope, exchange.receive, exchange.send)
    assert [at - began for at in raised] == [pytest.approx(3, abs=0.1)]
    assert_whole(exchange, 1)


# Back-pressure


@both
@pytest.mark.parametrize("size", [20, 1000, 20_000, 100_000])
@pytest.mark.parametrize("pause", [None, 0, 0.001])
async def test_an_app_that_floods_a_client_that_does_not_read_is_stopped_in_time(
    headers: Headers, size: int, pause: float | None
) -> None:
    total = max(30, 100_000 // size)
    in_memory: list[int] = []  # what the app got rid of, and the server was not yet asked to send
    handed_on: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        for number in range(1, total + 1):
            await send(event(number, size=size))
            in_memory.append((number - len(handed_on)) * size)
            if pause is not None:
                await asyncio.sleep(pause)
        await send(last())

    async def counting(message: Message) -> None:
        handed_on.extend(re.findall(rb"data: \d+ ", message.get("body", b"")))
        await exchange.send(message)

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await SSEMiddleware(app, heartbeat_interval=None)(scope, receive, counting)

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        async with running(wrapped, exchange):
            await asyncio.sleep(0.0005)
            exchange.block()
            await asyncio.sleep(5)
            stopped_at = len(in_memory)
            assert stopped_at < total
            await asyncio.sleep(20)
            assert len(in_memory) == stopped_at
            assert max(in_memory, default=0) <= 1 << 16
            exchange.unblock()
            assert exchange.task is not None
            await exchange.task
    assert_whole(exchange, total)
    assert max(in_memory) <= 1 << 16


@both
async def test_several_tasks_that_flood_a_blocked_client_are_all_stopped(headers: Headers) -> None:
    sent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        exchange.block()

        async def flood() -> None:
            for _ in range(100):
                sent.append(len(sent) + 1)
                await send(event(sent[-1], size=2000))
                await asyncio.sleep(0)

        await asyncio.gather(*(flood() for _ in range(5)))
        await send(last())

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        async with running(SSEMiddleware(app, heartbeat_interval=1), exchange):
            await asyncio.sleep(20)
            assert len(sent) * 2000 <= (1 << 16) + 5 * 2000
            exchange.unblock()
            assert exchange.task is not None
            await exchange.task
    assert_whole(exchange, 500)


# Handlers that hold the loop; these tests need the real time of a real loop


def loop_factories() -> Iterator[Any]:
    yield pytest.param(asyncio.SelectorEventLoop, id="asyncio")
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return
    yield pytest.param(uvloop.new_event_loop, id="uvloop")


real_loops = pytest.mark.parametrize("loop_factory", list(loop_factories()))


def really_served(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    behave: App,
    headers: Headers,
    **options: Any,
) -> Exchange:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(served(behave, headers, **options))


@both
@real_loops
def test_each_event_of_a_handler_that_blocks_leaves_by_its_next_send_and_the_first_at_once(
    loop_factory: Any, headers: Headers
) -> None:
    left: list[int] = []

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 6):
            await send(event(number))
            left.append(len(numbers(exchange)))
            time.sleep(0.02)  # noqa: ASYNC251 - this is what such a handler does

    assert_whole(really_served(loop_factory, behave, headers), 5)
    assert left[0] == 1
    assert all(count >= number for number, count in enumerate(left))


@both
@real_loops
def test_a_handler_that_blocks_behind_the_response_start_has_its_events_leave_too(
    loop_factory: Any, headers: Headers
) -> None:
    left: list[int] = []

    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 8, 2):
            await burst(send, number, number + 2)
            left.append(len(numbers(exchange)))
            time.sleep(0.02)  # noqa: ASYNC251

    assert_whole(really_served(loop_factory, behave, headers), 8)
    assert all(count >= 2 * number for number, count in enumerate(left))


@both
@real_loops
def test_without_batching_each_event_of_a_handler_that_blocks_leaves_at_once(
    loop_factory: Any, headers: Headers
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 4):
            await send(event(number))
            assert numbers(exchange)[-1] == number
            time.sleep(0.02)  # noqa: ASYNC251

    assert_whole(really_served(loop_factory, behave, headers, batch=False), 3)


@both
@pytest.mark.parametrize("by", ["option", "variable"])
async def test_without_batching_each_event_leaves_as_a_message_of_its_own(
    headers: Headers, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch": False} if by == "option" else {}
    if by == "variable":
        monkeypatch.setenv("SSE_BATCH", "0")

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 101):
            before = len(bodies(exchange))
            await send(event(number))
            assert len(bodies(exchange)) == before + 1
            assert numbers(exchange)[-1] == number
        await send(last())

    assert_whole(await served(behave, headers, **options), 100)


# Errors of the server


@both
async def test_an_error_of_a_background_write_shows_at_the_apps_next_send(headers: Headers) -> None:
    refusal = ConnectionResetError("gone")
    raised: list[BaseException] = []

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.refusal = refusal
        await asyncio.sleep(0.1)
        exchange.refusal = None
        for number in range(4, 7):
            try:
                await send(event(number))
            except OSError as exc:
                raised.append(exc)
        raise raised[0]

    exchange = Exchange(http_scope(headers=headers))
    async with nothing_left_behind(collect=True):
        with pytest.raises(ConnectionResetError) as caught:
            await middleware(behave, exchange)(exchange.scope, exchange.receive, exchange.send)
    assert caught.value is refusal
    assert refusal.__context__ is None
    assert raised[0] is refusal
    assert set(map(id, raised)) == {id(refusal)}
    assert_whole(exchange, 1)


@both
@pytest.mark.parametrize("message", [event(4), last(), debug(4)], ids=["event", "end", "other"])
async def test_an_error_of_a_background_write_shows_whatever_the_app_sends_next(
    headers: Headers, message: Message
) -> None:
    refusal = ConnectionResetError("gone")

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.refusal = refusal
        await asyncio.sleep(0.1)
        exchange.refusal = None
        await send(message)

    exchange = Exchange(http_scope(headers=headers))
    with pytest.raises(ConnectionResetError):
        await middleware(behave, exchange)(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 1)
    assert not exchange.ended


@both
@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_an_error_of_a_background_write_takes_the_place_of_nothing_the_app_does(
    headers: Headers, how: str
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.refusal = ConnectionResetError("gone")
        await asyncio.sleep(0.1)
        if how == "raises":
            raise ValueError("its own")

    exchange = Exchange(http_scope(headers=headers))
    async with nothing_left_behind():
        app = middleware(behave, exchange)
        if how == "returns":
            await app(exchange.scope, exchange.receive, exchange.send)
        else:
            with pytest.raises(ValueError, match="its own") as caught:
                await app(exchange.scope, exchange.receive, exchange.send)
            assert caught.value.__context__ is None
    assert_whole(exchange, 1)


@both
async def test_an_error_that_meets_a_send_that_waits_behind_it_is_raised_from_that_send(
    headers: Headers,
) -> None:
    refusal = ConnectionResetError("gone")
    raised: list[tuple[int, BaseException]] = []

    class Failing(Exchange):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if self.refusal is not None:
                raise self.refusal

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(1, exchange.unblock)
        asyncio.get_running_loop().call_later(1, setattr, exchange, "refusal", refusal)
        for number in range(4, 40):
            try:
                await send(event(number, size=1000))
            except OSError as exc:
                raised.append((number, exc))
                break

    async with nothing_left_behind():
        exchange = Failing(http_scope(headers=headers))
        await middleware(behave, exchange)(exchange.scope, exchange.receive, exchange.send)
    ((number, error),) = raised
    assert error is refusal
    assert number < 30  # there it waited for the client


class Counting(Exchange):
    """A server that counts its calls."""

    calls = 0

    async def send(self, message: Message) -> None:
        self.calls += 1
        await super().send(message)


@both
@pytest.mark.parametrize("batch", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("message", [event(2), debug(2)], ids=["event", "other"])
async def test_an_error_of_a_direct_write_is_raised_from_that_very_send_and_we_write_no_more(
    headers: Headers, message: Message, *, batch: bool
) -> None:
    refusal = ConnectionResetError("gone")

    async def behave(_: Exchange, send: Send) -> None:
        await open_stream(send)
        await send(event(1))
        await asyncio.sleep(PAUSE)
        exchange.refusal = refusal
        calls = exchange.calls
        with pytest.raises(ConnectionResetError) as caught:
            await send(message)
        assert caught.value is refusal
        await asyncio.sleep(20)
        assert exchange.calls == calls + 1

    async with nothing_left_behind():
        exchange = Counting(http_scope(headers=headers))
        app = middleware(behave, exchange, heartbeat_interval=1, batch=batch)
        await app(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 1)


@both
async def test_behind_a_background_write_that_the_server_has_cancelled_there_is_no_gap(
    headers: Headers,
) -> None:
    class Cancelling(Exchange):
        async def send(self, message: Message) -> None:
            if b"data: 2 " in message.get("body", b""):
                raise asyncio.CancelledError
            await super().send(message)

    async def behave(_: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 13, 3):
            await burst(send, number, number + 3)
            await asyncio.sleep(PAUSE)
        await send(last())

    exchange = Cancelling(http_scope(headers=headers))
    with suppress(Exception):  # it may well be told
        await middleware(behave, exchange)(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 1)


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

    async with nothing_left_behind():
        exchange = kind(http_scope(headers=headers))
        async with running(SSEMiddleware(app, heartbeat_interval=0.05, **options), exchange):
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

    async with nothing_left_behind():
        exchange = kind(http_scope(headers=headers))
        await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)


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
    async with running(SSEMiddleware(app, batch=False), exchange):
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
async def test_a_send_that_is_given_up_while_it_waits_loses_nothing_that_was_sent_before(
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
        seen = numbers(exchange)
        assert seen[: len(sent)] == sent
        assert seen in (sent, [*sent, sent[-1] + 1])

    await served(behave, headers)


# Cancelled at every await


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


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch": False},
    {"chunk_delay_ms": 5},
    {"stream_max_seconds": 0.07},
    {"rollout_percent": 0},
]


@both
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [Exchange, SlowExchange])
@pytest.mark.parametrize("blocked", [False, True], ids=["reading", "blocked"])
async def test_a_cancellation_at_any_turn_leaves_no_task_no_gap_and_writes_nothing_later(
    headers: Headers, options: dict[str, Any], kind: type[Exchange], *, blocked: bool
) -> None:
    done = False
    turn = 0
    while not done and turn < (30 if blocked else 300):
        async with nothing_left_behind():
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
        turn += 1
    assert done or blocked
    gc.collect()


def test_a_cancellation_at_any_turn_of_a_file_that_is_sent_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "recorded.sse"
    file.write_bytes(b"".join(bytes(event(n, size=5000)["body"]) for n in range(1, 60)))

    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        await send({"type": "http.response.pathsend", "path": str(file)})

    async def cancelled_at(turn: int) -> Exchange:
        async with nothing_left_behind():
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

    async with nothing_left_behind():
        exchange = Exchange(http_scope(headers=headers))
        await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)
    seen = numbers(exchange)
    assert seen[:14] == list(range(1, 15))
    assert seen[-1] == 26
    assert all(one < other for one, other in pairwise(seen))


@both
@pytest.mark.parametrize("message", [debug(0), last(), event(4)], ids=["other", "end", "event"])
@pytest.mark.parametrize("batch", [True, False], ids=["batched", "unbatched"])
async def test_a_message_that_waits_while_the_cap_comes_never_stands_behind_the_end(
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

    exchange = await served(behave, headers, stream_max_seconds=3, batch=batch)
    assert numbers(exchange)[:3] == [1, 2, 3]
    assert exchange.overlaps == 0
    ends = [m.get("more_body") is False for _, m in exchange.messages]
    if headers:
        assert exchange.names.count("complete") == 1
        assert b"duration_cap" in exchange.body
        assert ends.count(True) == 1
        assert ends[-1]
    else:
        assert not any(ends)


def test_streams_that_end_with_their_loop_end_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await open_stream(send)
        number = 1
        while True:
            await burst(send, number, number + 3)
            number += 3
            await asyncio.sleep(0.001)

    async def serve() -> list[SlowExchange]:
        wrapped = SSEMiddleware(app)
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


# Tasks that begin at once (asyncio.eager_task_factory)


@both
@pytest.mark.parametrize("kind", [Exchange, SlowExchange])
@pytest.mark.parametrize("count", [1, 400])
async def test_with_eager_tasks_bursts_heartbeats_ends_and_blocked_writes_are_as_ever(
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

    wrapped = SSEMiddleware(app, heartbeat_interval=1, stream_max_seconds=3)
    async with nothing_left_behind():
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


async def test_with_eager_tasks_what_is_held_behind_a_blocked_write_follows_it() -> None:
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

    async with nothing_left_behind(collect=True):
        await served(behave, EVENTSOURCE)


# Whatever an app does

STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 12)),  # so many chunks at once
    st.tuples(st.just("turn"), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.sampled_from([TICK_SECONDS / 2, TICK_SECONDS, 0.5, 1.7])),
    st.tuples(st.just("hold the loop"), st.sampled_from([TICK_SECONDS / 2, TICK_SECONDS, 1.2])),
    st.tuples(st.just("block"), st.sampled_from([0.01, 0.4, 3.0])),
)
"""What an app does, or its client, which reads on by itself."""


@st.composite
def chunkings(draw: st.DrawFn) -> list[bytes]:
    """Draw the chunks of an app: whole events, events cut anywhere, comments, large ones."""
    chunks: list[bytes] = []
    number = 0
    for kind in draw(st.lists(st.sampled_from("wwwwcmlb"), max_size=40)):
        number += kind != "c"
        end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
        block = b"data: %d " % number + b"x" * (7000 if kind == "b" else 0) + end + end
        if kind == "w":
            chunks.append(block)
        elif kind == "c":
            chunks.append(b": a comment" + end)
        elif kind == "l":  # two events in one chunk
            number += 1
            chunks.append(block + b"data: %d " % number + end + end)
        else:
            cuts = sorted(draw(st.lists(st.integers(0, len(block)), min_size=1, max_size=4)))
            chunks += [block[one:other] for one, other in pairwise([0, *cuts, len(block)])]
    return chunks


@settings(deadline=None, max_examples=300)
@given(
    chunks=chunkings(),
    steps=st.lists(STEPS, max_size=30),
    end=st.sampled_from(["ends", "returns", "raises"]),
    headers=st.sampled_from([EVENTSOURCE, []]),
    options=st.sampled_from(OPTIONS[:3]),
    slow=st.booleans(),
)
def test_any_app_and_client_get_all_events_in_order(
    chunks: list[bytes],
    steps: list[tuple[str, Any]],
    end: str,
    headers: Headers,
    options: dict[str, Any],
    *,
    slow: bool,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        loop = virtual_loop()
        await send(stream_start())
        left = iter(chunks)
        for what, how in steps:
            if what == "send":
                for _ in range(how):
                    if (chunk := next(left, None)) is not None:
                        await send(body(chunk))
            elif what == "turn":
                await turns(how)
            elif what == "wait":
                await asyncio.sleep(how)
            elif what == "hold the loop":
                loop.pass_time(how)
            else:
                exchange.block()
                loop.call_later(how, exchange.unblock)
        for chunk in left:
            await send(body(chunk))
        if end == "ends":
            await send(last())
        elif end == "raises":
            loop.call_later(0.5, exchange.unblock)
            raise ValueError
        else:
            loop.call_later(0.5, exchange.unblock)

    async def run() -> Exchange:
        exchange = (SlowExchange if slow else Exchange)(http_scope(headers=headers))
        app = middleware(behave, exchange, **{"heartbeat_interval": 1, **options})
        async with nothing_left_behind():
            with suppress(ValueError):
                await app(exchange.scope, exchange.receive, exchange.send)
        return exchange

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        exchange = runner.run(run())
    app_bytes = b"".join(chunks)
    assert_whole(exchange, len(re.findall(rb"data: ", app_bytes)))
    if headers:
        assert exchange.names[0] == "start"
        assert exchange.names[-1] == {"ends": "complete", "raises": "error"}.get(
            end, exchange.names[-1]
        )
    else:
        assert re.sub(rb": heartbeat(\r?\n){2}", b"", exchange.body) == app_bytes


# Behind the last stream


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

    wrapped = SSEMiddleware(app, heartbeat_interval=5, stream_max_seconds=60, replay_max_events=0)
    loop, before = asyncio.get_running_loop(), len(timers())
    async with nothing_left_behind():
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


async def test_streams_one_after_another_share_a_ticker() -> None:
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
