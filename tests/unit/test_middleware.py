"""What the middleware does to a request, on a virtual clock and without a server."""

import asyncio
import gc
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware, current_trace_id
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.stream_state import StreamState
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
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.anyio


async def eventsource(app: ASGIApp, **options: Any) -> Exchange:
    return await handle(SSEMiddleware(app, **options), headers=EVENTSOURCE)


async def plain(app: ASGIApp, **options: Any) -> Exchange:
    return await handle(SSEMiddleware(app, **options))


def data_of(exchange: Exchange, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads([e for e in exchange.events if e.event == name][-1].data)
    return found


# What is none of ours


@pytest.mark.parametrize(
    ("status", "headers", "method"),
    [
        (200, [(b"content-type", b"application/json")], "GET"),
        (200, [], "GET"),
        (201, [(b"content-type", b"text/event-stream")], "GET"),
        (204, [(b"content-type", b"text/event-stream")], "GET"),
        (500, [(b"content-type", b"text/event-stream")], "GET"),
        (200, [(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")], "GET"),
        (200, [(b"content-type", b"text/event-stream")], "HEAD"),
        (200, [(b"content-type", b"text/event-stream-not")], "GET"),
    ],
)
async def test_a_response_that_is_no_stream_passes_as_the_very_same_messages(
    status: int, headers: list[tuple[bytes, bytes]], method: str
) -> None:
    messages: list[Message] = [
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.start", "status": status, "headers": headers, "trailers": True},
        {"type": "http.response.body", "body": b"data: x\n\n", "more_body": True},
        {"type": "http.response.body"},
        {"type": "http.response.trailers", "headers": []},
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    exchange = await handle(SSEMiddleware(app), method=method, headers=EVENTSOURCE)
    assert [id(message) for _, message in exchange.messages] == [id(m) for m in messages]


@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream"])
async def test_headers_that_can_be_read_once_are_there_for_the_server(content_type: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = iter([(b"x-app", b"1"), (b"content-type", content_type)])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(body(b"data: 1\n\n", more=False))

    exchange = await plain(app)
    assert exchange.headers[b"content-type"] == content_type
    assert exchange.headers[b"x-app"] == b"1"
    assert (b"x-stream-id" in exchange.headers) is (content_type == b"text/event-stream")


@pytest.mark.parametrize("content_type", [b"text/event-stream", b" \ttext/event-stream ;a=b"])
@pytest.mark.parametrize("name", [b"content-type", b"Content-Type"])
async def test_an_event_stream_is_known_however_its_header_is_written(
    name: bytes, content_type: bytes
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, content_type.replace(b"event", b"Event"))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(body(b"", more=False))

    assert b"x-stream-id" in (await plain(app)).headers


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "something.new"])
async def test_other_connections_get_the_servers_own_callables(kind: str) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope = {"type": kind}
    await SSEMiddleware(app)(scope, receive, send)
    assert [id(x) for x in seen] == [id(scope), id(receive), id(send)]
    assert scope == {"type": kind}


async def test_switched_off_it_passes_everything_through() -> None:
    exchange = await eventsource(stream_of(b"data: 1\n\n"), enabled=False)
    assert exchange.body == b"data: 1\n\n"
    assert exchange.headers == {b"content-type": b"text/event-stream"}


async def test_a_debug_line_says_why_a_response_was_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "sse_middleware")
    await handle(SSEMiddleware(stream_of(b"")), method="HEAD")
    assert "the method is HEAD" in caplog.text


@pytest.mark.parametrize("missing", ["path", "headers", "asgi", "method", "query_string", "client"])
async def test_a_scope_without_a_key_does_no_harm(missing: str) -> None:
    scope = http_scope(headers=EVENTSOURCE)
    del scope[missing]
    exchange = Exchange(scope)
    await SSEMiddleware(stream_of(b"data: 1\n\n"))(scope, exchange.receive, exchange.send)
    assert [event.data for event in exchange.events if event.event == "message"] == ["1"]


async def test_two_layers_act_once() -> None:
    exchange = await eventsource(SSEMiddleware(stream_of(b"data: 1\n\n")))
    assert exchange.names == ["start", "message", "complete"]


async def test_the_scope_object_reaches_the_app_and_is_ready_for_another_request() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await stream_of(b"data: 1\n\n")(scope, receive, send)

    scope = http_scope(headers=EVENTSOURCE)
    for _ in range(2):
        exchange = Exchange(scope)
        await SSEMiddleware(app)(scope, exchange.receive, exchange.send)
        assert exchange.names == ["start", "message", "complete"]
    assert all(one is scope for one in seen)


# A stream


async def test_an_eventsource_gets_start_ids_and_complete() -> None:
    exchange = await eventsource(stream_of(b"data: a\n\n", b"event: x\ndata: b\n\n"))
    start, first, second, complete = exchange.events
    assert (start.event, complete.event) == ("start", "complete")
    assert (first.event, first.data, second.event, second.data) == ("message", "a", "x", "b")
    secret = str(start.id).removesuffix("-0")
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", secret)
    assert [first.id, second.id, complete.id] == [f"{secret}-1", f"{secret}-2", f"{secret}-2.again"]
    assert start.retry == 2000
    assert exchange.ended


async def test_the_start_event_tells_what_headers_tell() -> None:
    exchange = await eventsource(stream_of(), stream_max_seconds=7, heartbeat_interval=0.5)
    told = data_of(exchange, "start")
    assert told == {
        "stream_id": exchange.headers[b"x-stream-id"].decode(),
        "trace_id": exchange.headers[b"x-trace-id"].decode(),
        "max_duration": 7,
        "heartbeat_interval": 0.5,
        "silence_threshold": 15,
        "resumed": False,
    }
    assert exchange.headers[b"x-stream-max-seconds"] == b"7"
    assert exchange.headers[b"x-heartbeat-interval"] == b"0.5"
    assert exchange.headers[b"x-silence-threshold"] == b"15"
    assert exchange.headers[b"cache-control"] == b"no-cache, no-transform"
    assert exchange.headers[b"x-accel-buffering"] == b"no"
    assert exchange.headers[b"connection"] == b"keep-alive"


async def test_the_secret_stands_in_no_header_and_in_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    exchange = await eventsource(stream_of(b"data: a\n\n", pause=61))
    secret = str(exchange.events[0].id).removesuffix("-0")
    assert secret.encode() not in b"".join(exchange.headers.values())
    assert secret not in caplog.text


async def test_a_plain_client_gets_the_bytes_of_the_app_and_nothing_else() -> None:
    chunks = (
        b": hello\r\n",
        b"data: a\r\n\r",
        b"\ndata: ",
        b"b\n\n",
        b"retry: 5\r\rid\n\n",
        b"data: t",
    )
    exchange = await plain(stream_of(*chunks))
    assert exchange.body == b"".join(chunks)
    assert exchange.ended
    assert b"x-trace-id" in exchange.headers


async def test_whole_chunks_of_a_plain_client_pass_as_the_same_object() -> None:
    message = body(b"data: 1\n\n")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 0\n\n"))
        await asyncio.sleep(0.01)
        await send(message)

    exchange = await plain(app)
    assert exchange.messages[-1][1] is message


async def test_the_response_start_goes_out_before_any_event() -> None:
    began = asyncio.get_running_loop().time()
    async with running(
        SSEMiddleware(stream_of(b"data: 1\n\n", pause=3600), stream_max_seconds=None),
        Exchange(http_scope(headers=EVENTSOURCE)),
    ) as exchange:
        await exchange.until("start")
        assert [m["type"] for _, m in exchange.messages] == [
            "http.response.start",
            "http.response.body",
        ]
        assert exchange.messages[0][0] == began


async def test_a_block_is_passed_on_when_it_is_whole_and_a_comment_at_once() -> None:
    exchange = await plain(stream_of(b": c\n", b"data: ", b"x\n", b"\n", pause=1))
    sent = [(at - exchange.messages[0][0], m["body"]) for at, m in exchange.messages[1:]]
    assert sent == [(1.0, b": c\n"), (4.0, b"data: x\n\n"), (5.0, b"")]


@pytest.mark.parametrize(
    "chunk", [b"id: 7\ndata: x\n\n", b"data: x\nid: 7\n\n", b"id\ndata: x\n\n"]
)
async def test_an_app_that_sets_an_id_owns_all_ids(chunk: bytes) -> None:
    exchange = await eventsource(stream_of(chunk, b"data: y\n\n"))
    assert chunk in exchange.body
    assert exchange.body.count(b"\nid: ") + exchange.body.count(b"\nid\n") <= 2
    assert exchange.events[2].id is None
    assert exchange.events[-1].id is None


async def test_an_id_is_added_behind_the_apps_lines_with_its_line_end() -> None:
    exchange = await eventsource(stream_of(b"event: a\r\ndata: x\r\n\r\n"))
    assert re.search(rb"event: a\r\ndata: x\r\nid: \S+-1\r\n\r\n", exchange.body)


async def test_blocks_that_dispatch_nothing_get_no_id() -> None:
    exchange = await eventsource(stream_of(b"event: a\n\nretry: 10\n\n: c\n\ndata: x\n\n"))
    assert b"event: a\n\nretry: 10\n\n: c\n\ndata: x\nid: " in exchange.body
    assert data_of(exchange, "complete")["total_chunks"] == 1


async def test_an_unterminated_tail_is_dropped_where_something_of_ours_follows() -> None:
    exchange = await eventsource(stream_of(b"data: a\n\ndata: half"))
    assert exchange.names == ["start", "message", "complete"]
    assert b"half" not in exchange.body


async def test_no_complete_is_added_where_the_app_has_sent_its_own() -> None:
    exchange = await eventsource(stream_of(b"event: complete\ndata: mine\n\n", b"data: tail"))
    assert exchange.names == ["start", "complete"]
    assert exchange.events[-1].data == "mine"
    assert exchange.body.endswith(b"data: tail")


@pytest.mark.parametrize(("headers", "expected"), [(EVENTSOURCE, 0), ([], 1)])
async def test_a_bom_stays_first_or_goes(headers: list[tuple[bytes, bytes]], expected: int) -> None:
    app = SSEMiddleware(stream_of(b"\xef\xbb", b"\xbfdata: a\n\n", b"data: b\n\n"))
    exchange = await handle(app, headers=headers)
    assert exchange.body.count(b"\xef\xbb\xbf") == expected
    assert [e.data for e in exchange.events if e.event == "message"] == ["a", "b"]


async def test_a_bom_goes_where_a_heartbeat_was_first() -> None:
    exchange = await plain(stream_of(b"\xef\xbb\xbfdata: a\n\n", pause=6))
    assert exchange.body.startswith(b": heartbeat")
    assert [e.data for e in exchange.events] == ["a"]


async def test_a_block_over_the_limit_passes_as_it_came_and_is_counted() -> None:
    block = b"data: " + b"x" * 5000 + b"\n\n"
    app = stream_of(*(block[i : i + 100] for i in range(0, len(block), 100)), b"data: y\n\n")
    exchange = await eventsource(app, max_event_bytes=1024)
    assert block in exchange.body
    assert str(exchange.events[2].id).endswith("-2")
    assert data_of(exchange, "complete")["total_chunks"] == 2


async def test_nothing_of_ours_goes_into_a_half_sent_block_over_the_limit() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: " + b"x" * 5000))
        await asyncio.sleep(20)
        await send(body(b"", more=False))

    exchange = await eventsource(app, max_event_bytes=1024)
    assert exchange.names == ["start"]
    assert exchange.body.endswith(b"x" * 5000)
    assert exchange.ended


async def test_a_memoryview_or_bytearray_body_is_welcome() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(
            {"type": "http.response.body", "body": memoryview(b"data: 1\n\n"), "more_body": True}
        )
        await send({"type": "http.response.body", "body": bytearray(b"data: 2\n\n")})

    exchange = await eventsource(app)
    assert [e.data for e in exchange.events[1:3]] == ["1", "2"]


async def test_messages_behind_the_end_of_the_app_are_the_servers_business() -> None:
    late: Message = {"type": "http.response.trailers", "headers": []}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**stream_start(), "trailers": True})
        await send(body(b"data: 1\n\n", more=False))
        await send(late)

    exchange = await eventsource(app)
    assert exchange.messages[-1][1] is late


# Heartbeats


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
    ("accept", "chunk", "comment"),
    [
        (b"*/*", b"data: x\n\n", b": heartbeat\n\n"),
        (b"application/json, text/event-stream", b"data: x\n\n", b": heartbeat\n\n"),
        (b"text/event-stream", b"data: x\n\n", b": heartbeat\n"),
        (b"text/event-stream, text/event-stream", b"data: x\n\n", b": heartbeat\n"),
        (b"*/*", b"id: 1\ndata: x\n\n", b": heartbeat\n\n"),
        (b"application/json", b"id: 1\ndata: x\n\n", b": heartbeat\n"),
        (b"*/*", b"data: x\r\n\r\n", b": heartbeat\r\n\r\n"),
    ],
)
async def test_the_comment_suits_the_decoder_that_reads_it(
    accept: bytes, chunk: bytes, comment: bytes
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(chunk))
        await asyncio.sleep(6)
        await send(body(b"", more=False))

    exchange = await handle(SSEMiddleware(app), headers=[(b"accept", accept)])
    assert exchange.body == chunk + comment


