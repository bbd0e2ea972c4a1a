"""A warning counts the answers that a drain has cut; a request to a path begins a drain."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse

from sse_middleware import SSEMiddleware
from sse_middleware.stream.drain import Drain
from sse_middleware.stream.shutdown import SHUTDOWN
from tests.support.asgi import Exchange, handle, http_scope, running
from tests.support.draining import assert_shut_down, deaf, draining, now
from tests.support.middleware import marking
from tests.support.resuming import Counting, id_of, opened, resumable, resume

pytestmark = pytest.mark.anyio

DRAIN = 5.0


# The warning


async def test_the_answers_that_are_cut_are_counted_in_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = resumable(Counting(1000), linger_seconds=60)
    async with opened(app) as one, opened(app) as other, opened(resumable(Counting(3))) as short:
        await other.until_count(1, "message")
        other.disconnect()  # its app lingers
        event_id = id_of(one, 1)
        follower = asyncio.ensure_future(resume(app, event_id))
        async with draining():
            await short.until_end()
            await one.until_end()
            await follower
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "cut before their end: 2" in warnings[0]
    assert "SSE_DRAIN_SECONDS" in warnings[0]


async def test_unmarked_answers_that_are_cut_are_counted_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = SSEMiddleware(deaf, drain_seconds=1, registry=CollectorRegistry())
    async with running(app, Exchange(http_scope())) as exchange, draining():
        assert exchange.task is not None
        await exchange.task
    assert "cut before their end: 1" in caplog.text


async def test_a_drain_that_cuts_nothing_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(resumable(Counting(3))) as exchange, draining():
        await exchange.until_end()
    assert "cut" not in caplog.text


# Many streams


async def test_the_loop_has_other_turns_while_many_streams_end() -> None:
    ended: list[int] = []

    class Stream:
        drain_seconds = 0.0

        def __init__(self, drain: Drain) -> None:
            self._drain = drain

        def on_drain(self) -> None: ...

        def on_drain_over(self) -> bool:
            ended.append(turn)
            self._drain.remove(self)
            return False

    drain = Drain(lambda: None)
    for _ in range(200):
        drain.add(Stream(drain))
    drain.begin()
    turn = 0
    while len(drain):
        await asyncio.sleep(0)
        turn += 1
    assert len(ended) == 200
    assert max(Counter(ended).values()) <= 64


# The path of the drain


async def test_a_get_of_the_drain_path_is_answered_when_all_streams_have_ended() -> None:
    app = resumable(Counting(1000), drain_path="/drain", ready_path="/ready")
    async with opened(app) as exchange:
        began = now()
        answer = await handle(app, path="/v1/drain", root_path="/v1")
        assert (answer.status, answer.body) == (200, b"drained\n")
        assert now() - began == pytest.approx(DRAIN, abs=0.1)
        await exchange.until_end()
        assert_shut_down(exchange)
    assert (await handle(app, path="/ready")).status == 503
    assert (await handle(app, path="/drain")).status == 200  # again: a hook may be repeated


@pytest.mark.parametrize(
    "request_of",
    [
        {"method": "POST"},
        {"method": "HEAD"},
        {"headers": [(b"x-forwarded-for", b"203.0.113.9")]},
        {"headers": [(b"X-Real-IP", b"203.0.113.9")]},
        {"headers": [(b"forwarded", b"for=203.0.113.9")]},
        {"headers": [(b"via", b"1.1 proxy")]},
    ],
    ids=str,
)
async def test_other_requests_for_the_drain_path_are_those_of_the_app(request_of: Any) -> None:
    app = marking(PlainTextResponse("of the app"), drain_path="/drain")
    exchange = await handle(app, path="/drain", **request_of)
    assert exchange.status == 200
    assert exchange.body in (b"of the app", b"")
    assert not SHUTDOWN.drain_for(asyncio.get_running_loop()).is_draining


async def test_without_the_setting_no_path_drains() -> None:
    await handle(marking(PlainTextResponse("of the app")), path="/drain")
    assert not SHUTDOWN.drain_for(asyncio.get_running_loop()).is_draining
