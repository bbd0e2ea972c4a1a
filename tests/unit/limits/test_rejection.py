"""Rejections: the response in place of the app's, and its effect on the app, logs and metrics."""

import asyncio
import json
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.support.admission import FULL, LET_IN, endless
from tests.support.asgi import EVENTSOURCE, stream_start
from tests.support.limiting import ANY, PLAIN, answer, asked, limited, tab
from tests.support.resuming import Deaf, Listening, value

pytestmark = pytest.mark.anyio


# In place of the response start


async def test_an_app_that_is_rejected_at_its_start_receives_a_disconnect() -> None:
    ends: list[str] = []

    async def later() -> None:
        ends.append("background")

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        events = endless()._events()
        background = BackgroundTask(later)
        response = StreamingResponse(events, media_type="text/event-stream", background=background)
        try:
            await response(scope, receive, send)
        finally:
            ends.append("finally")

    app = limited(streams, max_streams=1)
    async with asked(app, ANY) as first:
        await first.until("message")
        async with asked(app, ANY, address="192.0.2.2") as second:
            assert await answer(second) == FULL
            assert second.task is not None
            await second.task
        assert len(second.messages) == 2
        assert ends == ["background", "finally"]


@pytest.mark.parametrize("app_class", [Deaf, Listening])
async def test_an_app_that_continues_after_a_rejection_is_cancelled(app_class: Any) -> None:
    kept = asyncio.Event()

    async def first_one(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await kept.wait()

    deaf = app_class()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await (first_one if scope["path"] == "/first" else deaf)(scope, receive, send)

    app = limited(inner, max_streams=1)
    async with asked(app, ANY, path="/first") as first:
        await answer(first)
        async with asked(app, ANY, address="192.0.2.2") as second:
            assert await answer(second) == FULL
            assert second.task is not None
            await second.task
        assert not second.messages[-1][1].get("more_body", False)
        assert len(second.messages) == 2
        ((_, how),) = deaf.ends
        assert how == ("CancelledError" if app_class is Deaf else "left")


async def test_an_exception_after_a_rejection_is_raised() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        if scope["path"] == "/first":
            await asyncio.sleep(1000)
        raise ValueError("swordfish")

    app = limited(inner, max_streams=1)
    async with asked(app, ANY, path="/first") as first:
        await answer(first)
        async with asked(app, ANY, address="192.0.2.2") as second:
            assert await answer(second) == FULL
            assert second.task is not None
            with pytest.raises(ValueError, match="swordfish"):
                await second.task
        assert b"swordfish" not in second.body


# At any moment


async def test_a_client_that_leaves_during_its_check_takes_no_slot() -> None:
    app = limited(endless(), max_streams_per_client=1, limit_action="reject")
    async with tab(app) as one:
        await one.until("message")
        for headers in (EVENTSOURCE, ANY):
            async with asked(app, headers) as two:
                await asyncio.sleep(0.05)  # its admission is being checked
                assert two.messages == []
                assert two.task is not None
                two.task.cancel()
    assert app._admission is not None
    assert len(app._admission.slots) == 0
    async with tab(app) as three:
        assert await answer(three) == LET_IN


async def test_a_handler_that_has_not_responded_yet_holds_its_slot() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(10)
        await endless()(scope, receive, send)

    app = limited(slow, max_streams=1)
    async with asked(app, PLAIN) as one:
        await asyncio.sleep(1)
        async with asked(app, PLAIN, address="192.0.2.2") as two:
            assert await answer(two) == FULL
        assert await answer(one) == LET_IN


# Metrics and logs


async def test_rejections_are_counted_by_route_and_reason_and_no_log_line_has_an_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    app = limited(
        Starlette(routes=[Route("/chats/{id}", endless())]),
        max_streams=2,
        max_streams_per_client=1,
        registry=registry,
    )
    async with asked(app, PLAIN, path="/chats/1") as one:
        await answer(one)
        async with asked(app, PLAIN, path="/chats/2"):
            await asyncio.sleep(1)
        async with tab(app, path="/chats/3", address="192.0.2.2") as two:
            await answer(two)
            async with asked(app, PLAIN, path="/chats/4", address="192.0.2.3"):
                await asyncio.sleep(1)
            async with tab(app, path="/chats/4", address="192.0.2.3"):
                await asyncio.sleep(1)
    route = "/chats/{id}"
    assert value(registry, "sse_rejected_total", route=route, reason="client") == 1
    assert value(registry, "sse_rejected_total", route=route, reason="process") == 2
    assert caplog.text.count(f"stream of route {route} rejected: process") == 2
    assert "192.0.2" not in caplog.text


async def test_a_page_can_read_a_rejection_if_cors_is_outside() -> None:
    inner = Starlette(routes=[Route("/", endless())])
    inner.add_middleware(SSEMiddleware, mark="*", max_streams=1, stream_max_seconds=None)
    inner.add_middleware(CORSMiddleware, allow_origins=["https://app.example"])
    origin = (b"origin", b"https://app.example")
    async with asked(inner, PLAIN, origin) as one:
        await answer(one)
        async with asked(inner, PLAIN, origin, address="192.0.2.2") as two:
            assert await answer(two) == FULL
        async with tab(inner, origin, address="192.0.2.2") as three:
            await three.until_end()
        for refused in (two, three):
            assert refused.headers[b"access-control-allow-origin"] == b"https://app.example"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"accept", b"")],
        [(b"accept", b"," * 10_000)],
        [(b"accept", b"\xff\xfe;q=\0")],
        [(b"accept", b"text/event-stream"), (b"accept", b"\xff")],
        [(b"accept", b"text/event-stream"), (b"x-forwarded-for", b"\xff" * 50_000)],
        [(b"accept", b"text/event-stream"), (b"authorization", b"\0" * 50_000)],
        [(b"accept", b"text/event-stream"), (b"cookie", b"session=;=;;\xff")],
        [(b"accept", b"text/event-stream"), (b"last-event-id", b"\xff")],
    ],
)
@pytest.mark.parametrize("client", [None, (), ("", 0), ("\udc80", 1), ("[::1", 1), (None, None)])
async def test_hostile_requests_are_admitted_or_rejected_like_any_other(
    headers: list[tuple[bytes, bytes]], client: Any
) -> None:
    app = limited(
        endless(),
        max_streams=1,
        max_streams_per_client=1,
        identity_cookies=("session",),
        trusted_proxies=("unix", "0.0.0.0/0", "::/0"),
    )
    async with asked(app, headers, client=client) as one:
        assert await answer(one) == LET_IN
        async with asked(app, headers, client=client) as two:
            assert (await answer(two))[0] in (429, 503)
    assert app._admission is not None
    assert len(app._admission.slots) == 0
    assert json.loads(two.body)["error"]["code"] in ("server_full", "too_many_streams")
