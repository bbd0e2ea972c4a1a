"""The effect of each setting on a stream."""

import asyncio
import json
from typing import Any

import pytest
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
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("options", "path", "touched"),
    [
        ({"include": ("/chat/*", "/ask")}, "/chat/a/b", True),
        ({"include": ("/chat/*", "/ask")}, "/ask", True),
        ({"include": ("/chat/*", "/ask")}, "/asked", False),
        ({"exclude": ("/internal/*",)}, "/internal/x", False),
        ({"exclude": ("/internal/*",)}, "/public", True),
        ({"include": ("/*",), "exclude": ("/x",)}, "/x", False),
        ({}, "/anything", True),
    ],
)
async def test_path_globs_select_the_paths_that_the_middleware_handles(
    options: dict[str, Any], path: str, *, touched: bool
) -> None:
    app = marking(stream_of(b"data: x\n\n"), **options)
    exchange = await handle(app, path=path, headers=EVENTSOURCE)
    assert (b"x-stream-id" in exchange.headers) is touched


async def test_a_prefix_keeps_our_names_apart_from_the_apps() -> None:
    app = marking(stream_of(b"event: complete\ndata: mine\n\n", pause=6), event_prefix="sse-")
    exchange = await handle(app, headers=EVENTSOURCE)
    assert exchange.names == [
        "sse-start",
        "sse-heartbeat",
        "complete",
        "sse-heartbeat",
        "sse-complete",
    ]


@pytest.mark.parametrize(
    ("style", "accept", "comment"),
    [
        ("line", b"*/*", b": heartbeat\n"),
        ("block", b"text/event-stream", b": heartbeat\n\n"),
    ],
)
async def test_the_comment_style_can_be_set(style: Any, accept: bytes, comment: bytes) -> None:
    app = marking(stream_of(b"data: x\n\n", pause=6), comment_style=style)
    exchange = await handle(app, headers=[(b"accept", accept)])
    assert exchange.body == comment + b"data: x\n\n" + comment


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b'data: {"a":1}\n\n', b'data: {"trace_id":"t","a":1}\n\n'),
        (b"event: x\r\ndata:{}\r\n\r\n", b'event: x\r\ndata:{"trace_id":"t"}\r\n\r\n'),
        (b'data: {"url":"data:,"}\n\n', b'data: {"trace_id":"t","url":"data:,"}\n\n'),
        (b'data: {"trace_id":"mine"}\n\n', None),
        (b"data: [1]\n\n", None),
        (b"data: text\n\n", None),
        (b"data: {\ndata: }\n\n", None),
        (b": comment\n\n", None),
    ],
)
async def test_the_trace_id_can_be_added_to_the_data_of_json_objects(
    block: bytes, expected: bytes | None
) -> None:
    app = marking(stream_of(block), trace_in_data=True)
    exchange = await handle(app, headers=[(b"x-trace-id", b"t")])
    assert exchange.body == (block if expected is None else expected)


@pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
async def test_pacing_spreads_a_burst_and_drops_nothing(headers: list[tuple[bytes, bytes]]) -> None:
    burst = b"".join(b"data: %d\n\n" % number for number in range(4))
    app = marking(stream_of(burst, burst + b": c\n\ndata: tail"), chunk_delay_ms=500)
    exchange = await handle(app, headers=headers)
    opened = exchange.messages[0][0]
    sent = [
        at - opened
        for at, m in exchange.messages[1:]
        for line in m["body"].splitlines()
        if line in {b"data: 0", b"data: 1", b"data: 2", b"data: 3"}
    ]
    assert sent == pytest.approx([number * 0.5 for number in range(8)])
    assert exchange.ended


