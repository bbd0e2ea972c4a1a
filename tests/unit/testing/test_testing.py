"""The public test tools: the in-process client, the clock, and their page in the docs."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sse_middleware.testing import Exchange, FakeClock, handle, http_scope, running
from tests.support.asgi import body, stream_of, stream_start

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[3] / "docs" / "testing.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """Count, an event a second, until the client has left."""
    left = asyncio.ensure_future(receive())
    if (await left)["type"] == "http.request":
        left = asyncio.ensure_future(receive())
    await send(stream_start())
    number = 0
    while not left.done():
        number += 1
        await send(body(b"event: n\nid: %d\nretry: 1500\ndata: %d\n\n" % (number, number)))
        await asyncio.sleep(1)
    await send(body(b"", more=False))


# The client


async def test_an_endless_stream_is_read_until_the_client_leaves() -> None:
    async with running(endless, Exchange(http_scope())) as exchange:
        events = await exchange.until_count(3)
        assert [event.data for event in events] == ["1", "2", "3"]
        assert (exchange.last_event_id, exchange.retry) == ("3", 1500)
        assert not exchange.ended
        exchange.disconnect()
        await exchange.until_end()
        assert exchange.task is not None
        await exchange.task
    assert (exchange.status, exchange.headers) == (200, {b"content-type": b"text/event-stream"})
    assert exchange.body.count(b"data") == 3
    assert exchange.names == ["n"] * 3


async def test_a_client_that_is_blocked_reads_nothing() -> None:
    async with running(endless, Exchange(http_scope())) as exchange:
        await exchange.until("n")
        exchange.block()
        await asyncio.sleep(10)
        assert len(exchange.events) == 1
        exchange.unblock()
        assert len(await exchange.until_count(5)) == 5


async def test_until_returns_the_latest_event_of_its_type() -> None:
    app = stream_of(b"event: a\ndata: 1\n\nevent: b\ndata: 2\n\nevent: a\ndata: 3\n\n")
    async with running(app, Exchange(http_scope())) as exchange:
        assert (await exchange.until("a")).data == "3"
        assert [event.data for event in await exchange.until_count(2, "a")] == ["1", "3"]


@pytest.mark.parametrize(
    "chunks", [[b"event: a\nda", b"ta: 1\n", b"\n"], [b"event: a\ndata: 1\n\n"]]
)
async def test_events_may_come_in_pieces(chunks: list[bytes]) -> None:
    async with running(stream_of(*chunks, pause=1), Exchange(http_scope())) as exchange:
        assert (await exchange.until("a")).data == "1"


async def test_a_wait_for_an_impossible_event_fails_with_the_received_events() -> None:
    async with running(stream_of(b"event: a\ndata: 1\n\n"), Exchange(http_scope())) as exchange:
        with pytest.raises(AssertionError, match="without an event 'b', it had a"):
            await exchange.until("b")
        with pytest.raises(AssertionError, match="without 2 events a, it had a"):
            await exchange.until_count(2, "a")
        with pytest.raises(AssertionError, match="without 2 events, it had a"):
            await exchange.until_count(2)


async def test_to_wait_for_an_app_that_has_failed_fails_with_its_exception() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(1)
        raise LookupError("no such thing")

    async with running(failing, Exchange(http_scope())) as exchange:
        with pytest.raises(AssertionError, match="without an end of the response") as raised:
            await exchange.until_end()
    assert isinstance(raised.value.__cause__, LookupError)


async def test_to_wait_for_an_app_that_was_cancelled_fails() -> None:
    async with running(endless, Exchange(http_scope())) as exchange:
        await exchange.until("n")
        assert exchange.task is not None
        exchange.task.cancel()
        with pytest.raises(AssertionError, match="without an event 'x'"):
            await exchange.until("x")


@pytest.mark.parametrize("seconds", [10.0, 0.5])
async def test_a_wait_has_a_limit_and_fails_with_the_received_events(seconds: float) -> None:
    exchange = Exchange(http_scope(), timeout=seconds)
    async with running(endless, exchange):
        loop = asyncio.get_running_loop()
        await exchange.until("n")
        began = loop.time()
        with pytest.raises(AssertionError, match=rf"'x' has not arrived within {seconds:g} s, it"):
            await exchange.until("x")
        assert loop.time() - began == pytest.approx(seconds)
    assert Exchange(http_scope()).timeout == 10


async def test_a_wait_without_a_limit_takes_as_long_as_the_event() -> None:
    app = stream_of(b"event: a\ndata: 1\n\n", pause=3600)
    async with running(app, Exchange(http_scope(), timeout=None)) as exchange:
        assert (await exchange.until("a")).data == "1"
    assert (await handle(app, timeout=None)).names == ["a"]


async def test_an_app_that_does_not_return_in_time_is_cancelled() -> None:
    ended: list[str] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await stream_of(b"event: a\ndata: 1\n\n", pause=6)(scope, receive, send)
        finally:
            ended.append("finally")

    with pytest.raises(AssertionError, match="has not returned within 10 s, it had a"):
        await handle(slow)
    assert ended == ["finally"]


async def test_a_timeout_of_the_app_is_raised_as_it_is() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("of a database")

    with pytest.raises(TimeoutError, match="of a database"):
        await handle(failing)


async def test_a_client_reconnects_with_its_last_event_id() -> None:
    received: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = "changed"
        received.append((scope["method"], scope["headers"], await receive()))
        await stream_of(b"id: %d\ndata: 1\n\n" % len(received))(scope, receive, send)

    headers = [(b"accept", b"*/*"), (b"last-event-id", b"0")]
    exchange = Exchange(http_scope(method="POST", path="/a", headers=headers), body=b"{}")
    async with running(app, exchange):
        await exchange.until("message")
        async with running(app, exchange.reconnect(query_string=b"q")) as again:
            await again.until_end()
            assert again.scope["query_string"] == b"q"
    request = {"type": "http.request", "body": b"{}", "more_body": False}
    assert received == [
        ("POST", headers, request),
        ("POST", [headers[0], (b"last-event-id", b"1")], request),
    ]
    other = again.reconnect(headers=[(b"x", b"y")])
    assert other.scope["headers"] == [(b"x", b"y"), (b"last-event-id", b"2")]
    assert (other.scope["path"], other.timeout) == ("/a", again.timeout)
    assert Exchange(http_scope()).reconnect().scope["headers"] == []


async def test_a_response_that_has_not_started_has_no_status() -> None:
    with pytest.raises(AssertionError, match="has not started"):
        _ = Exchange(http_scope()).status


async def test_a_write_to_a_client_that_is_gone_is_rejected() -> None:
    refusal = ConnectionResetError("gone")
    async with running(endless, Exchange(http_scope())) as exchange:
        await exchange.until("n")
        exchange.refusal = refusal
        assert exchange.task is not None
        with pytest.raises(ConnectionResetError):
            await exchange.task


async def test_writes_that_overlap_are_counted() -> None:
    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(1)
        await asyncio.gather(*(send(body(b"data: 1\n\n")) for _ in range(3)))

    async with running(hasty, Exchange(http_scope())) as exchange:
        await asyncio.sleep(0.5)
        exchange.block()
        await asyncio.sleep(1)
        exchange.unblock()
        await exchange.until_count(3)
    assert exchange.overlaps == 2


async def test_a_request_has_its_body_and_the_given_scope_values() -> None:
    received: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.extend((scope["method"], scope["query_string"], scope["extra"], await receive()))
        await stream_of()(scope, receive, send)

    exchange = await handle(
        app, method="POST", path="/ä", query_string=b"a=1", extra=1, body=b"{}", headers=[]
    )
    request = {"type": "http.request", "body": b"{}", "more_body": False}
    assert received == ["POST", b"a=1", 1, request]
    assert exchange.ended
    assert exchange.receives == 1
    assert exchange.scope["raw_path"] == "/ä".encode()


async def test_the_app_is_cancelled_after_the_block() -> None:
    async def hanging(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    async with running(hanging, Exchange(http_scope())) as exchange:
        await asyncio.sleep(1)
        assert exchange.status == 200
    assert exchange.task is not None
    assert exchange.task.cancelled()
    assert asyncio.all_tasks() == before


# The clock


def test_a_fake_clock_moves_only_by_advance() -> None:
    clock = FakeClock(10)
    assert (clock(), clock()) == (10, 10)
    clock.advance(0.5)
    clock.advance(0)
    assert clock() == 10.5


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_fake_clock_never_moves_back(seconds: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        FakeClock().advance(seconds)


# The page


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_tests_of_the_page_pass(snippet: str) -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet, "snippet", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    for suite in [value for name, value in names.items() if name.startswith("Test")]:
        tests += [getattr(suite(), name) for name in dir(suite) if name.startswith("test_a_log_")]
    assert len(tests) >= 2
    for test in tests:
        test()
