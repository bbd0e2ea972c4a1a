"""A trace id that the handler reads before the response start is that of the span of its stream."""

import random
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware, current_stream, current_trace_id, resume_endpoint
from tests.support.asgi import body, handle
from tests.support.asgi import stream_start as start
from tests.support.middleware import marking
from tests.support.resuming import memory, read
from tests.support.traces import Traces, attributes_of, trace_id_of

pytestmark = pytest.mark.anyio

SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)
HEX = "5b8aa5a2d2c872e8321cf37308d69df2"


class EarlyReader:
    """An app that reads its trace id before its response start and after it.

    Attributes:
        seen: the ids.
    """

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self.seen.append(current_trace_id())
        await send(start())
        self.seen.append(current_trace_id())
        await send(body(b"data: 1\n\n", more=False))


class Numbered(IdGenerator):
    """A generator whose trace ids have a prefix with a meaning, as those of a vendor do."""

    def generate_span_id(self) -> int:
        return random.getrandbits(64)

    def generate_trace_id(self) -> int:
        return (0xABCD << 112) | random.getrandbits(96)


async def ids_of(
    traces: Traces, *headers: tuple[bytes, bytes], unmarked: bool = False
) -> list[str]:
    """Return the ids that are seen in one stream: twice by the app, by the client, in its span."""
    app = EarlyReader()
    wrap: Any = SSEMiddleware if unmarked else marking
    exchange = await handle(
        wrap(app, tracer_provider=traces.provider), headers=list(headers), path="/early"
    )
    span = trace_id_of(traces.spans[-1])
    return [*map(str, app.seen), exchange.headers[b"x-trace-id"].decode(), span]


@pytest.mark.parametrize("unmarked", [True, False], ids=["unmarked", "marked"])
async def test_an_id_that_is_read_before_the_start_is_that_of_the_span(*, unmarked: bool) -> None:
    traces = Traces()
    found = [await ids_of(traces, unmarked=unmarked) for _ in range(3)]
    assert [len(set(ids)) for ids in found] == [1, 1, 1]
    assert len({ids[0] for ids in found}) == 3
    assert all(span.parent is None for span in traces.spans)
    assert not any(span.links for span in traces.spans)


async def test_a_client_with_an_event_id_gets_the_id_of_the_span_too() -> None:
    traces, app = Traces(), EarlyReader()
    wrapped = marking(app, tracer_provider=traces.provider, store=memory())
    exchange = await read(wrapped, (b"last-event-id", b"17"))
    ids = {*app.seen, exchange.headers[b"x-trace-id"].decode(), trace_id_of(traces.span)}
    assert len(ids) == 1


async def test_the_id_of_a_request_that_is_no_stream_starts_no_span() -> None:
    traces, seen = Traces(), list[str | None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_trace_id())
        await send({"type": "http.response.start", "status": 200})
        await send(body(b"{}", more=False))

    await handle(SSEMiddleware(app, tracer_provider=traces.provider))
    assert traces.spans == []
    assert seen[0] is not None
    assert len(seen[0]) == 32


async def test_the_id_has_the_form_of_the_generator_of_the_provider() -> None:
    traces = Traces(id_generator=Numbered())
    ids = await ids_of(traces)
    assert len(set(ids)) == 1
    assert ids[0].startswith("abcd")
    ids = await ids_of(traces, (b"x-request-id", HEX.encode()))
    assert ids[0] == HEX  # as without a span
    assert ids[2].startswith("abcd")
    assert ids[2] == ids[3]


async def test_a_generator_that_is_marked_as_random_adopts_ids_of_requests() -> None:
    class Random(RandomIdGenerator):
        def is_trace_id_random(self) -> bool:
            return True

    traces = Traces(id_generator=Random())
    assert set(await ids_of(traces, (b"x-request-id", HEX.encode()))) == {HEX}


@pytest.mark.parametrize("name", [b"x-request-id", b"x-trace-id"])
async def test_an_id_of_the_request_in_the_form_of_a_trace_id_is_that_of_the_span(
    name: bytes,
) -> None:
    traces = Traces()
    assert set(await ids_of(traces, (name, HEX.encode()))) == {HEX}
    assert "sse.request_id" not in attributes_of(traces.span)
    assert traces.span.context is not None
    assert not traces.span.context.trace_flags & 2  # not known to be random


