"""The effect of the middleware on one request, on a virtual clock and without a server."""

import asyncio
import json
import logging
import re

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import current_trace_id
from sse_middleware.stream.current import current_in
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
from tests.support.middleware import data_of, eventsource, marking, plain

pytestmark = pytest.mark.anyio


# Responses that pass unchanged


@pytest.mark.parametrize(
    ("status", "headers", "method"),
    [
        (200, [(b"content-type", b"application/json")], "GET"),
        (200, [], "GET"),
        (404, [(b"content-type", b"text/event-stream")], "GET"),
        (304, [(b"content-type", b"text/event-stream")], "GET"),
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

    exchange = await handle(marking(app), method=method, headers=EVENTSOURCE)
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
    await marking(app)(scope, receive, send)
    assert [id(x) for x in seen] == [id(scope), id(receive), id(send)]
    assert scope == {"type": kind}


async def test_switched_off_it_passes_everything_through() -> None:
    exchange = await eventsource(stream_of(b"data: 1\n\n"), enabled=False)
    assert exchange.body == b"data: 1\n\n"
    assert exchange.headers == {b"content-type": b"text/event-stream"}


async def test_a_debug_line_gives_the_reason_for_a_passthrough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "sse_middleware")
    await handle(marking(stream_of(b"")), method="HEAD")
    assert "the method is HEAD" in caplog.text


@pytest.mark.parametrize("missing", ["path", "headers", "asgi", "method", "query_string", "client"])
async def test_a_scope_without_a_key_does_no_harm(missing: str) -> None:
    scope = http_scope(headers=EVENTSOURCE)
    del scope[missing]
    exchange = Exchange(scope)
    await marking(stream_of(b"data: 1\n\n"))(scope, exchange.receive, exchange.send)
    assert [event.data for event in exchange.events if event.event == "message"] == ["1"]


async def test_two_layers_act_once() -> None:
    exchange = await eventsource(marking(stream_of(b"data: 1\n\n")))
    assert exchange.names == ["start", "message", "complete"]


async def test_the_scope_object_reaches_the_app_and_is_ready_for_another_request() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await stream_of(b"data: 1\n\n")(scope, receive, send)

    scope = http_scope(headers=EVENTSOURCE)
    for _ in range(2):
        exchange = Exchange(scope)
        await marking(app)(scope, exchange.receive, exchange.send)
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
    assert [first.id, second.id, complete.id] == [f"{secret}-1", f"{secret}-2", f"{secret}-2.end"]
    assert start.retry == 2000
    assert exchange.ended


async def test_the_start_event_has_the_values_of_the_headers() -> None:
    exchange = await eventsource(stream_of(), stream_max_seconds=7, heartbeat_interval=0.5)
    data = data_of(exchange, "start")
    assert data == {
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
    assert exchange.headers[b"cache-control"] == b"no-cache, no-transform, private"
    assert exchange.headers[b"x-accel-buffering"] == b"no"
    assert b"connection" not in exchange.headers


async def test_the_secret_is_in_no_header_and_in_no_log(
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


async def test_the_response_start_leaves_before_any_event() -> None:
    began = asyncio.get_running_loop().time()
    async with running(
        marking(stream_of(b"data: 1\n\n", pause=3600), stream_max_seconds=None),
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


async def test_an_id_is_added_after_the_lines_of_the_app_with_their_line_end() -> None:
    exchange = await eventsource(stream_of(b"event: a\r\ndata: x\r\n\r\n"))
    assert re.search(rb"event: a\r\ndata: x\r\nid: \S+-1\r\n\r\n", exchange.body)


async def test_blocks_that_dispatch_nothing_get_no_id() -> None:
    exchange = await eventsource(stream_of(b"event: a\n\nretry: 10\n\n: c\n\ndata: x\n\n"))
    assert b"event: a\n\nretry: 10\n\n: c\n\ndata: x\nid: " in exchange.body
    assert data_of(exchange, "complete")["total_chunks"] == 1


async def test_an_unterminated_tail_is_dropped_if_an_event_of_ours_follows() -> None:
    exchange = await eventsource(stream_of(b"data: a\n\ndata: half"))
    assert exchange.names == ["start", "message", "complete"]
    assert b"half" not in exchange.body


async def test_no_complete_is_added_if_the_app_has_sent_its_own() -> None:
    exchange = await eventsource(stream_of(b"event: complete\ndata: mine\n\n", b"data: tail"))
    assert exchange.names == ["start", "complete"]
    assert exchange.events[-1].data == "mine"
    assert exchange.body.endswith(b"data: tail")


@pytest.mark.parametrize(("headers", "expected"), [(EVENTSOURCE, 0), ([], 1)])
async def test_a_bom_stays_first_or_is_dropped(
    headers: list[tuple[bytes, bytes]], expected: int
) -> None:
    app = marking(stream_of(b"\xef\xbb", b"\xbfdata: a\n\n", b"data: b\n\n"))
    exchange = await handle(app, headers=headers)
    assert exchange.body.count(b"\xef\xbb\xbf") == expected
    assert [e.data for e in exchange.events if e.event == "message"] == ["a", "b"]


async def test_a_bom_is_dropped_if_a_heartbeat_was_first() -> None:
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


async def test_no_event_of_ours_is_inside_a_half_sent_block_over_the_limit() -> None:
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


async def test_messages_after_the_end_of_the_app_pass_to_the_server() -> None:
    late: Message = {"type": "http.response.trailers", "headers": []}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**stream_start(), "trailers": True})
        await send(body(b"data: 1\n\n", more=False))
        await send(late)

    exchange = await eventsource(app)
    assert exchange.messages[-1][1] is late


# Trace ids


async def test_the_trace_id_is_in_the_scope_the_context_and_every_control_event() -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((current_in(scope["sse_middleware"]).trace_id, current_trace_id()))
        await stream_of(b"data: 1\n\n", pause=6)(scope, receive, send)

    exchange = await handle(marking(app), headers=[*EVENTSOURCE, (b"x-trace-id", b"abc.DEF-1_2")])
    assert seen == ["abc.DEF-1_2"] * 2
    assert exchange.headers[b"x-trace-id"] == b"abc.DEF-1_2"
    ours = [json.loads(e.data) for e in exchange.events if e.event != "message"]
    assert {data["trace_id"] for data in ours} == {"abc.DEF-1_2"}
    assert len(ours) == 4
    assert current_trace_id() is None


# Other loops, other apps


async def test_a_json_app_keeps_its_trace_id_too() -> None:
    async def endpoint(request: Request) -> Response:
        return JSONResponse({"trace": current_trace_id()})

    app = marking(Starlette(routes=[Route("/", endpoint)]))
    exchange = await handle(app, headers=[(b"x-request-id", b"r-1")])
    assert json.loads(exchange.body) == {"trace": "r-1"}
    assert b"x-trace-id" not in exchange.headers
