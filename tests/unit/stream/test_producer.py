"""The producer by itself: when events share a message, and when a write may wait."""

import asyncio

import pytest
from starlette.types import Message

from sse_middleware import Options
from sse_middleware.http.response_head import body_message
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.stream_state import StreamState
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stream.callbacks import NO_CALLBACKS
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.timers import current_timers
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.anyio


def new_producer(sent: list[Message]) -> Producer:
    options = Options.from_environ({}, heartbeat_interval=1, stream_max_seconds=100)
    state = StreamState(
        options,
        StreamTerms.from_options(options, ClientKind.EVENTSOURCE),
        client_kind=ClientKind.EVENTSOURCE,
        record=StreamRecord("s", "t", "/route", "eventsource"),
        secret="x" * 22,
        marked=False,
        comment=CommentForm.BLOCK,
    )
    loop = asyncio.get_running_loop()
    state.open(loop.time(), 0.0)

    async def send(message: Message) -> None:
        sent.append(message)

    return Producer(state, send, current_timers(), observers=(), callbacks=NO_CALLBACKS)


async def test_a_stream_with_a_late_timer_is_called_once() -> None:
    producer, timers = new_producer([]), current_timers()
    # Its app has written and set a new timer while the call of the old one was pending.
    producer.on_timer(timers.clock() + 1)
    assert sum(producer in targets for targets in timers._buckets.values()) == 1
    await producer.aclose(1, "finished")
    assert not any(producer in targets for targets in timers._buckets.values())


def turns(producer: Producer) -> int:
    """Write an event as an app does, and count how often the write yields."""
    write = producer.write(body_message(b"data: x\n\n"))
    count = 0
    while True:
        try:
            write.send(None)
        except StopIteration:
            return count
        count += 1


async def test_a_write_that_the_server_takes_at_once_cannot_be_cancelled() -> None:
    producer = new_producer([])
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    for _ in range(3):
        assert turns(producer) == 0
        loop.pass_time(1.5)
        assert turns(producer) == 0  # a heartbeat is due, and goes out in the next turn or now
        await asyncio.sleep(0)
    await producer.aclose(1, "finished")


async def test_an_app_that_never_yields_does_not_delay_the_heartbeats() -> None:
    sent: list[Message] = []
    producer = new_producer(sent)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    for _ in range(40):
        loop.pass_time(0.25)
        assert turns(producer) == 0
    await producer.aclose(1, "finished")
    assert sum(b"event: heartbeat" in message["body"] for message in sent) == 10
