"""The producer by itself: when events share a message, and when a write may wait."""

import asyncio

import pytest
from starlette.types import Message

from sse_middleware.http.response_head import body_message
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.intake import Intake
from sse_middleware.stream.callbacks import NO_CALLBACKS
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.linger import LingerQueue
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.sender import Sender
from sse_middleware.stream.timers import current_timers
from tests.support.asgi import stream_start
from tests.support.clock import VirtualClockLoop
from tests.support.dialects import new_profile

pytestmark = pytest.mark.anyio


async def new_producer(sent: list[Message]) -> Producer:
    kind, timers = ClientKind.EVENTSOURCE, current_timers()
    profile = new_profile(kind, heartbeat_interval=1, stream_max_seconds=100, send_timeout=None)
    record = StreamRecord("s", "t", "/route", "eventsource", opened_at=timers.clock())
    dialect = Dialect(profile, record, "x" * 22)
    preamble = dialect.open(timers.clock(), 0.0)

    async def send(message: Message) -> None:
        sent.append(message)

    producer = Producer(
        profile,
        Intake(profile, record),
        timers,
        observers=(),
        callbacks=NO_CALLBACKS,
        linger_queue=LingerQueue(1, ()),
    )
    sender = Sender(send, timers, record, ())
    producer.attach(Connection(dialect, sender, producer))
    await producer.open(stream_start(), preamble)
    return producer


def turns(producer: Producer) -> int:
    """Write an event as an app does, and count how often the write yields."""
    return sum(1 for _ in producer.write(body_message(b"data: x\n\n")).__await__())


async def test_a_write_that_the_server_takes_at_once_cannot_be_cancelled() -> None:
    producer = await new_producer([])
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    for _ in range(3):
        assert turns(producer) == 0
        loop.pass_time(1.5)
        assert turns(producer) == 0  # a heartbeat is due, and goes out in the next turn or now
        await asyncio.sleep(0)
    await producer.aclose(is_aborted=False)


async def test_an_app_that_never_yields_does_not_delay_the_heartbeats() -> None:
    sent: list[Message] = []
    producer = await new_producer(sent)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    for _ in range(40):
        loop.pass_time(0.25)
        assert turns(producer) == 0
    await producer.aclose(is_aborted=False)
    assert sum(b"event: heartbeat" in message.get("body", b"") for message in sent) == 10