@pytest.mark.parametrize("value", ["0" * 32, HEX.upper(), "req-7", HEX + "0"])
async def test_any_other_id_of_the_request_is_an_attribute_of_the_span(value: str) -> None:
    traces = Traces()
    before, after, header, span = await ids_of(traces, (b"x-request-id", value.encode()))
    assert before == value
    assert after == header == span != value
    assert attributes_of(traces.span)["sse.request_id"] == value


async def test_the_context_of_another_propagator_is_read_before_the_start() -> None:
    class Single(TextMapPropagator):
        """Reads a context from one header, as the propagators of vendors do."""

        fields = {"x-vendor"}  # noqa: RUF012 - as the base class

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            found = getter.get(carrier, "x-vendor")
            if not found:
                return context
            ids = trace.SpanContext(int(found[0], 16), 7, is_remote=True, trace_flags=SAMPLED)
            return trace.set_span_in_context(trace.NonRecordingSpan(ids), context)

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            raise NotImplementedError

    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Single())
    try:
        traces = Traces()
        assert set(await ids_of(traces, (b"x-vendor", HEX.encode()))) == {HEX}
        assert traces.span.parent is not None
        # W3C's header is none of this propagator's, but its id has been read.
        traceparent = (b"traceparent", f"00-{HEX}-b7ad6b7169203331-01".encode())
        assert set(await ids_of(traces, traceparent)) == {HEX}
        assert traces.spans[-1].parent is None
    finally:
        propagate.set_global_textmap(before)


async def test_the_sampler_decides_by_the_id_that_was_read() -> None:
    traces, recorded = Traces(sampler=TraceIdRatioBased(0.5)), 0
    for number in range(40):
        app = EarlyReader()
        await handle(SSEMiddleware(app, tracer_provider=traces.provider), path=f"/{number}")
        assert app.seen[0] == app.seen[1]
        recorded += int(str(app.seen[0])[16:], 16) < 1 << 63
    assert len(traces.spans) == recorded
    assert 0 < recorded < 40


async def test_two_middlewares_and_the_app_share_one_tracer() -> None:
    traces = Traces()
    for _ in range(2):
        assert len(set(await ids_of(traces))) == 1
    # The generator of the middleware returns new ids for spans that it does not start.
    tracer = traces.provider.get_tracer("sse_middleware")
    ids = {tracer.start_span("own").get_span_context().trace_id for _ in range(5)}
    assert len(ids) == 5


async def test_a_stream_by_name_has_the_id_that_its_endpoint_has_read() -> None:
    traces, seen = Traces(), list[str | None]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_trace_id())
        if scope["path"] == "/resume":
            await resume_endpoint("chat")(scope, receive, send)
            return
        current_stream().name("chat")
        await send(start())
        await send(body(b"data: 1\n\n", more=False))

    wrapped = marking(
        app,
        tracer_provider=traces.provider,
        store=memory(),
        identify=lambda _: "ann",
    )
    await read(wrapped, path="/open")
    exchange = await read(wrapped, path="/resume?after=0")
    assert seen[-1] is not None
    assert exchange.status in {200, 204}
    if exchange.status == 200:
        assert seen[-1] == exchange.headers[b"x-trace-id"].decode() == trace_id_of(traces.spans[-1])


class OtherSdk:
    """A provider of another SDK: its tracers accept no id generator."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        tracer = self._provider.get_tracer(*args, **kwargs)

        class Tracer:
            start_span = staticmethod(tracer.start_span)

        return Tracer()


async def test_a_tracer_without_an_id_generator_is_left_alone() -> None:
    traces, app = Traces(), EarlyReader()
    provider: Any = OtherSdk(traces.provider)
    exchange = await handle(SSEMiddleware(app, tracer_provider=provider))
    assert app.seen[1] == exchange.headers[b"x-trace-id"].decode() == trace_id_of(traces.span)
