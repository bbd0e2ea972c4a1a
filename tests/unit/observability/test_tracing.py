"""Traces: one span of OpenTelemetry for each stream."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware, current_stream, current_trace_id, drain, streaming
from tests.support.asgi import EVENTSOURCE, Exchange, body, handle, http_scope, running, stream_of
from tests.support.asgi import stream_start as start
from tests.support.middleware import marking
from tests.support.resuming import LINGER, Counting, id_of, left, memory, read, resumable, returning
from tests.support.traces import Traces, attributes_of, events_of, span_id_of, trace_id_of

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())


async def one_event() -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"


def traced(app: ASGIApp, traces: Traces, **options: Any) -> SSEMiddleware:
    return resumable(app, tracer_provider=traces.provider, **options)


# Parents and ids


async def test_a_stream_has_one_span_with_the_trace_id_of_its_header() -> None:
    traces = Traces()
    exchange = await read(traced(Counting(3), traces), path="/numbers")
    span = traces.span
    assert exchange.headers[b"x-trace-id"].decode() == trace_id_of(span)
    assert span.parent is None
    assert span.kind is SpanKind.SERVER
    assert span.name == "GET unmatched stream"
    assert span.status.status_code is StatusCode.UNSET
    found = dict(attributes_of(span))
    assert found.pop("sse.stream_id") == exchange.headers[b"x-stream-id"].decode()
    assert found.pop("sse.sent_bytes") == len(exchange.body)
    assert found == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "url.path": "/numbers",
        "url.scheme": "http",
        "sse.chunks": 3,
        "sse.disconnects": 0,
        "sse.family": "eventsource",
        "sse.heartbeats": 0,
        "sse.outcome": "finished",
        "sse.resumed": False,
        "sse.route": "unmatched",
        "sse.time_to_first_event": 0.0,
    }


async def test_the_span_is_the_child_of_the_incoming_context() -> None:
    traces = Traces()
    exchange = await read(traced(Counting(), traces), TRACEPARENT)
    span = traces.span
    assert exchange.headers[b"x-trace-id"].decode() == trace_id_of(span) == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.kind is SpanKind.SERVER


async def test_the_span_is_the_child_of_the_span_that_is_current() -> None:
    traces = Traces()
    app = traced(Counting(), traces)
    tracer = traces.provider.get_tracer("server")
    with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER) as server:
        exchange = await read(app, TRACEPARENT)
    ids = server.get_span_context()
    span, _ = traces.spans
    assert span.parent is not None
    assert span.parent.span_id == ids.span_id
    assert span.kind is SpanKind.INTERNAL
    assert exchange.headers[b"x-trace-id"].decode() == f"{ids.trace_id:032x}"
    assert "url.path" not in attributes_of(span)


async def test_a_remote_context_that_is_current_is_the_parent_of_a_span_of_the_server() -> None:
    traces = Traces()
    token = otel_context.attach(extract({"traceparent": TRACEPARENT[1].decode()}))
    try:
        await read(traced(Counting(), traces))
    finally:
        otel_context.detach(token)
    assert trace_id_of(traces.span) == TRACE
    assert traces.span.kind is SpanKind.SERVER


async def test_the_handler_gets_the_trace_id_of_the_span_before_and_after_the_start() -> None:
    traces, seen = Traces(), list[str | None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_trace_id())
        await send(start())
        seen.append(current_trace_id())
        await send(body(b"data: 1\n\n", more=False))

    wrapped = traced(app, traces)
    with traces.provider.get_tracer("server").start_as_current_span("GET /"):
        exchange = await read(wrapped)
    assert seen == [exchange.headers[b"x-trace-id"].decode()] * 2


async def test_responses_of_the_middleware_have_the_trace_id_of_the_current_span() -> None:
    traces = Traces()
    app = traced(Counting(), traces, max_streams=1, limit_action="reject")
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        with traces.provider.get_tracer("server").start_as_current_span("GET /") as server:
            rejected = await read(app)
    assert rejected.status == 503
    expected = f"{server.get_span_context().trace_id:032x}"
    assert rejected.headers[b"x-trace-id"].decode() == expected


async def test_unmarked_streams_have_spans_and_other_responses_none() -> None:
    traces = Traces()

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(one_event(), 201, media_type="text/event-stream")

    async def other(request: Request) -> Response:
        return Response("plain")

    routes = [Route("/items/{id}", endpoint, methods=["POST"]), Route("/other", other)]
    app = SSEMiddleware(Starlette(routes=routes), tracer_provider=traces.provider)
    await handle(app, path="/other")
    exchange = await handle(app, method="POST", path="/items/1")
    span = traces.span
    assert span.name == "POST /items/{id} stream"
    assert attributes_of(span)["http.route"] == "/items/{id}"
    assert attributes_of(span)["http.response.status_code"] == 201
    assert attributes_of(span)["sse.family"] == "unmarked"
    assert exchange.headers[b"x-trace-id"].decode() == trace_id_of(span)


async def test_a_span_that_is_not_sampled_gives_its_trace_id_and_is_not_exported() -> None:
    traces = Traces(sampler=ALWAYS_OFF)
    exchange = await read(traced(Counting(), traces), TRACEPARENT)
    assert exchange.headers[b"x-trace-id"].decode() == TRACE
    assert traces.spans == []


async def test_without_a_provider_there_is_no_span_and_the_trace_id_is_that_of_the_request() -> (
    None
):
    exchange = await handle(marking(stream_of(b"data: 1\n\n")), headers=[(b"x-trace-id", b"a-1")])
    assert exchange.headers[b"x-trace-id"] == b"a-1"
    no_op = trace.NoOpTracerProvider()
    app = marking(stream_of(b"data: 1\n\n"), tracer_provider=no_op)
    exchange = await handle(app, headers=[(b"x-trace-id", b"a-1")])
    assert exchange.headers[b"x-trace-id"] == b"a-1"


# The life of a stream


async def test_the_span_of_a_stream_that_lingers_ends_with_the_stream() -> None:
    traces = Traces()
    async with left(traced(Counting(1000), traces), 2) as first:
        assert traces.spans == []
        await asyncio.sleep(LINGER - 1)
        assert traces.spans == []
        assert first.task is not None
        await first.task
    span = traces.span
    assert attributes_of(span)["sse.outcome"] == "disconnected"
    assert attributes_of(span)["sse.disconnects"] == 1
    assert events_of(span) == ["sse.first_event", "sse.disconnect"]
    assert span.status.status_code is StatusCode.UNSET


async def test_the_span_of_a_connection_that_resumes_is_linked_to_that_of_the_stream() -> None:
    traces = Traces()
    app = traced(Counting(6), traces)
    async with left(app, 2) as first:
        async with returning(app, id_of(first, 2), TRACEPARENT) as second:
            await second.until_end()
        assert first.task is not None
        await first.task
    resumed, span = sorted(traces.spans, key=lambda one: not attributes_of(one)["sse.resumed"])
    assert events_of(span) == ["sse.first_event", "sse.disconnect", "sse.resume"]
    assert attributes_of(span)["sse.chunks"] == 6
    assert attributes_of(resumed)["sse.resumed_after"] == 2
    assert attributes_of(resumed)["sse.outcome"] == "finished"
    assert trace_id_of(resumed) == second.headers[b"x-trace-id"].decode() == TRACE
    (link,) = resumed.links
    assert f"{link.context.trace_id:032x}" == trace_id_of(span)
    assert link.context.span_id == span_id_of(span)


async def test_a_request_that_is_attached_is_linked_too_and_names_the_cache() -> None:
    traces = Traces()

    @streaming(attach="kept")
    async def endpoint(request: Request) -> Response:
        return StreamingResponse(one_event(), media_type="text/event-stream")

    app = SSEMiddleware(
        Starlette(routes=[Route("/", endpoint)]),
        store=memory(),
        identify=lambda _: "ann",
        tracer_provider=traces.provider,
    )
    for _ in range(2):
        await read(app)
    first, second = traces.spans
    assert attributes_of(first)["sse.cache"] == "miss"
    assert attributes_of(second)["sse.cache"] == "hit"
    assert [link.context.span_id for link in second.links] == [span_id_of(first)]


async def test_a_head_of_a_stream_has_no_span() -> None:
    traces = Traces()
    app = traced(Counting(), traces)
    await handle(app, method="HEAD", headers=EVENTSOURCE)
    assert traces.spans == []


async def test_the_cap_is_an_event_and_no_error() -> None:
    traces = Traces()
    await read(traced(Counting(100), traces, stream_max_seconds=3))
    assert events_of(traces.span) == ["sse.first_event", "sse.cap"]
    assert attributes_of(traces.span)["sse.outcome"] == "duration_cap"
    assert traces.span.status.status_code is StatusCode.UNSET


async def test_the_drain_is_an_event() -> None:
    traces = Traces()
    app = traced(Counting(100), traces, drain_seconds=1, mark=())
    marked = traced(Counting(100), traces, drain_seconds=1)
    async with (
        running(app, Exchange(http_scope(headers=EVENTSOURCE))) as unmarked,
        running(marked, Exchange(http_scope(headers=EVENTSOURCE))) as exchange,
    ):
        await exchange.until("message")
        await unmarked.until("message")
        await drain()
        await asyncio.sleep(3)
    for span in traces.spans:
        assert events_of(span) == ["sse.first_event", "sse.drain"]
        assert attributes_of(span)["sse.outcome"] == "shutdown"
    assert len(traces.spans) == 2


async def test_an_exception_of_the_app_is_an_error_without_its_text() -> None:
    traces = Traces()

    class ModelError(Exception):
        pass

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"data: 1\n\n"))
        raise ModelError("the password is hunter2")

    for mark in ("*", ()):
        with pytest.raises(ModelError):
            await read(traced(app, traces, mark=mark))
    assert len(traces.spans) == 2
    for span in traces.spans:
        assert attributes_of(span)["sse.outcome"] == "error"
        assert attributes_of(span)["error.type"] == f"{ModelError.__qualname__}"
        assert events_of(span)[-1] == "sse.error"
        assert span.status.status_code is StatusCode.ERROR
        assert "hunter2" not in span.to_json()


async def test_a_cancelled_request_ends_its_span() -> None:
    traces = Traces()
    async with running(
        traced(Counting(100), traces), Exchange(http_scope(headers=EVENTSOURCE))
    ) as exchange:
        await exchange.until("message")
    assert attributes_of(traces.span)["sse.outcome"] in ("shutdown", "aborted")


# Attributes


async def test_what_the_handler_reports_is_in_the_span() -> None:
    traces = Traces()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = current_stream()
        await send(start())
        await send(body(b"data: 1\n\n"))
        stream.add_tokens(7)
        stream.annotate(tier="free", seconds=0.5, huge=1 << 80, cached=True, odd="\ud800", rest=[1])
        stream.annotate(**{"gen_ai.request.model": "small"})
        await send(body(b"", more=False))

    await read(traced(app, traces))
    found = attributes_of(traces.span)
    assert found["gen_ai.usage.output_tokens"] == 7
    assert found["gen_ai.request.model"] == "small"
    prefix = "sse.annotation."
    own = {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}
    assert own == {
        "tier": "free",
        "seconds": 0.5,
        "huge": str(1 << 80),
        "cached": True,
        "odd": "?",
        "rest": "[1]",
    }


async def test_a_chat_completion_has_the_attributes_of_a_generative_model() -> None:
    traces = Traces()
    chunk = (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"small-1",'
        b'"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
    )
    app = traced(stream_of(chunk, b"data: [DONE]\n\n"), traces)
    await handle(app, method="POST")
    found = attributes_of(traces.span)
    assert found["sse.family"] == "openai"
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.response.id"] == "chatcmpl-1"
    assert found["gen_ai.response.model"] == "small-1"


async def test_the_source_that_has_answered_is_in_the_span() -> None:
    traces = Traces()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        current_stream().note_source("\ud800", is_fallback=True)
        await send(body(b"data: 1\n\n", more=False))

    await read(traced(app, traces))
    assert attributes_of(traces.span)["sse.source"] == "?"
    assert attributes_of(traces.span)["sse.fallback_used"] is True


async def test_the_usage_that_a_provider_reports_is_in_the_span() -> None:
    traces = Traces()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for call, cost in (("one", "0.25"), ("two", "0.5")):
            usage = {"prompt_tokens": 10, "completion_tokens": 2}
            current_stream().usage(usage, call=call, model="m", cost=Decimal(cost))
        await send(body(b"data: 1\n\n", more=False))

    await read(traced(app, traces))
    found = attributes_of(traces.span)
    assert found["gen_ai.usage.input_tokens"] == 20
    assert found["gen_ai.usage.output_tokens"] == 4
    assert found["sse.cost_usd"] == 0.75
    assert "sse.models" not in found


async def test_hostile_requests_give_bounded_text_without_lone_surrogates() -> None:
    traces = Traces()
    headers = [(b"traceparent", b"\xff"), (b"baggage", b"\xff=\xff;," * 10_000)]
    scope = http_scope(headers=headers, method="EVIL\ud800", path_template="/\ud800")
    scope["path"] = "/\ud800" + "x" * 100_000
    exchange = Exchange(scope)
    async with running(traced(stream_of(b"data: 1\n\n"), traces), exchange):
        await exchange.until_end()
    found = attributes_of(traces.span)
    assert traces.span.name == "_OTHER /? stream"
    assert found["http.request.method"] == "_OTHER"
    assert len(found["url.path"]) == 1000
    for text in found.values():
        str(text).encode()
