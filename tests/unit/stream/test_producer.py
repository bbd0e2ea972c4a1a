"""The outbox alone: what leaves together, when a write waits, and when it must not."""

import asyncio

import pytest
from starlette.types import Message

from sse_middleware import Options
from sse_middleware.http.response_head import body_message
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.stream_state import StreamState
from sse_middleware.stream.owner import NOBODY_OWNS
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.timers import current_timers
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.anyio


def outbox_for(sent: list[Message]) -> Producer:
    state = StreamState(
        Options.from_environ({}, heartbeat_interval=1, stream_max_seconds=100),
        family=ClientKind.EVENTSOURCE,
        record=StreamRecord("s", "t", "/route", "eventsource"),
        secret="x" * 22,
        marked=False,
        comment=CommentForm.BLOCK,
    )
    loop = asyncio.get_running_loop()
    state.open(loop.time(), 0.0)

    async def send(message: Message) -> None:
        sent.append(message)

    return Producer(state, send, current_timers(), observers=(), owner=NOBODY_OWNS)


async def test_a_stream_that_is_woken_behind_its_time_is_to_be_woken_once() -> None:
    outbox, ticker = outbox_for([]), current_timers()
    # As where its app has written, and set its timer anew, while it stood in line to be woken.
    outbox.on_time(ticker.clock() + 1)
    assert sum(outbox in sleepers for sleepers in ticker._slots.values()) == 1
    await outbox.settle(1, "finished")
    assert not any(outbox in sleepers for sleepers in ticker._slots.values())


def turns(outbox: Producer) -> int:
    """Write an event as an app does, and count how often the write gives way."""
    write = outbox.write(body_message(b"data: x\n\n"))
    count = 0
    while True:
        try:
            write.send(None)
        except StopIteration:
            return count
        count += 1


async def test_a_write_is_no_place_to_be_cancelled_where_the_server_takes_it_at_once() -> None:
    outbox = outbox_for([])
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    for _ in range(3):
        assert turns(outbox) == 0
        loop.pass_time(1.5)
        assert turns(outbox) == 0  # a heartbeat is due, and goes out in the next turn or now
        await asyncio.sleep(0)
    await outbox.settle(1, "finished")


async def test_an_app_that_never_lets_the_loop_turn_does_not_hold_back_the_heartbeats() -> None:
    sent: list[Message] = []
    outbox = outbox_for(sent)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    for _ in range(40):
        loop.pass_time(0.25)
        assert turns(outbox) == 0
    await outbox.settle(1, "finished")
    assert sum(b"event: heartbeat" in message["body"] for message in sent) == 10