async def test_a_heartbeat_never_stands_inside_an_event() -> None:
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
    app = SSEMiddleware(stream_of(*[b"data: x\n\n"] * 3, pause=0.1), heartbeat_interval=1)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        await asyncio.sleep(30)
        exchange.unblock()
        await exchange.until("complete")
        assert exchange.names.count("heartbeat") == 0
        assert exchange.overlaps == 0


async def test_a_loop_that_was_blocked_owes_one_heartbeat_not_many() -> None:
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

    await SSEMiddleware(app, heartbeat_interval=0.05)(exchange.scope, exchange.receive, slow)
    assert exchange.overlaps == 0
    assert exchange.names.count("message") == 60
    ids = [str(e.id) for e in exchange.events if e.event == "message"]
    assert [int(i.rpartition("-")[2]) for i in ids] == list(range(1, 61))


# The cap


class Tracker:
    """An app that tells how it was left."""

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

    exchange = await eventsource(app, stream_max_seconds=3, heartbeat_interval=None)
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

    exchange = await eventsource(app, stream_max_seconds=3, heartbeat_interval=1)
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

    wrapped = SSEMiddleware(app, stream_max_seconds=3)
    async with running(wrapped, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        opened = exchange.messages[0][0]
        assert exchange.task is not None
        await exchange.task
        assert asyncio.get_running_loop().time() - opened == pytest.approx(5, abs=0.05)
        assert tracker.left_at is not None
        assert tracker.left_at - opened == pytest.approx(4, abs=0.05)
        assert not exchange.ended


async def test_the_cap_holds_for_a_final_write_that_is_blocked() -> None:
    app = SSEMiddleware(stream_of(b"data: x\n\n", pause=1), stream_max_seconds=3)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        assert exchange.task is not None
        await exchange.task
        assert not exchange.ended


async def test_a_client_that_reads_on_within_the_grace_still_gets_its_end() -> None:
    app = SSEMiddleware(stream_of(*[b"data: x\n\n"] * 50, pause=0.1), stream_max_seconds=3)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        await asyncio.sleep(3.4)
        exchange.unblock()
        assert exchange.task is not None
        await exchange.task
        assert data_of(exchange, "complete")["reason"] == "duration_cap"
        assert exchange.ended


async def test_an_app_that_listens_hears_the_cap_as_a_disconnect_and_is_not_cancelled() -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await receive()
        assert await receive() == {"type": "http.disconnect"}
        tracker.leave("disconnect")
        await asyncio.sleep(30)
        assert await receive() == {"type": "http.disconnect"}
        tracker.leave("background")

    exchange = await eventsource(app, stream_max_seconds=3)
    assert exchange.names[-1] == "complete"
    assert tracker.left_by == "background"


async def test_an_app_that_hears_the_cap_and_writes_on_is_cancelled() -> None:
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

    exchange = await eventsource(app, stream_max_seconds=3)
    assert exchange.names[-1] == "complete"
    assert b"late" not in exchange.body
    assert tracker.left_at is not None
    assert tracker.left_at - exchange.messages[0][0] == pytest.approx(4, abs=0.4)


async def test_an_app_that_answers_its_cancellation_slowly_is_left_to_its_cleaning_up() -> None:
    tracker = Tracker()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(stream_start())
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(10)
            tracker.leave("clean")

    await eventsource(app, stream_max_seconds=3)
    assert tracker.left_by == "clean"


async def test_our_cancellation_never_leaks_out_of_the_middleware() -> None:
    async def swallowing(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    task = asyncio.current_task()
    assert task is not None
    await eventsource(swallowing, stream_max_seconds=1)
    assert task.cancelling() == 0
    await asyncio.sleep(1)


async def test_a_cancellation_from_outside_is_never_taken_for_ours() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(5)

    wrapped = SSEMiddleware(app, stream_max_seconds=1)
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
    exchange = await plain(stream_of(b"data: x\n\n", pause=2), stream_max_seconds=3)
    assert exchange.body == b"data: x\n\n"
    assert not exchange.ended


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
    app = SSEMiddleware(Starlette(routes=routes), stream_max_seconds=1)
    for path in ("/a/1", "/a/2", "/b"):
        await handle(app, path=path, headers=EVENTSOURCE)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "/a/{id}" in warnings[0]
    assert all("SSE_STREAM_MAX_SECONDS" in warning for warning in warnings)


# Errors


async def test_an_exception_is_told_without_its_text_and_raised_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\ndata: half"))
        raise ValueError("the password is swordfish")

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    with pytest.raises(ValueError, match="swordfish"):
        await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.names == ["start", "message", "error"]
    assert b"swordfish" not in exchange.body
    told = data_of(exchange, "error")
    assert set(told) == {"error", "trace_id", "stream_id"}
    assert set(told["error"]) == {"type", "code", "message"}
    assert exchange.ended


async def test_a_plain_stream_that_fails_ends_as_without_us() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        raise ValueError

    exchange = Exchange(http_scope())
    with pytest.raises(ValueError):
        await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.body == b"data: 1\n\n"
    assert not exchange.ended


async def test_an_exception_before_or_behind_the_stream_adds_nothing() -> None:
    async def before(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        await stream_of(b"data: 1\n\n")(scope, receive, send)
        raise ValueError

    for app, names in ((before, []), (behind, ["start", "message", "complete"])):
        exchange = Exchange(http_scope(headers=EVENTSOURCE))
        with pytest.raises(ValueError):
            await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)
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
        await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)
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
        await SSEMiddleware(app)(exchange.scope, exchange.receive, exchange.send)
    assert raised.value is refusal


# Trace ids


async def test_the_trace_id_is_in_the_scope_the_context_and_every_control_event() -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope["sse_middleware"].trace_id, current_trace_id()))
        await stream_of(b"data: 1\n\n", pause=6)(scope, receive, send)

    exchange = await handle(
        SSEMiddleware(app), headers=[*EVENTSOURCE, (b"x-trace-id", b"abc.DEF-1_2")]
    )
    assert seen == ["abc.DEF-1_2"] * 2
    assert exchange.headers[b"x-trace-id"] == b"abc.DEF-1_2"
    ours = [json.loads(e.data) for e in exchange.events if e.event != "message"]
    assert {told["trace_id"] for told in ours} == {"abc.DEF-1_2"}
    assert len(ours) == 4
    assert current_trace_id() is None


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

    return SSEMiddleware(Starlette(routes=[Route("/", endpoint)]), **options)


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


