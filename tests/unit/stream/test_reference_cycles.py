"""A stream that has ended is freed at once, by its reference count."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sse_middleware import current_trace_id
from sse_middleware.limits.admission_check import AdmissionCheck
from sse_middleware.limits.slots import Slot
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.intake import Intake
from sse_middleware.stream.app_writer import AppWriter
from sse_middleware.stream.cancellation import AppCancellation
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.current import CurrentStream
from sse_middleware.stream.discarded_response import DiscardedResponse
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.producer_control import ProducerControl
from sse_middleware.stream.producer_log import ProducerLog
from sse_middleware.stream.responder import Responder
from sse_middleware.stream.sender import Sender
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, stream_start
from tests.support.limiting import ANY, PLAIN, answer, asked, limited, reasons, tab
from tests.support.middleware import marking
from tests.support.resuming import Listening

pytestmark = pytest.mark.anyio

PER_REQUEST = (
    AdmissionCheck,
    AppCancellation,
    AppWriter,
    Connection,
    CurrentStream,
    Dialect,
    DiscardedResponse,
    Intake,
    Producer,
    ProducerControl,
    ProducerLog,
    Responder,
    Sender,
    Slot,
    StreamRecord,
)
LIMITS: list[dict[str, Any]] = [
    {"max_streams": 1},
    {"max_streams_per_client": 1},
    {"max_streams": 1, "max_streams_per_client": 1},
]


@contextmanager
def without_cycles() -> Iterator[None]:
    """Check that the block leaves none of our objects to the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        before = {id(thing) for thing in gc.get_objects() if isinstance(thing, PER_REQUEST)}
        yield
        left = [thing for thing in gc.get_objects() if isinstance(thing, PER_REQUEST)]
        assert [thing for thing in left if id(thing) not in before] == []
    finally:
        gc.enable()


async def three_events(_: Scope, __: Receive, send: Send) -> None:
    await send(stream_start())
    for _number in range(3):
        await send(body(b"data: x\n\n"))
        await asyncio.sleep(1)
    await send(body(b"", more=False))


async def until_returned(exchange: Exchange) -> None:
    """Wait for the app to return; a cancelled task would keep our frames in its traceback."""
    assert exchange.task is not None
    await exchange.task
    await asyncio.sleep(0.1)  # callbacks of the loop have references until they have run


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("headers", [EVENTSOURCE, PLAIN, ANY], ids=["eventsource", "plain", "any"])
async def test_a_stream_with_a_slot_is_freed_when_it_ends(
    headers: list[tuple[bytes, bytes]], limits: dict[str, Any]
) -> None:
    app = limited(three_events, replay_max_events=0, **limits)

    async def run() -> None:
        async with asked(app, headers) as exchange:
            assert await answer(exchange) == (200, "")
            await until_returned(exchange)

    await run()
    with without_cycles():
        await run()


@pytest.mark.parametrize("headers", [EVENTSOURCE, PLAIN], ids=["eventsource", "plain"])
async def test_a_stream_with_a_slot_is_freed_when_its_client_disconnects(
    headers: list[tuple[bytes, bytes]],
) -> None:
    app = limited(Listening(), replay_max_events=0, max_streams=1)

    async def disconnect() -> None:
        async with asked(app, headers) as exchange:
            await exchange.until_count(1)
            exchange.disconnect()
            await until_returned(exchange)

    await disconnect()
    with without_cycles():
        await disconnect()


async def test_an_evicted_stream_is_freed() -> None:
    app = limited(three_events, max_streams_per_client=1, replay_max_events=0)

    async def evict() -> None:
        async with tab(app) as old:
            await old.until_count(2)
            async with tab(app) as new:
                await until_returned(old)
                await until_returned(new)
        assert reasons(old) == ["evicted"]

    await evict()
    with without_cycles():
        await evict()


async def test_a_stream_rejected_at_the_response_start_is_freed() -> None:
    app = limited(three_events, max_streams=1, replay_max_events=0)
    async with asked(app, PLAIN, address="192.0.2.1") as first:
        assert await answer(first) == (200, "")

        async def reject() -> None:
            async with asked(app, ANY, address="192.0.2.2") as late:
                assert await answer(late) == (503, "server_full")
                await until_returned(late)

        await reject()
        with without_cycles():
            await reject()


class State:
    """The state of a request, as apps keep it in the scope."""


@pytest.mark.parametrize("asks_for_trace_id", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_streams": 5}], ids=str)
async def test_a_task_that_outlives_an_ordinary_request_does_not_keep_its_scope(
    options: dict[str, Any], *, asks_for_trace_id: bool
) -> None:
    tasks: list[asyncio.Task[object]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if asks_for_trace_id:
            current_trace_id()
        tasks.append(asyncio.create_task(asyncio.sleep(3600)))
        await PlainTextResponse("text")(scope, receive, send)

    state = State()
    freed = weakref.ref(state)
    scope = http_scope(headers=ANY, state=state)
    del state
    exchange = Exchange(scope)
    await marking(app, **options)(scope, exchange.receive, exchange.send)
    del scope, exchange
    assert freed() is None
    tasks[0].cancel()
