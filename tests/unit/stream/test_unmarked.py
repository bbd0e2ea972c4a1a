"""Unmarked streams: what the server gets and what the app gets is the same as without us."""

import asyncio
import inspect
import logging
import math
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware, drain, streaming
from sse_middleware._once import OncePerProcess
from sse_middleware.stream import unmarked
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
from tests.support.middleware import marking
from tests.support.observed_runs import CHUNKS, EVENTS, STARTS, STEPS, Run, is_same
from tests.support.resuming import Deaf, Listening, value
from tests.support.samples import sampled

if TYPE_CHECKING:
    from collections.abc import Coroutine

pytestmark = pytest.mark.anyio


def unmarking(app: ASGIApp, **options: Any) -> SSEMiddleware:
    return SSEMiddleware(app, **{"registry": CollectorRegistry(), **options})


def ended(registry: CollectorRegistry, outcome: str, family: str = "unmarked") -> float:
    labels = {"route": "unmatched", "family": family, "outcome": outcome}
    return value(registry, "sse_streams_total", **labels)


@pytest.mark.parametrize("headers", [EVENTSOURCE, [], [(b"accept", b"text/event-stream")]], ids=len)
async def test_an_unmarked_stream_gets_four_headers_and_nothing_else(headers: Any) -> None:
    exchange = await handle(unmarking(stream_of(*CHUNKS, pause=60)), headers=headers)
    assert exchange.body == b"".join(CHUNKS)
    assert [message["body"] for _, message in exchange.messages[1:]] == [*CHUNKS, b""]
    names = [name for name, _ in exchange.start["headers"]]
    added = [b"x-trace-id", b"x-stream-id", b"x-accel-buffering", b"cache-control"]
    assert names == [b"content-type", *added]
    assert exchange.headers[b"cache-control"] == b"no-cache"


async def test_the_headers_of_the_app_stay_as_they_are() -> None:
    own = [(b"X-Trace-Id", b"1"), (b"Cache-Control", b"private"), (b"Content-Length", b"9")]
    exchange = await handle(unmarking(stream_of(b"data: 1\n\n", headers=own)))
    start = exchange.start["headers"]
    assert start[:4] == [(b"content-type", b"text/event-stream"), *own]
    assert [name for name, _ in start[4:]] == [b"x-stream-id", b"x-accel-buffering"]


async def test_a_start_with_all_headers_of_ours_passes_as_the_same_object() -> None:
    names = (b"x-trace-id", b"x-stream-id", b"x-accel-buffering", b"cache-control")
    start = stream_start([(name, b"app") for name in names])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send(body(b"", more=False))

    assert (await handle(unmarking(app))).messages[0][1] is start


async def test_a_stream_is_counted_with_its_outcome_bytes_and_chunks() -> None:
    registry = CollectorRegistry()
    app = unmarking(stream_of(b"data: 1\n\n", b"", b"x", pause=1), registry=registry)
    await handle(app)
    labels = {"route": "unmatched", "family": "unmarked"}
    assert ended(registry, "finished") == 1
    assert value(registry, "sse_events_total", **labels) == 2
    assert value(registry, "sse_sent_bytes_total") == 10
    assert value(registry, "sse_streams_active") == 0
    assert value(registry, "sse_event_gap_seconds_count", **labels) == 0
    name = "sse_time_to_first_event_seconds_sum"
    assert value(registry, name, **labels) == pytest.approx(1)


async def test_an_exception_of_the_app_is_an_error_and_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        raise ValueError

    registry = CollectorRegistry()
    with pytest.raises(ValueError):
        await handle(unmarking(app, registry=registry))
    assert ended(registry, "error") == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("after", [0, 2])
async def test_an_exception_of_the_server_is_a_disconnect_and_reaches_the_app(after: int) -> None:
    caught: list[Exception] = []
    refusal = OSError("gone")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(3):
            if number == after:
                exchange.refusal = refusal
            try:
                await send(body(b"data: 1\n\n"))
            except OSError as exc:
                caught.append(exc)
                return

    registry, exchange = CollectorRegistry(), Exchange(http_scope())
    await unmarking(app, registry=registry)(exchange.scope, exchange.receive, exchange.send)
    assert caught == [refusal]
    assert ended(registry, "disconnected") == 1


async def test_a_disconnect_and_a_cancelled_task_are_outcomes() -> None:
    registry = CollectorRegistry()
    async with running(
        unmarking(Listening(), registry=registry), Exchange(http_scope())
    ) as exchange:
        await exchange.until_count(1)
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    assert ended(registry, "disconnected") == 1
    async with running(unmarking(Deaf(), registry=registry), Exchange(http_scope())) as exchange:
        await exchange.until_count(1)
    assert ended(registry, "aborted") == 1


@pytest.mark.parametrize("app", [Listening(), Deaf()], ids=["listening", "deaf"])
async def test_a_drain_ends_an_unmarked_stream_only_if_its_time_is_set(app: Any) -> None:
    registry = CollectorRegistry()
    async with running(
        unmarking(app, drain_seconds=2, registry=registry), Exchange(http_scope())
    ) as exchange:
        await exchange.until_count(1)
        await drain()
        assert exchange.task is not None
        await exchange.task
    assert not exchange.ended
    assert ended(registry, "shutdown") == 1
    assert app.ends[0][1] in ("left", "CancelledError")


async def test_a_drain_leaves_an_unmarked_stream_alone_by_default() -> None:
    app = unmarking(stream_of(*[b"data: 1\n\n"] * 30, pause=1))
    async with running(app, Exchange(http_scope())) as exchange:
        await exchange.until_count(1)
        await drain()
        await exchange.until_end()
    assert exchange.names == ["message"] * 30
    assert (await handle(app, headers=[(b"accept", b"text/event-stream")])).status == 200


