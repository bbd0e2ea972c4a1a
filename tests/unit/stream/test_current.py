"""A handler's view of its stream, and the one log record of the stream."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

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
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio


def records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [
        SimpleNamespace(**record.__dict__["sse"])
        for record in caplog.records
        if record.name == "sse_middleware.stream" and record.levelno == logging.INFO
    ]


@pytest.mark.parametrize(("action", "remaining"), [("complete", 58), ("rotate", None)])
async def test_a_handler_knows_its_stream_before_and_while_it_streams(
    action: Literal["complete", "rotate"], remaining: float | None
) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = current_stream()
        seen.extend((stream.stream_id, stream.trace_id, stream.remaining_seconds))
        await send(stream_start())
        await asyncio.sleep(2)
        assert current_stream() is stream
        seen.append(stream.remaining_seconds)
        await send(body(b"", more=False))

    exchange = await handle(marking(app, cap_action=action), headers=EVENTSOURCE)
    assert seen == [
        exchange.headers[b"x-stream-id"].decode(),
        exchange.headers[b"x-trace-id"].decode(),
        None,
        remaining,
    ]


async def test_tokens_and_annotations_are_in_heartbeats_and_in_the_log_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().annotate(model="m", user=1)
        await send(stream_start())
        current_stream().add_tokens(3)
        await send(body(b"data: secret payload\n\n"))
        await asyncio.sleep(6)
        current_stream().add_tokens(4)
        current_stream().annotate(user=2, name="not the logger's")
        await send(body(b"", more=False))

    exchange = await handle(marking(app), headers=EVENTSOURCE)
    assert '"total_tokens":3' in exchange.events[2].data
    assert '"total_tokens":7' in exchange.events[3].data
    (record,) = records(caplog)
    assert record.stream_id == exchange.headers[b"x-stream-id"].decode()
    assert record.trace_id == exchange.headers[b"x-trace-id"].decode()
    assert (record.route, record.family, record.outcome) == ("unmatched", "eventsource", "finished")
    assert (record.chunks, record.tokens, record.heartbeats) == (1, 7, 1)
    assert record.duration_seconds == pytest.approx(6)
    assert record.time_to_first_event_seconds == 0
    assert record.sent_bytes == len(exchange.body)
    assert record.annotations == {"model": "m", "user": 2, "name": "not the logger's"}


def test_outside_of_a_request_the_current_stream_has_no_client() -> None:
    stream = current_stream()
    stream.add_tokens(1)
    stream.annotate(a=1)
    assert stream.remaining_seconds is None
    assert stream.trace_id == ""


def test_tokens_can_only_be_added() -> None:
    with pytest.raises(ValueError, match="count is -1, allowed is 0 or more"):
        current_stream().add_tokens(-1)


async def raising(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    raise ValueError


async def leaving(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    await send(body(b"data: x\n\n"))


@pytest.mark.parametrize(
    ("app", "options", "outcome"),
    [
        (stream_of(b"data: x\n\n"), {}, "finished"),
        (
            stream_of(b"data: x\n\n", pause=9),
            {"stream_max_seconds": 5, "cap_action": "complete"},
            "duration_cap",
        ),
        (raising, {}, "error"),
        (leaving, {}, "incomplete"),
    ],
)
@pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
async def test_each_stream_leaves_one_record_with_its_outcome(
    app: ASGIApp,
    options: Any,
    outcome: str,
    headers: list[tuple[bytes, bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    exchange = Exchange(http_scope(headers=headers))
    wrapped = marking(app, **options)
    await asyncio.gather(
        wrapped(exchange.scope, exchange.receive, exchange.send), return_exceptions=True
    )
    assert [record.outcome for record in records(caplog)] == [outcome]


async def test_a_client_that_leaves_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def listening(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: x\n\n"))
        await receive()
        await receive()

    async with running(marking(listening), Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    assert [record.outcome for record in records(caplog)] == ["disconnected"]


async def test_debug_logs_each_event_and_heartbeat_but_never_their_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    chunks = (b"data: swordfish\n\ndata: swordfish\n\n",)
    exchange = await handle(marking(stream_of(*chunks, pause=6)), headers=EVENTSOURCE)
    secret = str(exchange.events[0].id).removesuffix("-0")
    lines = [r.getMessage() for r in caplog.records if r.name == "sse_middleware.stream"]
    assert sum("event 1 of" in line or "event 2 of" in line for line in lines) == 2
    assert sum("heartbeat of" in line for line in lines) == 2
    assert "swordfish" not in caplog.text
    assert secret not in caplog.text
