"""Nothing is left of thousands of short streams, with clients that leave and may reconnect."""

import asyncio
import random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware, current_stream
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stores.memory_log import MemoryLog
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.follower import Follower
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.responder import Responder
from sse_middleware.stream.timers import current_timers
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_start,
)
from tests.support.middleware import marking
from tests.support.resuming import back, living, stop, texts, value
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio

OURS = (Producer, Follower, Connection, Responder, StreamRecord, MemoryLog)
EVENTS = 6
TTL = 2.0
WAYS = ["reads", "leaves", "refuses", "returns", "vanishes", "cancelled", "ends", "numbers"]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Count, with a pause after each number, and listen for a disconnect."""
    await receive()
    left = asyncio.ensure_future(receive())
    try:
        current_stream().name(scope["path"])
        await send(stream_start())
        for number in range(1, EVENTS + 1):
            line = b"id: %d\n" % number if scope["path"].endswith("numbers") else b""
            await send(body(b"%bdata: %d\n\n" % (line, number)))
            await asyncio.wait([left], timeout=0.1)
            if left.done():
                return
        await send(body(b"", more=False))
    finally:
        left.cancel()
        await asyncio.wait([left])


async def one(kept: SSEMiddleware, way: str, dice: random.Random) -> list[str]:
    """Act as one client and return the whole events that it has read."""
    first = Exchange(http_scope(path=f"/{way}", headers=EVENTSOURCE))
    async with running(kept, first):
        assert first.task is not None
        await first.until_count(dice.randint(1, EVENTS - 1), "message")
        held = first.last_event_id
        if way in ("leaves", "returns", "numbers"):
            first.disconnect()
        elif way == "refuses":
            first.refusal = OSError("gone")
        elif way == "cancelled":
            first.task.cancel()
        elif way == "ends":
            await stop(kept, held, path=f"/{way}")
        seen = texts(first)
        if way == "returns":
            await asyncio.sleep(dice.random() / 3)
            again = await handle(kept, path=f"/{way}", headers=back(held))
            seen = texts(again) if again.names[0] == "reset" else seen + texts(again)
        elif way == "vanishes":
            reader = Exchange(http_scope(path=f"/{way}", headers=back(held)))
            async with running(kept, reader):
                await reader.until("start")
        await asyncio.wait([first.task])
    return texts(first) if way == "reads" else seen


async def live(kept: SSEMiddleware, count: int, seed: int) -> None:
    """Run `count` clients, many at once, and check the events of each."""
    dice = random.Random(seed)
    for begin in range(0, count, 200):
        ways = [WAYS[number % len(WAYS)] for number in range(begin, min(count, begin + 200))]
        lives = await asyncio.gather(*(one(kept, way, dice) for way in ways))
        for way, seen in zip(ways, lives, strict=True):
            whole = [str(number) for number in range(1, EVENTS + 1)]
            assert seen == (whole if way in ("reads", "returns") else whole[: len(seen)]), way


def timers(loop: Any) -> set[asyncio.TimerHandle]:
    """Return the timers of `loop` that will fire."""
    return {timer for timer in loop._scheduled if not timer.cancelled()}


async def leave_nothing(count: int, **options: Any) -> None:
    others = living(*OURS)  # objects of earlier tests, kept in the tracebacks of failures
    before = asyncio.all_tasks()
    loop: Any = asyncio.get_running_loop()
    timers_before = timers(loop)
    registry = CollectorRegistry()
    store = MemoryStore(ttl=TTL, clock=loop.time)
    kept = marking(app, store=store, registry=registry, **options)
    await live(kept, count, seed=count)
    assert len(store) > 0
    await asyncio.sleep(max(TTL, options["linger_seconds"]) + 1.5)
    assert asyncio.all_tasks() == before
    assert (len(store), store.total_bytes, store._names, store._claims) == (0, 0, {}, {})
    assert len(kept._context.linger_queue) == 0
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0
    shared = current_timers()
    assert (shared._buckets, shared._tick_targets, list(shared._due)) == ({}, [], [])
    assert len(timers(loop) - timers_before) <= 1  # loop timers that belong to no stream
    await asyncio.sleep(60)
    assert timers(loop) - timers_before == set()
    known = {id(thing) for thing in others}
    assert [thing for thing in living(*OURS) if id(thing) not in known] == []
    ended = sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "sse_streams_total"
    )
    resets = value(registry, "sse_resumes_total", route="unmatched", result="gone")
    assert ended == count + resets
    assert resets == 0 or options != {"linger_seconds": 3.0}


@pytest.mark.parametrize("linger", [0.25, 3.0])
async def test_a_thousand_streams_and_their_clients_leave_nothing(linger: float) -> None:
    await leave_nothing(sampled(1_000), linger_seconds=linger)


async def test_streams_that_replace_one_another_leave_nothing() -> None:
    await leave_nothing(sampled(400), linger_seconds=3.0, max_lingering=5)


async def test_streams_that_may_not_linger_leave_nothing() -> None:
    await leave_nothing(sampled(400), linger_seconds=0)


@pytest.mark.slow
async def test_ten_thousand_streams_and_their_clients_leave_nothing() -> None:
    await leave_nothing(10_000, linger_seconds=0.25)
