"""A client that reads nothing blocks its app, but not the clients that follow the stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import current_stream, resume_endpoint
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.resuming import (
    Counting,
    counted,
    id_of,
    opened,
    resumable,
    resume,
    returning,
    texts,
    value,
)

pytestmark = pytest.mark.anyio

UNCAPPED: dict[str, Any] = {"stream_max_seconds": None}


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    for number in range(1, 31):
        await send(body(b"data: %d\n\n" % number))
        await asyncio.sleep(1)
    await send(body(b"", more=False))


async def timed(scope: Scope, receive: Receive, send: Send) -> None:
    """Put a time limit around each write, and check its cancellations afterwards."""
    task = asyncio.current_task()
    assert task is not None
    await send(stream_start())
    for number in range(1, 31):
        async with asyncio.timeout(100):
            await send(body(b"data: %d\n\n" % number))
        assert not task.cancelling()
        await asyncio.sleep(1)
    await send(body(b"", more=False))


async def in_bursts(scope: Scope, receive: Receive, send: Send) -> None:
    """Write more than is held, so that the app waits for the background writer."""
    await send(stream_start())
    for number in range(1, 31):
        await send(body(b"data: %d\n\n: %b\n\n" % (number, b"x" * 9000)))
        await send(body(b": %b\n\n" % (b"x" * 9000)))
        await asyncio.sleep(1)
    await send(body(b"", more=False))


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


APPS: dict[str, Any] = {
    "bare": lambda: bare,
    "with time limits": lambda: timed,
    "in bursts": lambda: in_bursts,
    "starlette": lambda: Counting(30),
    "inside a middleware": lambda: Passing(Counting(30)),
}


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
@pytest.mark.parametrize("heartbeat_interval", [None, 5.0])
async def test_a_follower_gets_the_stream_though_the_first_client_reads_nothing(
    app: Any, heartbeat_interval: float | None
) -> None:
    registry = CollectorRegistry()
    kept = resumable(app(), registry=registry, heartbeat_interval=heartbeat_interval, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(20)
        again = await resume(kept, id_of(first, 2))
        assert texts(again) == counted(3, 30)
        assert again.names[-1] == "complete"
        assert texts(first) == counted(1, 2)
        assert first.overlaps == 0
        await asyncio.sleep(30)  # the timeout of its write
        assert value(registry, "sse_streams_active") == 0


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
@pytest.mark.parametrize("heartbeat_interval", [None, 5.0])
async def test_a_follower_continues_when_the_first_client_stops_reading(
    app: Any, heartbeat_interval: float | None
) -> None:
    kept = resumable(app(), heartbeat_interval=heartbeat_interval, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        async with returning(kept, id_of(first, 1)) as again:
            await again.until_count(3, "message")
            first.block()
            await again.until_end()
            assert texts(again) == counted(2, 30)


async def test_a_client_that_timed_out_gets_an_end_when_it_reads_again() -> None:
    kept = resumable(bare, send_timeout=5, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        async with returning(kept, id_of(first, 2)) as again:
            await again.until_count(10, "message")
            first.unblock()
            await first.until_end()
            assert texts(first) == counted(1, 3)
            assert first.names[-1] != "complete"
    assert first.overlaps == 0


async def test_a_slow_client_is_not_disconnected() -> None:
    kept = resumable(bare, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        async with returning(kept, id_of(first, 2)) as again:
            for _ in range(20):
                first.block()
                await asyncio.sleep(0.7)
                first.unblock()
                await asyncio.sleep(0.01)
            await first.until_end()
            assert texts(first) == counted(1, 30)
            await again.until_end()
            assert texts(again) == counted(3, 30)


async def test_a_blocked_client_applies_back_pressure_without_another_reader() -> None:
    kept = resumable(bare, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(25)
        first.unblock()
        await first.until_end()
        assert texts(first) == counted(1, 30)


@pytest.mark.parametrize("turns", range(6))
async def test_a_foreign_cancellation_in_those_turns_is_not_taken_for_ours(
    turns: int,
) -> None:
    kept = resumable(bare, heartbeat_interval=None, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(5)
        async with returning(kept, id_of(first, 2)) as again:
            await again.until("start")
            await asyncio.sleep(1 - 0.0005)
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            assert first.task is not None
            first.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first.task
            assert first.task.cancelled()


async def test_a_failure_of_an_app_that_was_freed_is_reported() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 5):
            await send(body(b"data: %d\n\n" % number))
            await asyncio.sleep(1)
        raise ValueError

    kept = resumable(app, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        again = await resume(kept, id_of(first, 2))
        assert again.names[-1] == "error"
        assert texts(again) == counted(3, 4)
        assert first.task is not None
        with pytest.raises(ValueError):
            await first.task


async def test_an_app_that_writes_by_a_task_of_its_own_is_not_blocked_by_its_client() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(1, 6):
            yield number
            await asyncio.sleep(1)

    cancelled: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            async for number in numbers():
                await send(body(b"data: %d\n\n" % number))

        await send(stream_start())
        writer = asyncio.ensure_future(write())
        try:
            await asyncio.shield(writer)
        except asyncio.CancelledError:
            cancelled.append("app")
            raise
        await send(body(b"", more=False))

    kept: ASGIApp = resumable(app, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        async with returning(kept, id_of(first, 2)) as again:
            await again.until_end()
            first.unblock()
            assert texts(again) == counted(3, 5)
    assert not cancelled


# A client that reads the log, because it is slower than others


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Write so much that a blocked connection reads it from the log."""
    await send(stream_start())
    for number in range(1, 101):
        await send(body(b"data: %d\ndata: %b\n\n" % (number, b"x" * 5000)))
        await asyncio.sleep(0.01)
    await asyncio.sleep(2)
    await send(body(b"data: 101\ndata: x\n\n"))
    await asyncio.sleep(2)
    await send(body(b"", more=False))


