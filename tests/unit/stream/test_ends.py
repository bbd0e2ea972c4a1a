"""Exceptions, disconnects and cancellations at every await."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.stream.app_writer import AppWriter
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.current import CurrentStream
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.responder import Responder
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
from tests.support.middleware import data_of, eventsource, marking

pytestmark = pytest.mark.anyio


# Errors


async def test_an_exception_is_sent_without_its_text_and_reraised() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\ndata: half"))
        raise ValueError("the password is swordfish")

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    with pytest.raises(ValueError, match="swordfish"):
        await marking(app)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.names == ["start", "message", "error"]
    assert b"swordfish" not in exchange.body
    data = data_of(exchange, "error")
    assert set(data) == {"error", "trace_id", "stream_id"}
    assert set(data["error"]) == {"type", "code", "message"}
    assert exchange.ended


async def test_a_plain_stream_that_fails_ends_as_without_us() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        raise ValueError

    exchange = Exchange(http_scope())
    with pytest.raises(ValueError):
        await marking(app)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.body == b"data: 1\n\n"
    assert not exchange.ended


async def test_an_exception_before_or_after_the_stream_adds_nothing() -> None:
    async def before(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    async def after(scope: Scope, receive: Receive, send: Send) -> None:
        await stream_of(b"data: 1\n\n")(scope, receive, send)
        raise ValueError

    for app, names in ((before, []), (after, ["start", "message", "complete"])):
        exchange = Exchange(http_scope(headers=EVENTSOURCE))
        with pytest.raises(ValueError):
            await marking(app)(exchange.scope, exchange.receive, exchange.send)
        assert exchange.names == names


async def test_an_app_that_returns_without_an_end_leaves_it_to_the_server() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))

    exchange = await eventsource(app)
    assert exchange.names == ["start", "message"]
    assert not exchange.ended


async def test_an_oserror_of_the_server_reaches_the_app_unchanged() -> None:
    refusal = ConnectionResetError("gone")
    caught: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(0)
        exchange.refusal = refusal
        try:
            await send(body(b"data: 1\n\n"))
        except OSError as exc:
            caught.append(exc)
            raise

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    with pytest.raises(ConnectionResetError):
        await marking(app, linger_seconds=0)(exchange.scope, exchange.receive, exchange.send)
    assert caught == [refusal]


async def test_an_error_of_a_heartbeats_write_shows_at_the_apps_next_write() -> None:
    refusal = ConnectionResetError("gone")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        exchange.refusal = refusal
        await asyncio.sleep(6)
        exchange.refusal = None
        await send(body(b"data: 1\n\n"))

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    with pytest.raises(ConnectionResetError) as raised:
        await marking(app, linger_seconds=0)(exchange.scope, exchange.receive, exchange.send)
    assert raised.value is refusal


# Disconnects


def starlette_app(
    events: Any, *, log: list[str], background: bool = False, **options: Any
) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        async def rest() -> None:
            await asyncio.sleep(5)
            log.append("background")

        return StreamingResponse(
            events(),
            media_type="text/event-stream",
            background=BackgroundTask(rest) if background else None,
        )

    return marking(Starlette(routes=[Route("/", endpoint)]), **options)


@pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
async def test_a_disconnect_reaches_the_app_and_its_background_task_runs(
    headers: list[tuple[bytes, bytes]],
) -> None:
    log: list[str] = []

    async def events() -> Any:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(1)
        finally:
            log.append("finally")

    app = starlette_app(events, log=log, background=True)
    async with running(app, Exchange(http_scope(headers=headers))) as exchange:
        await exchange.until("message")
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    assert log == ["finally", "background"]


async def test_a_background_task_runs_after_the_cap_as_after_a_disconnect() -> None:
    log: list[str] = []

    async def events() -> Any:
        try:
            yield b"data: x\n\n"
            await asyncio.sleep(3600)
        finally:
            log.append("finally")

    capped: dict[str, Any] = {"stream_max_seconds": 2, "cap_action": "complete"}
    app = starlette_app(events, log=log, background=True, **capped)
    exchange = await handle(app, headers=EVENTSOURCE)
    assert data_of(exchange, "complete")["reason"] == "duration_cap"
    assert log == ["finally", "background"]


async def test_an_app_that_polls_sees_its_client_and_then_the_disconnect() -> None:
    answers: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await send(stream_start())
        while not answers or not answers[-1]:
            answers.append(await request.is_disconnected())
            await send(body(b"data: x\n\n"))
            await asyncio.sleep(1)

    wrapped = marking(app, stream_max_seconds=None, linger_seconds=0)
    async with running(wrapped, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await asyncio.sleep(4.5)
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    assert answers == [False] * 5 + [True]


async def test_the_app_sees_the_servers_asgi_version() -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["asgi"])

    scope = http_scope()
    before = dict(scope["asgi"])
    exchange = Exchange(scope)
    await marking(app)(scope, exchange.receive, exchange.send)
    assert seen == [before]


# Every await, cancelled


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancellation_at_any_await_leaves_no_task_and_no_timer(turns: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await receive()
        await send(body(b"data: 2\n\n", more=False))

    before = asyncio.all_tasks()
    wrapped = marking(app, heartbeat_interval=0.05, stream_max_seconds=5)
    async with running(wrapped, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        if turns % 2:
            exchange.block()
        for _ in range(turns):
            await asyncio.sleep(0.02)
        assert exchange.task is not None
        exchange.task.cancel()
        await asyncio.gather(exchange.task, return_exceptions=True)
        written = len(exchange.messages)
        await asyncio.sleep(10)
        assert len(exchange.messages) == written
    assert asyncio.all_tasks() == before


async def test_two_thousand_streams_leave_nothing_if_half_of_them_are_cut() -> None:
    def app() -> ASGIApp:
        return stream_of(*[b"data: x\n\n"] * 3, b"data: half", pause=0.01)

    wrapped = marking(app(), heartbeat_interval=0.05, replay_ttl=0)

    async def one(number: int) -> None:
        exchange = Exchange(http_scope(headers=EVENTSOURCE if number % 3 else []))
        async with running(wrapped, exchange):
            assert exchange.task is not None
            await (asyncio.sleep(0.035) if number % 2 else exchange.task)

    for number in range(20):
        await one(number)
    gc.collect()
    objects, tasks = len(gc.get_objects()), asyncio.all_tasks()
    await asyncio.gather(*(one(number) for number in range(2000)))
    await asyncio.sleep(61)  # asyncio keeps a cancelled timer until its time
    gc.collect()
    assert asyncio.all_tasks() == tasks
    assert len(gc.get_objects()) - objects < 200


@pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
async def test_nothing_of_an_ended_stream_waits_for_the_garbage_collector(
    headers: list[tuple[bytes, bytes]],
) -> None:
    async def endpoint(_: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"data: x\n\n"
                await asyncio.sleep(1)

        return StreamingResponse(events(), media_type="text/event-stream")

    ours = (AppWriter, Connection, CurrentStream, Producer, Responder, StreamRecord)
    wrapped = marking(Starlette(routes=[Route("/", endpoint)]))
    gc.collect()
    gc.disable()
    try:
        before = {id(thing) for thing in gc.get_objects() if isinstance(thing, ours)}
        assert len((await handle(wrapped, headers=headers)).events) >= 3
        await asyncio.sleep(0)
        left = [thing for thing in gc.get_objects() if isinstance(thing, ours)]
        assert [thing for thing in left if id(thing) not in before] == []
    finally:
        gc.enable()