async def test_a_background_task_runs_behind_the_cap_as_behind_a_disconnect() -> None:
    log: list[str] = []

    async def events() -> Any:
        try:
            yield b"data: x\n\n"
            await asyncio.sleep(3600)
        finally:
            log.append("finally")

    app = starlette_app(events, log=log, background=True, stream_max_seconds=2)
    exchange = await handle(app, headers=EVENTSOURCE)
    assert data_of(exchange, "complete")["reason"] == "duration_cap"
    assert log == ["finally", "background"]


async def test_a_polling_app_is_told_that_the_client_is_there_and_then_that_it_is_gone() -> None:
    told: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await send(stream_start())
        while not told or not told[-1]:
            told.append(await request.is_disconnected())
            await send(body(b"data: x\n\n"))
            await asyncio.sleep(1)

    wrapped = SSEMiddleware(app, stream_max_seconds=None)
    async with running(wrapped, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await asyncio.sleep(4.5)
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    assert told == [False] * 5 + [True]


async def test_the_app_sees_the_servers_asgi_version() -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["asgi"])

    scope = http_scope()
    before = dict(scope["asgi"])
    exchange = Exchange(scope)
    await SSEMiddleware(app)(scope, exchange.receive, exchange.send)
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
    wrapped = SSEMiddleware(app, heartbeat_interval=0.05, stream_max_seconds=5)
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


async def test_two_thousand_streams_half_of_them_cut_leave_nothing_behind() -> None:
    def app() -> ASGIApp:
        return stream_of(*[b"data: x\n\n"] * 3, b"data: half", pause=0.01)

    wrapped = SSEMiddleware(app(), heartbeat_interval=0.05, replay_ttl=0)

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

    ours = (CurrentStream, Producer, Responder, StreamRecord, StreamState)
    wrapped = SSEMiddleware(Starlette(routes=[Route("/", endpoint)]))
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


# Other loops, other apps


async def test_a_json_app_keeps_its_trace_id_too() -> None:
    async def endpoint(request: Request) -> Response:
        return JSONResponse({"trace": current_trace_id()})

    app = SSEMiddleware(Starlette(routes=[Route("/", endpoint)]))
    exchange = await handle(app, headers=[(b"x-request-id", b"r-1")])
    assert json.loads(exchange.body) == {"trace": "r-1"}
    assert b"x-trace-id" not in exchange.headers
