"""The cap: a stream ends at its maximum duration, and its app is disconnected, then cancelled."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_of,
    stream_start,
)
from tests.support.clock import VirtualClockLoop
from tests.support.middleware import data_of, eventsource, marking, plain

pytestmark = pytest.mark.anyio

COMPLETE: dict[str, Any] = {"cap_action": "complete", "stream_max_seconds": 3}
"""The cap ends the stream. By default it ends only the connection: see `test_rotate`."""


class Tracker:
    """Record when and how an app was left."""

    def __init__(self) -> None:
        self.left_at: float | None = None
        self.left_by: str | None = None

    def leave(self, how: str) -> None:
        self.left_at = asyncio.get_running_loop().time()
        self.left_by = how


async def silent(tracker: Tracker, send: Send) -> None:
    try:
        await send(stream_start())
        await asyncio.sleep(3600)
    finally:
        tracker.leave("finally")


async def flooding(tracker: Tracker, send: Send) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    try:
        await send(stream_start())
        while True:
            await send(body(b"data: x\n\n"))
            loop.pass_time(0.01)
    finally:
        tracker.leave("finally")


@pytest.mark.parametrize("behave", [silent, flooding])
async def test_the_cap_ends_a_stream_and_the_app_that_does_not_listen(behave: Any) -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await behave(tracker, send)

    exchange = await eventsource(app, heartbeat_interval=None, **COMPLETE)
    opened = exchange.messages[0][0]
    assert exchange.names[-1] == "complete"
    assert data_of(exchange, "complete")["reason"] == "duration_cap"
    assert exchange.messages[-1][0] - opened == pytest.approx(3, abs=0.05)
    assert exchange.ended
    assert tracker.left_at is not None
    assert tracker.left_at - opened == pytest.approx(4, abs=0.05)
    assert str(exchange.events[-1].id).endswith(".cut")


async def test_a_flooding_app_cannot_keep_heartbeats_away() -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await flooding(tracker, send)

    exchange = await eventsource(app, heartbeat_interval=1, **COMPLETE)
    assert exchange.names.count("heartbeat") == 2


async def test_the_cap_holds_for_a_client_that_reads_nothing() -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(stream_start())
            while True:
                await send(body(b"data: x\n\n"))
                await asyncio.sleep(0.01)
        finally:
            tracker.leave("finally")

    wrapped = marking(app, **COMPLETE)
    async with running(wrapped, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        opened = exchange.messages[0][0]
        assert exchange.task is not None
        await exchange.task
        assert asyncio.get_running_loop().time() - opened == pytest.approx(9, abs=0.05)
        assert tracker.left_at is not None
        assert tracker.left_at - opened == pytest.approx(4, abs=0.05)
        assert not exchange.ended


async def test_the_cap_holds_for_a_final_write_that_is_blocked() -> None:
    app = marking(stream_of(b"data: x\n\n", pause=1), **COMPLETE)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        assert exchange.task is not None
        await exchange.task
        assert not exchange.ended


async def test_a_client_that_reads_on_within_the_grace_still_gets_its_end() -> None:
    app = marking(stream_of(*[b"data: x\n\n"] * 50, pause=0.1), **COMPLETE)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        await asyncio.sleep(7.4)
        exchange.unblock()
        assert exchange.task is not None
        await exchange.task
        assert data_of(exchange, "complete")["reason"] == "duration_cap"
        assert exchange.ended


async def test_an_app_that_listens_receives_the_cap_as_a_disconnect_and_is_not_cancelled() -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await receive()
        assert await receive() == {"type": "http.disconnect"}
        tracker.leave("disconnect")
        await asyncio.sleep(30)
        assert await receive() == {"type": "http.disconnect"}
        tracker.leave("background")

    exchange = await eventsource(app, **COMPLETE)
    assert exchange.names[-1] == "complete"
    assert tracker.left_by == "background"


async def test_an_app_that_receives_the_cap_and_continues_to_write_is_cancelled() -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await receive()
        await receive()
        try:
            while True:
                await send(body(b"data: late\n\n"))
                await asyncio.sleep(0.3)
        finally:
            tracker.leave("finally")

    exchange = await eventsource(app, **COMPLETE)
    assert exchange.names[-1] == "complete"
    assert b"late" not in exchange.body
    assert tracker.left_at is not None
    assert tracker.left_at - exchange.messages[0][0] == pytest.approx(4, abs=0.4)


async def test_an_app_that_is_slow_to_clean_up_is_not_cancelled_again() -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(stream_start())
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(10)
            tracker.leave("clean")

    await eventsource(app, **COMPLETE)
    assert tracker.left_by == "clean"


async def test_our_cancellation_never_leaks_out_of_the_middleware() -> None:
    async def swallowing(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    task = asyncio.current_task()
    assert task is not None
    await eventsource(swallowing, stream_max_seconds=1, cap_action="complete")
    assert task.cancelling() == 0
    await asyncio.sleep(1)


async def test_a_cancellation_from_outside_is_never_taken_for_ours() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(5)

    wrapped = marking(app, stream_max_seconds=1, cap_action="complete")
    async with running(wrapped, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        assert exchange.task is not None
        await asyncio.sleep(3)
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task


async def test_an_unset_cap_leaves_plain_streams_alone() -> None:
    exchange = await plain(stream_of(b"data: x\n\n", pause=100), heartbeat_interval=None)
    assert exchange.body == b"data: x\n\n"
    assert exchange.headers[b"x-stream-max-seconds"] == b"off"


async def test_a_set_cap_ends_a_plain_stream_uncleanly() -> None:
    exchange = await plain(stream_of(b"data: x\n\n", pause=2), **COMPLETE)
    assert exchange.body == b"data: x\n\n"
    assert not exchange.ended


async def test_the_last_bytes_of_a_failed_stream_set_no_cap() -> None:
    """They show its dialect, which has a cap, while the stream ends."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(59.5)
        await send(body(b": hello\n\n"))
        exchange.block()
        await send(body(b'data: {"object":"chat.completion.chunk"}\n\n'))
        raise ValueError

    exchange = Exchange(http_scope())
    with pytest.raises(ValueError):
        await marking(app)(exchange.scope, exchange.receive, exchange.send)
    assert reported == []


async def test_the_first_cap_on_each_route_is_a_warning_that_names_the_variable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def events() -> Any:
        while True:
            yield b"data: x\n\n"
            await asyncio.sleep(0.5)

    async def one(request: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    async def other(request: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    routes = [Route("/a/{id}", one), Route("/b", other)]
    app = marking(Starlette(routes=routes), stream_max_seconds=1, cap_action="complete")
    for path in ("/a/1", "/a/2", "/b"):
        await handle(app, path=path, headers=EVENTSOURCE)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "/a/{id}" in warnings[0]
    assert all("SSE_STREAM_MAX_SECONDS" in warning for warning in warnings)