async def test_limits_count_unmarked_streams_and_reject_the_next_one() -> None:
    app = unmarking(Deaf(), max_streams=1)
    accept = [(b"accept", b"text/event-stream")]
    async with running(app, Exchange(http_scope(headers=accept))) as first:
        await first.until_count(1)
        assert (await handle(app, headers=accept)).status == 503
        assert (await handle(app, headers=EVENTSOURCE)).status == 503


async def test_an_evicted_stream_is_disconnected_without_an_end() -> None:
    registry = CollectorRegistry()
    app = unmarking(
        Listening(), max_streams_per_client=1, limit_action="evict_oldest", registry=registry
    )
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as first:
        await first.until_count(1)
        async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as second:
            await second.until_count(1)
            assert first.task is not None
            await first.task
    assert not first.ended
    assert first.names == ["message"]
    assert ended(registry, "evicted") == 1


async def test_a_client_outside_the_rollout_gets_the_same_start() -> None:
    start = stream_start()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send(body(b"", more=False))

    registry = CollectorRegistry()
    for options in ({}, {"mark": "*"}):
        exchange = await handle(
            unmarking(app, rollout_percent=0, registry=registry, **options), headers=EVENTSOURCE
        )
        assert exchange.messages[0][1] is start
    assert ended(registry, "finished", "off") == 2


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("make", [unmarking, marking])
@pytest.mark.parametrize("header", [(b"content-encoding", b"gzip"), (b"content-length", b"9")])
async def test_a_header_that_prevents_streaming_is_one_warning_per_route(
    header: tuple[bytes, bytes], make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(stream_of(b"data: 1\n\n", headers=[header]))
    for _ in range(3):
        exchange = await handle(app)
        assert exchange.body == b"data: 1\n\n"
    warned = make is unmarking or header[0] == b"content-encoding"
    assert len(warnings_in(caplog)) == int(warned)
    assert (b"x-stream-id" in exchange.headers) is (header[0] == b"content-length")


async def test_the_first_unmarked_stream_of_a_process_is_logged_with_the_ways_to_mark_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmarked, "_hinted_routes", OncePerProcess(list))
    caplog.set_level(logging.INFO, "sse_middleware")
    app = unmarking(stream_of(b"data: 1\n\n"), marks={"/marked": streaming()})
    for path in ("/marked", "/", "/"):
        await handle(app, path=path)
    (hint,) = [record.getMessage() for record in caplog.records if "not marked" in record.message]
    for way in ("@streaming", "SSEMiddleware(mark=", "SSE_MARK="):
        assert way in hint


@pytest.mark.parametrize("make", [unmarking, marking])
@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
async def test_send_and_receive_are_coroutine_functions_that_act_when_awaited(
    kind: bytes, make: Any
) -> None:
    found: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.extend(map(inspect.iscoroutinefunction, (send, receive)))
        receive().close()  # type: ignore[attr-defined]  # never awaited
        start = {**stream_start(), "headers": [(b"content-type", kind)]}
        pending = [send(start), send(body(b"data: 1\n\n")), send(body(b"", more=False))]
        found.append(not exchange.messages and not exchange.receives)
        loop = asyncio.get_running_loop()
        for message in pending:  # as adapters do: called in a thread, run in a task of the loop
            coroutine = cast("Coroutine[Any, Any, None]", message)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))

    exchange = Exchange(http_scope())
    await make(app)(exchange.scope, exchange.receive, exchange.send)
    assert found == [True, True, True]
    assert exchange.body == b"data: 1\n\n"


# Any app: with and without the middleware, both ends observe the same.


def observed(script: list[Any], event: str, at: float, *, wrapped: bool) -> Run:
    async def run() -> Run:
        found = Run(script, event, at)
        await found.observe(unmarking(found.app) if wrapped else found.app)
        return found

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(run())


@settings(max_examples=sampled(250))
@given(
    start=STARTS,
    before=st.lists(STEPS, max_size=2),
    after=st.lists(STEPS, max_size=8),
    event=EVENTS,
    at=st.sampled_from([0.0, 0.05, 0.3, 0.6, 1.1]),
)
def test_any_app_and_its_server_observe_the_same_as_without_the_middleware(
    start: Message, before: list[Any], after: list[Any], event: str, at: float
) -> None:
    script = [*before, start, *after]
    bare = observed(script, event, at, wrapped=False)
    ours = observed(script, event, at, wrapped=True)
    assert ours.seen == bare.seen
    assert len(ours.objects) == len(bare.objects)
    by_script = [id(step) for step in script]
    for mine, theirs in zip(ours.objects, bare.objects, strict=True):
        if id(theirs) in by_script:
            assert is_same(mine, theirs)
        else:  # of a task, which makes a new message in each run
            assert mine == theirs


async def test_a_client_that_accepts_no_comment_gets_none() -> None:
    chunks = [b'data: {"msg": "estimation"}\n\n', b'data: {"msg": "process_completed"}\n\n']
    exchange = await handle(unmarking(stream_of(*chunks, pause=120)), headers=[(b"accept", b"*/*")])
    assert exchange.body == b"".join(chunks)
    assert not math.isclose(exchange.messages[-1][0], 0)


async def test_raw_words_and_single_lines_pass_at_once() -> None:
    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    words = [b"to", b" be", b" or", b" not\n", b"to be\n"]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for word in words:
            message = body(word)
            await send(message)
            assert exchange.messages[-1][1] is message

    await unmarking(app)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.body == b"".join(words)
