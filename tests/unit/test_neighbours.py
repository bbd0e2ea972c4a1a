"""Other frameworks, responses and middlewares around and inside ours, in process."""

import asyncio
import contextvars
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running, stream_of
from tests.support.middleware import marking

fastapi = pytest.importorskip("fastapi", reason="the minimal environment has no FastAPI")
sse_starlette = pytest.importorskip("sse_starlette", reason="nor sse-starlette")

pytestmark = pytest.mark.anyio


def messages_of(exchange: Exchange) -> list[str]:
    return [event.data for event in exchange.events if event.event == "message"]


async def test_sse_starlette_streams_pings_and_ends_through_us() -> None:
    async def endpoint(request: Request) -> Response:
        async def events() -> AsyncIterator[dict[str, str]]:
            for number in range(3):
                yield {"data": str(number)}
                await asyncio.sleep(1)

        response: Response = sse_starlette.EventSourceResponse(events(), ping=0.4)
        return response

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(SSEMiddleware, mark="*")])
    exchange = await handle(app, headers=EVENTSOURCE)
    assert messages_of(exchange) == ["0", "1", "2"]
    assert exchange.names[-1] == "complete"
    assert exchange.body.count(b": ping") >= 5
    assert exchange.overlaps == 0
    assert exchange.headers[b"cache-control"] == b"no-store, no-transform"


async def test_fastapis_own_event_streams_pass_with_dependencies_cleaned_up() -> None:
    from fastapi.sse import EventSourceResponse, ServerSentEvent  # noqa: PLC0415

    log: list[str] = []
    app = fastapi.FastAPI()
    app.add_middleware(
        SSEMiddleware, mark="*", stream_max_seconds=2, cap_action="complete", linger_seconds=0
    )

    async def resource() -> AsyncIterator[str]:
        try:
            yield "resource"
        finally:
            log.append("closed")

    depends = fastapi.Depends(resource)

    async def events(pause: float, held: Any = depends) -> Any:
        try:
            for number in range(3):
                yield ServerSentEvent(data=number)
                await asyncio.sleep(pause)
        finally:
            log.append("left")

    app.get("/", response_class=EventSourceResponse)(events)
    finished = await handle(app, headers=EVENTSOURCE, query_string=b"pause=0.1")
    assert messages_of(finished) == ["0", "1", "2"]
    assert finished.names[-1] == "complete"
    capped = await handle(app, headers=EVENTSOURCE, query_string=b"pause=1.5")
    assert messages_of(capped) == ["0", "1"]
    assert json.loads(capped.events[-1].data)["reason"] == "duration_cap"
    async with running(
        app, Exchange(http_scope(headers=EVENTSOURCE, query_string=b"pause=0.5"))
    ) as left:
        await left.until("message")
        left.disconnect()
        assert left.task is not None
        await left.task
    assert sorted(log) == ["closed"] * 3 + ["left"] * 3


async def test_a_fastapi_stream_with_a_failed_generator_is_never_reported_as_finished() -> None:
    from fastapi.sse import EventSourceResponse  # noqa: PLC0415

    app = fastapi.FastAPI()
    app.add_middleware(SSEMiddleware, mark="*")

    async def events() -> Any:
        for number in range(2):
            yield {"number": number}
            await asyncio.sleep(0.01)
        raise ValueError

    app.get("/", response_class=EventSourceResponse)(events)
    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    with pytest.raises((ValueError, ExceptionGroup)):
        await app(exchange.scope, exchange.receive, exchange.send)
    assert exchange.names == ["start", "message", "message", "error"]


class _Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


_VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class _SetsVariable:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen: list[str] = scope.setdefault("seen", [])

        async def sending(message: Message) -> None:
            seen.append(_VARIABLE.get())
            await send(message)

        token = _VARIABLE.set("set")
        try:
            await self.app(scope, receive, sending)
        finally:
            _VARIABLE.reset(token)


