"""Back-pressure: blocked writes, apps that flood, and handlers that block the event loop."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stream.timers import LONGEST_TICK_SECONDS
from sse_middleware.testing import EVENTSOURCE_HEADERS
from tests.support.asgi import Exchange, http_scope, running, stream_start
from tests.support.batching import (
    App,
    Headers,
    SlowExchange,
    assert_whole,
    bodies,
    both,
    burst,
    event,
    last,
    nothing_left,
    numbers,
    open_stream,
    served,
)
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio


# Writes that wait


async def test_events_after_a_blocked_write_are_kept_at_the_end_of_the_tick() -> None:
    store = MemoryStore()
    never = asyncio.Event()

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(1)
        blocked = asyncio.ensure_future(send(event(1)))
        await asyncio.sleep(0)
        await send(event(2))
        await send(event(3))
        await never.wait()
        await blocked

    exchange = Exchange(http_scope(headers=EVENTSOURCE_HEADERS))

    async def send(message: Message) -> None:
        await exchange.send(message)
        if event(1)["body"].strip() in message.get("body", b""):
            await never.wait()

    task = asyncio.create_task(marking(app, store=store)(exchange.scope, exchange.receive, send))
    await asyncio.sleep(1.1)
    found = await store.find(exchange.headers[b"x-stream-id"].decode())
    assert found is not None
    assert found.last == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@both
async def test_a_blocked_stream_delays_no_other_and_continues_later(
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

    async with nothing_left():
        wrapped = marking(app, heartbeat_interval=1, stream_max_seconds=4)
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
    """Return a middleware that records the tasks in which each write begins and ends."""

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
    wrapped = tasks_of_writes(marking(app, heartbeat_interval=1), pairs)
    async with nothing_left():
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


# Back-pressure


@both
@pytest.mark.parametrize("size", [20, 1000, 20_000, 100_000])
@pytest.mark.parametrize("pause", [None, 0, 0.001])
async def test_an_app_that_floods_a_client_that_does_not_read_is_stopped_in_time(
    headers: Headers, size: int, pause: float | None
) -> None:
    total = max(30, 100_000 // size)
    in_memory: list[int] = []  # written by the app, and not yet passed to the server
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
        await marking(app, heartbeat_interval=None)(scope, receive, counting)

    async with nothing_left():
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

    async with nothing_left():
        exchange = Exchange(http_scope(headers=headers))
        async with running(marking(app, heartbeat_interval=1), exchange):
            await asyncio.sleep(20)
            assert len(sent) * 2000 <= (1 << 16) + 5 * 2000
            exchange.unblock()
            assert exchange.task is not None
            await exchange.task
    assert_whole(exchange, 500)


# Handlers that block the loop; these tests need the real time of a real loop


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
        await send(stream_start())
        await asyncio.sleep(2 * LONGEST_TICK_SECONDS)  # a busy machine has longer ticks
        for number in range(1, 6):
            await send(event(number))
            left.append(len(numbers(exchange)))
            time.sleep(2 * LONGEST_TICK_SECONDS)  # noqa: ASYNC251 - such a handler does so

    assert_whole(really_served(loop_factory, behave, headers), 5)
    assert left[0] == 1
    assert all(count >= number for number, count in enumerate(left))


@both
@real_loops
def test_events_of_a_handler_that_blocks_after_the_response_start_leave_too(
    loop_factory: Any, headers: Headers
) -> None:
    left: list[int] = []

    async def behave(exchange: Exchange, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 8, 2):
            await burst(send, number, number + 2)
            left.append(len(numbers(exchange)))
            time.sleep(2 * LONGEST_TICK_SECONDS)  # noqa: ASYNC251

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
            time.sleep(2 * LONGEST_TICK_SECONDS)  # noqa: ASYNC251

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
