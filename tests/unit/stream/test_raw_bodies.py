"""A marked response that is no event stream: its bytes are passed on at once, as without a mark."""

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware.protocol.intake import begins_event_stream
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

pytestmark = pytest.mark.anyio

WORDS = [b"Hello", b" wor", b"ld\n", b"data: no event any more\n\n", b"\n\n", b"bye"]
KINDS = pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])


def marked(app: ASGIApp, **options: Any) -> ASGIApp:
    return marking(app, **{"heartbeat_interval": 1, "stream_max_seconds": 5, **options})


@KINDS
async def test_raw_words_are_passed_on_at_once_and_nothing_is_added(headers: Any) -> None:
    app = stream_of(*WORDS, pause=2)
    exchange = await handle(marked(app, heartbeat_interval=60), headers=headers)
    bare = await handle(app)
    first = exchange.messages[0][0]
    ours = [(round(at - first, 3), m["body"]) for at, m in exchange.messages[1:]]
    without = [(2.0 * (n + 1), m["body"]) for n, (_, m) in enumerate(bare.messages[1:])]
    preamble = ours.pop(0)[1] if headers else b""  # before it can be known that they are raw
    assert preamble.startswith(b"event: start\n" if headers else b"")
    assert ours == without


@KINDS
async def test_raw_words_that_follow_the_start_at_once_have_no_preamble(headers: Any) -> None:
    exchange = await handle(marked(stream_of(*WORDS)), headers=headers)
    assert [m["body"] for _, m in exchange.messages[1:]] == [*WORDS, b""]


@KINDS
async def test_what_the_app_has_sent_before_a_raw_body_is_kept_for_a_client_that_is_blocked(
    headers: Any,
) -> None:
    exchange = Exchange(http_scope(headers=headers))
    debug = {"type": "http.response.debug", "info": {}}
    messages = [body(b"\n"), body(b"\n"), debug, body(b"\r\n"), body(b"word")]

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        exchange.block()
        tasks = []
        for message in messages:
            tasks.append(asyncio.ensure_future(send(message)))
            await asyncio.sleep(0.1)
        exchange.unblock()
        await asyncio.gather(*tasks)
        await send(body(b"", more=False))

    await marked(app, heartbeat_interval=60)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.body.endswith(b"\n\n\r\nword")
    assert debug in [message for _, message in exchange.messages]


@KINDS
async def test_a_raw_body_has_no_cap_and_no_heartbeat(headers: Any) -> None:
    words = [b"word"] * 10
    exchange = await handle(marked(stream_of(*words, pause=2)), headers=headers)
    bodies = [m["body"] for _, m in exchange.messages if m.get("body")]
    assert bodies[-9:] == words[1:]
    assert b"event: heartbeat" not in b"".join(bodies[-9:])
    assert exchange.ended


@KINDS
async def test_a_client_may_block_a_raw_body_for_any_time(headers: Any) -> None:
    exchange = Exchange(http_scope(headers=headers))
    app = marked(stream_of(*[b"word"] * 10, pause=1), send_timeout=5)
    async with running(app, exchange):
        await asyncio.sleep(3.5)
        exchange.block()
        await asyncio.sleep(60)
        exchange.unblock()
        await exchange.until_end()
    assert exchange.body.endswith(b"word" * 10)


@KINDS
async def test_the_app_receives_the_disconnect_of_a_raw_body_at_once(headers: Any) -> None:
    received: list[str] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"word"))
        await receive()
        received.append((await receive())["type"])

    exchange = Exchange(http_scope(headers=headers))
    async with running(marked(app), exchange):
        await asyncio.sleep(0.1)
        exchange.disconnect()
        await asyncio.sleep(0.1)
        assert received == ["http.disconnect"]


@pytest.mark.parametrize("action", ["rotate", "complete"])
@pytest.mark.parametrize("words", [[b"word"], [b"\n\n", b"word"]])
async def test_a_raw_body_that_begins_after_the_cap_does_not_discard_the_end(
    action: str, words: list[bytes]
) -> None:
    """The response start is blocked for longer than the stream may last."""

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for word in words:
            await send(body(word))
        await asyncio.sleep(20)

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    exchange.block()
    async with running(marked(app, cap_action=action), exchange):
        await asyncio.sleep(5.3)  # the connection ends in the last half second before 5
        exchange.unblock()
        await exchange.until_end()
    assert exchange.names[0] == "start"
    assert b"word" not in exchange.body


async def test_one_warning_per_route_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    app = marked(stream_of(*WORDS))
    with caplog.at_level(logging.WARNING, "sse_middleware"):
        for _ in range(3):
            await handle(app)
    (line,) = [r.getMessage() for r in caplog.records if "no event stream" in r.getMessage()]
    assert "unmatched" in line
    assert "remove the mark" in line


async def test_a_raw_body_is_not_kept() -> None:
    app = marked(stream_of(*WORDS))
    first = await handle(app, headers=EVENTSOURCE)
    stream_id = first.headers[b"x-stream-id"].decode()
    assert await app._context.store.find(stream_id) is None  # type: ignore[attr-defined]


async def test_an_event_stream_that_begins_with_an_unknown_field_stays_marked() -> None:
    chunks = b"\n", b"\r\n", b"x-note: a\nda", b"ta: 1\n\n", b": ping\n\n", b"data: 2\n\n"
    exchange = await handle(marked(stream_of(*chunks, pause=0.5)), headers=EVENTSOURCE)
    assert [event.data for event in exchange.events if event.event == "message"] == ["1", "2"]
    assert "complete" in exchange.names


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", None),
        (b"\n\r\n", None),
        (b"\xef\xbb", None),
        (b"\xef\xbb\xbf", None),
        (b"\xef\xbb\xbfda", None),
        (b"\xef\xbb\xbfdata: x", True),
        (b"d", None),
        (b"data", None),
        (b"data:", True),
        (b"data\n", True),
        (b"x: y\ndat", None),
        (b"x: y\r:", True),
        (b":", True),
        (b"id\r", True),
        (b"database", False),
        (b"data science", False),
        (b"Hello", False),
        (b"Hello\n", False),
        (b'{"data": 1}\n', False),
        (b"retry soon", False),
    ],
)
def test_the_first_bytes_show_an_event_stream(head: bytes, expected: bool | None) -> None:  # noqa: FBT001
    assert begins_event_stream(head) is expected


@settings(max_examples=200)
@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8),
    st.sampled_from([EVENTSOURCE, []]),
)
def test_any_bytes_arrive_unchanged_and_in_order(chunks: list[bytes], headers: Any) -> None:
    async def run() -> None:
        sent = b"".join(chunks)
        exchange = await handle(marked(stream_of(*chunks)), headers=headers)
        if begins_event_stream(chunks[0]) is False:
            assert [m["body"] for _, m in exchange.messages[1:]] == [*chunks, b""]
        elif not headers:
            assert exchange.body == sent

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())
