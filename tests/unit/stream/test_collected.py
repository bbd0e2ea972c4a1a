"""A client that accepts no event stream gets one JSON document, or a status."""

import asyncio
import json
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import (
    ConfigurationError,
    Event,
    SSEMiddleware,
    current_stream,
    drain,
    streaming,
)
from tests.support.asgi import Exchange, body, handle, http_scope, running, stream_of, stream_start
from tests.support.log_records import stream_fields

pytestmark = pytest.mark.anyio

JSON = [(b"accept", b"application/json")]
CHUNKS = (
    b"event: token\ndata: to\n\n",
    b": c\n\nevent: token\ndata: be\n\n",
    b"data: \xc3\xa9\n\n",
)


def texts(events: list[Event]) -> dict[str, Any]:
    return {"answer": [event.data for event in events]}


async def texts_later(events: list[Event]) -> dict[str, Any]:
    await asyncio.sleep(1)
    return texts(events)


def collecting(app: ASGIApp, collect: Any = texts, **options: Any) -> SSEMiddleware:
    registry = options.pop("registry", None)
    mark = streaming(name="chat", collect=collect, **options)
    return SSEMiddleware(app, marks={"/": mark}, registry=registry)


def error_of(exchange: Exchange) -> tuple[int, str]:
    return exchange.status, json.loads(exchange.body)["error"]["code"]


@pytest.mark.parametrize("collect", [texts, texts_later])
async def test_a_client_that_accepts_only_json_gets_one_document(collect: Any) -> None:
    app = stream_of(
        *CHUNKS, pause=7, headers=[(b"x-own", b"1"), (b"content-type", b"text/event-stream")]
    )
    exchange = await handle(collecting(app, collect), headers=JSON)
    assert exchange.status == 200
    assert exchange.body.decode() == '{"answer": ["to", "be", "\xe9"]}'
    headers = exchange.headers
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"%d" % len(exchange.body)
    assert (headers[b"vary"], headers[b"x-own"]) == (b"Accept", b"1")
    assert {b"x-trace-id", b"x-stream-id"} <= headers.keys()
    assert not {b"x-accel-buffering", b"x-heartbeat-interval"} & headers.keys()
    assert len(exchange.messages) == 2


@pytest.mark.parametrize(
    "accept",
    [None, b"*/*", b"text/event-stream", b"application/json, text/event-stream", b"text/*;q=0.1"],
)
async def test_any_other_client_gets_the_stream(accept: bytes | None) -> None:
    headers = [] if accept is None else [(b"accept", accept)]
    exchange = await handle(collecting(stream_of(*CHUNKS)), headers=headers)
    assert exchange.body == b"".join(CHUNKS)
    assert exchange.headers[b"vary"] == b"Accept"


async def test_the_document_is_made_of_the_transformed_events() -> None:
    app = collecting(stream_of(*CHUNKS), transform=lambda event: [event, event])
    document = json.loads((await handle(app, headers=JSON)).body)
    assert document["answer"] == ["to", "to", "be", "be", "\xe9", "\xe9"]


async def test_a_stream_that_is_collected_is_counted_with_a_kind_of_its_own() -> None:
    registry = CollectorRegistry()
    await handle(collecting(stream_of(*CHUNKS), registry=registry), headers=JSON)
    labels = {"route": "chat", "family": "json", "outcome": "finished"}
    assert registry.get_sample_value("sse_streams_total", labels) == 1


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    while True:
        await send(body(b"data: x\n\n"))
        await asyncio.sleep(1)


async def test_the_cap_is_a_504() -> None:
    opened_at = asyncio.get_running_loop().time()
    exchange = await handle(collecting(endless), headers=JSON)
    assert error_of(exchange) == (504, "duration_cap")
    assert exchange.messages[0][0] - opened_at == pytest.approx(60, abs=1)


async def test_a_drain_is_a_503() -> None:
    async with running(collecting(endless), Exchange(http_scope(headers=JSON))) as exchange:
        await asyncio.sleep(2)
        await drain()
        await exchange.until_end()
    assert error_of(exchange) == (503, "shutdown")
    assert exchange.headers[b"retry-after"] == b"5"


async def test_an_app_that_fails_is_a_500_and_its_exception_is_raised() -> None:
    async def failing(_: Request) -> StreamingResponse:
        async def events() -> Any:
            yield b"data: 1\n\n"
            raise LookupError("secret")

        return StreamingResponse(events(), media_type="text/event-stream")

    app = collecting(Starlette(routes=[Route("/", failing)]))
    async with running(app, Exchange(http_scope(headers=JSON))) as exchange:
        assert exchange.task is not None
        with pytest.raises((LookupError, ExceptionGroup)):  # old releases of Starlette group it
            await exchange.task
    assert error_of(exchange) == (500, "error")
    assert b"secret" not in exchange.body


async def test_an_app_that_does_not_end_its_response_is_a_500() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))

    assert error_of(await handle(collecting(app), headers=JSON)) == (500, "incomplete")


async def test_the_function_may_raise_a_status() -> None:
    def fail(_: list[Event]) -> None:
        raise HTTPException(422, "no answer", {"x-why": "empty"})

    exchange = await handle(collecting(stream_of(), fail), headers=JSON)
    assert (exchange.status, json.loads(exchange.body)) == (422, {"detail": "no answer"})
    assert exchange.headers[b"x-why"] == b"empty"


@pytest.mark.parametrize(
    "collect", [lambda _: 1 / 0, lambda _: object(), lambda _: float("nan"), lambda events: events]
)
async def test_a_function_that_fails_is_a_500(
    collect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = await handle(collecting(stream_of(*CHUNKS), collect), headers=JSON)
    assert error_of(exchange) == (500, "error")
    assert "collect of route chat has failed" in caplog.text


async def test_an_answer_over_the_limit_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    app = stream_of(*[b"data: %b\n\n" % (b"x" * 500)] * 10)
    mark = streaming(collect=texts)
    middleware = SSEMiddleware(app, marks={"/": mark}, replay_max_bytes=1024)
    assert error_of(await handle(middleware, headers=JSON)) == (500, "too_long")
    assert "exceeds SSE_REPLAY_MAX_BYTES" in caplog.text


async def test_a_response_that_is_no_stream_passes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send(body(b"{}", more=False))

    exchange = await handle(collecting(app), headers=JSON)
    assert (exchange.status, exchange.body) == (404, b"{}")


async def test_tokens_and_the_record_are_those_of_a_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().add_tokens(3)
        await stream_of(*CHUNKS)(scope, receive, send)

    await handle(collecting(app), headers=JSON)
    (record,) = stream_fields(caplog)
    assert (record["family"], record["tokens"], record["chunks"]) == ("json", 3, 3)


async def test_a_client_that_leaves_gets_nothing() -> None:
    async with running(collecting(endless), Exchange(http_scope(headers=JSON))) as exchange:
        await asyncio.sleep(2)
        exchange.refusal = OSError("gone")
        exchange.disconnect()
        await asyncio.sleep(100)
        assert exchange.messages == []


def test_a_collect_that_cannot_be_called_is_not_allowed() -> None:
    with pytest.raises(ConfigurationError, match="collect is 'x'"):
        streaming(collect="x")  # type: ignore[call-overload]
