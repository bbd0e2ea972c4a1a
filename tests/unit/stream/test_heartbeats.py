"""Heartbeats: when they are due, where they may be, and which client gets which form."""

import asyncio
import json
import re

import pytest
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import current_stream
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
from tests.support.resuming import id_of, opened, resumable, returning

pytestmark = pytest.mark.anyio


async def test_an_eventsource_gets_a_heartbeat_every_interval_even_when_busy() -> None:
    exchange = await eventsource(
        stream_of(*[b"data: x\n\n"] * 10, pause=1), heartbeat_interval=2, stream_max_seconds=60
    )
    beats = [json.loads(e.data) for e in exchange.events if e.event == "heartbeat"]
    assert [beat["uptime_seconds"] for beat in beats] == [2, 4, 6, 8, 10]
    assert [beat["heartbeat_count"] for beat in beats] == [1, 2, 3, 4, 5]
    assert [beat["remaining_seconds"] for beat in beats] == [58, 56, 54, 52, 50]
    assert set(beats[0]) == {
        "stream_id",
        "timestamp",
        "uptime_seconds",
        "total_chunks",
        "total_tokens",
        "heartbeat_count",
        "remaining_seconds",
        "max_duration",
        "trace_id",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", beats[0]["timestamp"])


async def test_a_plain_client_gets_a_comment_only_when_idle() -> None:
    app = stream_of(*[b"data: x\n\n"] * 5, pause=4)
    assert b": heartbeat" not in (await plain(app, heartbeat_interval=5)).body
    idle = await plain(stream_of(b"data: x\n\n", pause=11), heartbeat_interval=5)
    assert idle.body == b": heartbeat\n\n" * 2 + b"data: x\n\n" + b": heartbeat\n\n" * 2


@pytest.mark.parametrize(
    ("style", "chunk", "comment"),
    [
        ("auto", b"data: x\n\n", b": heartbeat\n\n"),
        ("auto", b"id: 1\ndata: x\n\n", b": heartbeat\n"),
        ("auto", b"data: x\r\n\r\n", b": heartbeat\r\n\r\n"),
        ("line", b"data: x\n\n", b": heartbeat\n"),
        ("block", b"id: 1\ndata: x\n\n", b": heartbeat\n\n"),
        ("off", b"data: x\n\n", b""),
    ],
)
@pytest.mark.parametrize("accept", [b"*/*", b"text/event-stream", b"application/json"])
async def test_a_comment_has_a_blank_line_until_the_stream_has_an_id(
    accept: bytes, style: str, chunk: bytes, comment: bytes
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(chunk))
        await asyncio.sleep(6)
        await send(body(b"", more=False))

    exchange = await handle(marking(app, comment_style=style), headers=[(b"accept", accept)])
    assert exchange.body == chunk + comment


async def test_a_heartbeat_is_never_inside_an_event() -> None:
    exchange = await eventsource(stream_of(b"data: a\n", b"data: b\n\n", pause=6))
    assert exchange.names == ["start", "heartbeat", "heartbeat", "message", "heartbeat", "complete"]
    assert exchange.events[3].data == "a\nb"


async def test_a_crlf_cut_in_two_survives_a_heartbeat_in_between() -> None:
    exchange = await plain(stream_of(b"data: a\r\n\r", b"\ndata: b\r\n\r\n", pause=6))
    assert b"data: a\r\n\r\n: heartbeat\r\n\r\ndata: b\r\n\r\n" in exchange.body


async def test_heartbeats_can_be_switched_off() -> None:
    exchange = await eventsource(
        stream_of(b"data: x\n\n", pause=50), heartbeat_interval=None, stream_max_seconds=None
    )
    assert exchange.names == ["start", "message", "complete"]
    assert exchange.headers[b"x-heartbeat-interval"] == b"off"
    assert exchange.headers[b"x-stream-max-seconds"] == b"off"
    assert data_of(exchange, "start")["heartbeat_interval"] is None


async def test_no_heartbeat_is_written_or_saved_up_while_a_write_is_blocked() -> None:
    app = marking(stream_of(*[b"data: x\n\n"] * 3, pause=0.1), heartbeat_interval=1)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        await asyncio.sleep(30)
        exchange.unblock()
        await exchange.until("complete")
        assert exchange.names.count("heartbeat") == 0
        assert exchange.overlaps == 0


async def test_one_heartbeat_is_sent_after_a_blocked_loop() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        loop.pass_time(9.5)
        await asyncio.sleep(0.5)
        await send(body(b"", more=False))

    exchange = await eventsource(app, heartbeat_interval=1)
    assert exchange.names == ["start", "heartbeat", "complete"]


async def test_writes_of_several_tasks_never_overlap() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())

        async def write(word: bytes) -> None:
            for _ in range(20):
                await send(body(b"data: " + word + b"\n\n"))
                await asyncio.sleep(0.05)

        await asyncio.gather(write(b"a"), write(b"b"), write(b"c"))
        await send(body(b"", more=False))

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    sending = exchange.send

    async def slow(message: Message) -> None:
        await sending(message)
        exchange._writing = True
        await asyncio.sleep(0.01)
        exchange._writing = False

    await marking(app, heartbeat_interval=0.05)(exchange.scope, exchange.receive, slow)
    assert exchange.overlaps == 0
    assert exchange.names.count("message") == 60
    ids = [str(e.id) for e in exchange.events if e.event == "message"]
    assert [int(i.rpartition("-")[2]) for i in ids] == list(range(1, 61))


async def test_the_numbers_are_the_same_on_each_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        current_stream().add_tokens(3)
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(2.5)
        await send(body(b"data: 2\n\n"))
        current_stream().add_tokens(4)  # after the event that they belong to
        await asyncio.sleep(2)
        current_stream().add_tokens(5)
        await asyncio.sleep(2)
        await send(body(b"", more=False))

    target = resumable(app, heartbeat_interval=1)
    async with opened(target) as first:
        await first.until_count(1, "message")
        async with returning(target, id_of(first, 1)) as second:
            await first.until_end()
            await second.until_end()
    numbers = [
        [
            (beat["heartbeat_count"], beat["total_chunks"], beat["total_tokens"])
            for beat in (json.loads(e.data) for e in exchange.events if e.event == "heartbeat")
        ]
        for exchange in (first, second)
    ]
    assert [tokens for _, _, tokens in numbers[0]] == [3, 3, 7, 7, 12, 12]
    assert numbers[1] == numbers[0]
    for exchange in (first, second):
        assert json.loads(exchange.events[-1].data)["total_tokens"] == 12