@pytest.mark.parametrize("seconds", [1.5, 2.5, 3.5, 4.5, 30])
@pytest.mark.parametrize("heartbeat_interval", [None, 5.0])
async def test_a_slow_client_gets_the_end_if_its_stream_ends_before_or_after_it_has_caught_up(
    heartbeat_interval: float | None, seconds: float
) -> None:
    kept = resumable(large, heartbeat_interval=heartbeat_interval, send_timeout=None, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        async with returning(kept, id_of(first, 2)) as reader:
            first.block()
            await asyncio.sleep(seconds)
            first.unblock()
            await reader.until_end()
        await first.until_end()
        assert first.task is not None
        await first.task
    assert [text.partition("\n")[0] for text in texts(first)] == counted(1, 101)
    assert first.names[-1] == "complete"
    assert first.overlaps == 0


@pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
async def test_a_message_after_the_last_one_waits_for_a_slow_client(headers: Any) -> None:
    late = body(b"data: late\n\n")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().name("x")
        if scope["path"] == "/live":
            await live(scope, receive, send)
        else:
            await large(scope, receive, send)
            await send(late)

    live = resume_endpoint("x")
    user = (b"authorization", b"Bearer ann")
    kept = resumable(app, heartbeat_interval=None, send_timeout=None, **UNCAPPED)
    first = Exchange(http_scope(headers=[*headers, user]))
    async with running(kept, first):
        await first.until_count(2, "message")
        async with opened(kept, user, path="/live") as reader:
            first.block()
            await reader.until_end()
        await asyncio.sleep(1)
        first.unblock()
        assert first.task is not None
        await first.task
    assert [text.partition("\n")[0] for text in texts(first)][:-1] == counted(1, 101)
    assert first.messages[-1][1] is late
    assert first.messages[-2][1]["more_body"] is False
    assert first.overlaps == 0


async def test_a_slow_client_of_an_ended_stream_rotates_without_a_warning_of_a_cap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rotate: dict[str, Any] = {"stream_max_seconds": 10, "cap_action": "rotate"}
    kept = resumable(large, send_timeout=None, **rotate)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        async with returning(kept, id_of(first, 2)) as reader:
            first.block()
            await reader.until_end()
        assert first.task is not None
        await first.task
    assert "has reached its cap" not in caplog.text


# SSE_SEND_TIMEOUT


async def gone_by(exchange: Exchange) -> float:
    """Return the time from the next write of an app to its disconnect."""
    assert exchange.task is not None
    began = asyncio.get_running_loop().time()
    await asyncio.gather(exchange.task, return_exceptions=True)
    return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
@pytest.mark.parametrize("heartbeat_interval", [None, 5.0, 300.0])
@pytest.mark.parametrize("app", [bare, Counting(30)], ids=["bare", "starlette"])
async def test_a_client_that_blocks_a_write_for_long_counts_as_gone(
    app: Any, headers: Any, heartbeat_interval: float | None
) -> None:
    registry = CollectorRegistry()
    kept = resumable(
        app,
        registry=registry,
        heartbeat_interval=heartbeat_interval,
        linger_seconds=0,
        send_timeout=7,
        **UNCAPPED,
    )
    async with running(kept, Exchange(http_scope(headers=headers))) as exchange:
        await exchange.until_count(2, "message")
        exchange.block()
        assert 8 <= await gone_by(exchange) <= 9.1  # a second until it writes, and one to leave
        assert exchange.overlaps == 0
    assert value(registry, "sse_disconnects_total") == 1
    assert value(registry, "sse_streams_active") == 0


@pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
async def test_a_client_that_blocks_a_heartbeat_for_long_counts_as_gone(headers: Any) -> None:
    left: list[float] = []

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        while (await receive())["type"] != "http.disconnect":
            pass
        left.append(asyncio.get_running_loop().time())

    kept = resumable(silent, linger_seconds=0, send_timeout=7, **UNCAPPED)
    async with running(kept, Exchange(http_scope(headers=headers))) as exchange:
        await exchange.until_count(1, "message")
        exchange.block()
        assert 11.5 <= await gone_by(exchange) <= 13.5  # the heartbeat comes at 5 s
    assert len(left) == 1


async def test_a_client_that_blocks_for_long_can_resume_as_after_any_cut() -> None:
    kept = resumable(bare, send_timeout=7, linger_seconds=20, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(15)
        again = await resume(kept, id_of(first, 2))
        assert texts(again) == counted(3, 30)
        first.unblock()
        assert texts(first) == counted(1, 2)


async def test_without_a_time_out_a_client_may_block_for_ever() -> None:
    kept = resumable(bare, send_timeout=None, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(10_000)
        first.unblock()
        await first.until_end()
        assert texts(first) == counted(1, 30)


async def test_a_reader_that_blocks_for_long_times_out() -> None:
    kept = resumable(bare, send_timeout=7, **UNCAPPED)
    async with opened(kept) as first:
        await first.until_count(2, "message")
        async with returning(kept, id_of(first, 1)) as again:
            await again.until("message")
            again.block()
            assert again.task is not None
            await again.task
            assert not again.ended
        await first.until_end()
        assert texts(first) == counted(1, 30)