async def test_pacing_holds_back_no_heartbeat_and_no_cap() -> None:
    burst = b"data: x\n\n" * 10
    app = marking(
        stream_of(burst),
        chunk_delay_ms=1000,
        heartbeat_interval=1.5,
        stream_max_seconds=4.2,
        cap_action="complete",
    )
    exchange = await handle(app, headers=EVENTSOURCE)
    (opened, _), *sent = exchange.messages
    beats = [at - opened for at, m in sent if b"event: heartbeat" in m["body"]]
    assert beats == pytest.approx([1.5, 3.0])
    assert exchange.names.count("message") == 5
    assert json.loads(exchange.events[-1].data)["reason"] == "duration_cap"


async def test_a_rollout_leaves_the_same_clients_out_each_time() -> None:
    app = marking(stream_of(b"data: x\n\n"), rollout_percent=30)

    async def acted_for(number: int) -> bool:
        headers = [*EVENTSOURCE, (b"authorization", b"Bearer %d" % number)]
        return b"x-stream-id" in (await handle(app, headers=headers)).headers

    first = [await acted_for(number) for number in range(300)]
    assert first == [await acted_for(number) for number in range(300)]
    assert 60 <= sum(first) <= 120


async def test_a_client_that_the_rollout_leaves_out_gets_the_very_same_messages() -> None:
    message = body(b"data: x\n\nhalf")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(message)
        await asyncio.sleep(100)
        await send(body(b"", more=False))

    exchange = await handle(marking(app, rollout_percent=0), headers=EVENTSOURCE)
    assert exchange.start == stream_start()
    assert exchange.messages[1][1] is message
    assert len(exchange.messages) == 3


# OpenAI's dialect


def chunk(content: str, **fields: object) -> bytes:
    payload = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}],
        **fields,
    }
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def test_a_completion_that_finishes_is_left_as_it_is() -> None:
    chunks = (chunk("a"), chunk("b"), DONE)
    exchange = await handle(marking(stream_of(*chunks), stream_max_seconds=9))
    assert exchange.body == b"".join(chunks)


async def test_a_completion_at_its_cap_ends_by_length_and_done() -> None:
    app = marking(stream_of(chunk("a"), chunk("b"), pause=2), stream_max_seconds=3)
    exchange = await handle(app)
    assert exchange.body.startswith(chunk("a"))
    *_, last, done = exchange.events
    assert json.loads(last.data) == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}],
    }
    assert done.data == "[DONE]"
    assert exchange.ended


async def test_a_completion_ends_with_an_error_and_done_if_the_app_fails() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(chunk("a")))
        raise ValueError("swordfish")

    exchange = Exchange(http_scope())
    with pytest.raises(ValueError, match="swordfish"):
        await marking(app)(exchange.scope, exchange.receive, exchange.send)
    _, error, done = exchange.events
    assert json.loads(error.data).keys() == {"error"}
    assert "swordfish" not in error.data
    assert done.data == "[DONE]"
    assert exchange.ended


async def test_a_completion_that_is_done_gets_no_second_end_at_its_cap() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(chunk("a") + DONE))
        await asyncio.sleep(100)

    async with running(marking(app, stream_max_seconds=3), Exchange(http_scope())) as exchange:
        assert exchange.task is not None
        await exchange.task
    assert exchange.body == chunk("a") + DONE
    assert exchange.ended


@pytest.mark.parametrize(
    "first",
    [
        b'data: {"object":"chat.completion"}\n\n',
        b'data: "chat.completion.chunk"\n\n',
        b"data: chat.completion.chunk {\n\n",
        b'data: {"a":"chat.completion.chunk"}\n\n',
    ],
)
async def test_a_stream_that_only_resembles_a_completion_stays_plain(first: bytes) -> None:
    app = marking(stream_of(first, chunk("late"), pause=2), stream_max_seconds=5)
    exchange = await handle(app)
    assert not exchange.body.endswith(DONE)


async def test_a_completion_with_several_choices_ends_all_of_them() -> None:
    first = chunk("", choices=[{"index": 0, "delta": {}}, {"index": 1, "delta": {}}])
    exchange = await handle(marking(stream_of(first, pause=2), stream_max_seconds=3))
    last = json.loads(exchange.events[-2].data)
    assert [choice["index"] for choice in last["choices"]] == [0, 1]
