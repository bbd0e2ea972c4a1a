"""The app of a client that has left and cannot return: it is disconnected, and then cancelled."""

import asyncio
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sse_middleware.stream.current import current_in
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.clock import VirtualClockLoop
from tests.support.resuming import Counting, Deaf, Listening, now, opened, resumable, value

pytestmark = pytest.mark.anyio

ACTIONS = pytest.mark.parametrize("action", ["complete", "rotate"])


def unkept(app: Any, **options: Any) -> Any:
    """Return an app whose streams have a cap of 8 seconds and cannot be resumed."""
    return resumable(app, **{"stream_max_seconds": 8, "linger_seconds": 0, **options})


LISTENS_AFTER = 5
"""The seconds until the middleware listens, if the app does not: the time of a heartbeat."""


@ACTIONS
async def test_an_app_that_does_not_notice_it_is_cancelled_a_second_later(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    deaf, registry = Deaf(), CollectorRegistry()
    app = unkept(deaf, cap_action=action, registry=registry)
    with caplog.at_level(logging.WARNING, "sse_middleware"):
        async with opened(app) as first:
            began = now()
            await first.until_count(2, "message")
            first.disconnect()
            await asyncio.sleep(LISTENS_AFTER)
            assert value(registry, "sse_streams_active") == 0
            assert first.task is not None
            await first.task
    ((ended, how),) = deaf.ends
    assert how == "CancelledError"
    assert ended == pytest.approx(began + LISTENS_AFTER + 1, abs=0.1)
    assert value(registry, "sse_disconnects_total") == 1
    assert not [record for record in caplog.records if "cap" in record.getMessage()]


async def test_an_app_that_floods_is_cancelled_too() -> None:
    ends: list[float] = []

    async def flooding(_: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        await send(stream_start())
        try:
            while True:
                await send(body(b"data: x\n\n"))
                loop.pass_time(0.01)
                if len(exchange.messages) > 10:
                    exchange.disconnect()
                    await asyncio.sleep(0 if now() > began + 2 else 0.01)
        finally:
            ends.append(now())

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    began = now()
    async with running(unkept(flooding), exchange):
        assert exchange.task is not None
        await exchange.task
    assert ends == [pytest.approx(began + LISTENS_AFTER + 1, abs=0.1)]


async def test_an_app_that_waits_in_its_write_is_cancelled_too() -> None:
    deaf = Deaf()
    async with opened(unkept(deaf)) as first:
        began = now()
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(2)  # a write is blocked, and the server does not end it
        first.disconnect()
        assert first.task is not None
        await first.task
    ((ended, how),) = deaf.ends
    assert how == "CancelledError"
    assert ended == pytest.approx(began + LISTENS_AFTER + 1, abs=0.1)


async def test_without_a_cap_it_is_cancelled_too() -> None:
    deaf = Deaf(100)
    async with opened(unkept(deaf, stream_max_seconds=None)) as first:
        await first.until_count(2, "message")
        first.disconnect()
        assert first.task is not None
        await first.task
    assert [how for _, how in deaf.ends] == ["CancelledError"]


async def test_an_app_that_has_ended_its_response_is_not_cancelled() -> None:
    ends: list[str] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(3)
        await send(body(b"", more=False))
        await asyncio.sleep(20)
        ends.append("saved")

    async with opened(unkept(app)) as first:
        await first.until("message")
        first.disconnect()
        assert first.task is not None
        await first.task
    assert ends == ["saved"]


async def test_an_app_that_has_received_the_disconnect_may_continue_after_the_cap() -> None:
    saved: list[float] = []

    async def save() -> None:
        await asyncio.sleep(20)
        saved.append(now())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        response = StreamingResponse(
            Counting(100)._events(),
            media_type="text/event-stream",
            background=BackgroundTask(save),
        )
        await response(scope, receive, send)

    async with opened(unkept(app)) as first:
        await first.until_count(2, "message")
        first.disconnect()
        left = now()
        assert first.task is not None
        await first.task
    assert saved == [pytest.approx(left + 20, abs=0.1)]


async def test_an_app_that_has_received_the_disconnect_and_still_writes_is_cancelled() -> None:
    listening = Listening(leaves=False)
    async with opened(unkept(listening)) as first:
        began = now()
        await first.until_count(2, "message")
        first.disconnect()
        assert first.task is not None
        await first.task
    ((ended, how),) = listening.ends
    assert how == "cancelled"
    assert began + 9 <= ended <= began + 11


async def test_a_body_that_is_no_event_stream_has_no_cap() -> None:
    ends: list[str] = []

    async def raw(_: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"word"))
        await asyncio.sleep(30)
        ends.append("finished")

    async with opened(unkept(raw)) as first:
        await asyncio.sleep(1)
        first.disconnect()
        assert first.task is not None
        await first.task
    assert ends == ["finished"]


@pytest.mark.parametrize("way", ["drain", "evict"])
async def test_an_app_that_is_stopped_before_the_cap_is_stopped_once(way: str) -> None:
    ends: list[float] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(10)  # over the time of the cap
            ends.append(now())

    kept = unkept(app)
    async with opened(kept) as first:
        await first.until("message")
        first.disconnect()
        await asyncio.sleep(1)
        stream: Any = current_in(first.scope["sse_middleware"])._stream
        control = stream.control
        (control.on_drain_over if way == "drain" else control.evict)()
        stopped = now()
        assert first.task is not None
        await first.task
    assert ends == [pytest.approx(stopped + 11, abs=0.1)]