def _stacks() -> Iterator[tuple[str, list[Middleware]]]:
    for other in (
        Middleware(_Passing),
        Middleware(GZipMiddleware),
        Middleware(CORSMiddleware, allow_origins=["*"]),
    ):
        name = str(other.cls.__name__)  # type: ignore[attr-defined]  # a factory may have none
        yield f"{name}-outside", [other, Middleware(SSEMiddleware, mark="*")]
        yield f"{name}-inside", [Middleware(SSEMiddleware, mark="*"), other]


@pytest.mark.parametrize("stack", [pytest.param(stack, id=name) for name, stack in _stacks()])
async def test_a_stream_flows_at_once_through_other_middlewares(stack: list[Middleware]) -> None:
    async def endpoint(request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(9)

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/", endpoint)], middleware=stack)
    exchange = await handle(app, headers=[*EVENTSOURCE, (b"accept-encoding", b"gzip")])
    opened = exchange.messages[0][0]
    arrived = [at - opened for at, m in exchange.messages if b"data: 1\n" in m.get("body", b"")]
    assert arrived == [9.0]
    assert messages_of(exchange) == ["0", "1", "2"]
    assert exchange.names.count("heartbeat") == 5
    assert exchange.names[-1] == "complete"


def endless(left: list[str], stack: list[Middleware]) -> Starlette:
    """Return an app with a stream that appends to `left` when it is closed."""

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(1)
        finally:
            left.append("finally")

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    return Starlette(routes=[Route("/", endpoint)], middleware=stack)


@pytest.mark.parametrize("stack", [pytest.param(stack, id=name) for name, stack in _stacks()])
async def test_a_disconnect_reaches_the_app_through_other_middlewares(
    stack: list[Middleware],
) -> None:
    left: list[str] = []
    app = endless(left, stack)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    assert left == ["finally"]


@pytest.mark.parametrize("stack", [pytest.param(stack, id=name) for name, stack in _stacks()])
async def test_the_cap_reaches_the_app_through_other_middlewares(
    stack: list[Middleware], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSE_STREAM_MAX_SECONDS", "3")
    monkeypatch.setenv("SSE_CAP_ACTION", "complete")
    left: list[str] = []
    app = endless(left, stack)
    exchange = await handle(app, headers=EVENTSOURCE)
    assert json.loads(exchange.events[-1].data)["reason"] == "duration_cap"
    assert exchange.ended
    await asyncio.sleep(0.1)
    assert left == ["finally"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_heartbeats_are_written_in_the_context_of_their_request() -> None:
    app = _SetsVariable(marking(stream_of(b"data: x\n\n", pause=12)))
    exchange = await handle(app, headers=EVENTSOURCE)
    assert exchange.names.count("heartbeat") == 4
    assert set(exchange.scope["seen"]) == {"set"}


async def test_an_outer_middleware_may_time_out_and_lock_around_every_write() -> None:
    lock = anyio.Lock()

    def guarding(app: ASGIApp) -> ASGIApp:
        async def guard(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                async with lock:
                    with anyio.fail_after(1):
                        await asyncio.sleep(0.01)
                        await send(message)

            await app(scope, receive, sending)

        return guard

    app = guarding(marking(stream_of(*[b"data: x\n\n"] * 3, pause=6)))
    exchange = await handle(app, headers=EVENTSOURCE)
    assert messages_of(exchange) == ["x"] * 3
    assert exchange.names.count("heartbeat") == 4


def test_under_trio_a_stream_gets_headers_only_and_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        await anyio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": b"data: 1\n\n"})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    wrapped = marking(app)

    async def twice() -> None:
        for _ in range(2):
            await wrapped(http_scope(headers=EVENTSOURCE), receive, send)

    anyio.run(twice, backend="trio")
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n"] * 2
    headers = dict(sent[0]["headers"])
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"x-heartbeat-interval" not in headers
    assert headers[b"x-trace-id"]
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "asyncio" in warnings[0].getMessage()
