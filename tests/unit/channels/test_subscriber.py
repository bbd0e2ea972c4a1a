"""A reader of a channel while the store is out of reach, in virtual time."""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sse_middleware.channels.events import (
    ChannelEvent,
    EventFormat,
    LastEvent,
    OutgoingEvent,
    Position,
    ReadResult,
    StoredEvent,
)
from sse_middleware.channels.subscriber import ChannelReader, ReadOptions
from sse_middleware.errors import StoreError

pytestmark = pytest.mark.anyio

EVENT = StoredEvent(Position("1-0", 1), "step", "1")


class FailingChannels:
    """Channels with one reader; the store can be out of reach.

    Attributes:
        fails: whether queries fail.
        has_entry: set if there is an event; without one, a read sends no query.
        queries: the number of queries.
    """

    def __init__(self) -> None:
        self.fails = True
        self.has_entry = asyncio.Event()
        self.queries = 0

    def publish(self, event: OutgoingEvent) -> "asyncio.Future[bool]":
        raise NotImplementedError

    async def last_event(self, channel: str) -> LastEvent:
        assert channel == "channel"
        self.queries += 1
        if self.fails:
            raise StoreError("out of reach")
        return LastEvent(Position("1-0", 1), "queued")

    @contextmanager
    def follow(self, channel: str, *, with_messages: bool = False) -> Iterator["FailingChannels"]:
        assert (channel, with_messages) == ("channel", False)
        yield self

    async def read(self, position: Position) -> ReadResult:
        if not self.has_entry.is_set():
            return ReadResult((), position)
        return ReadResult((EVENT,), EVENT.position)

    async def wait(self) -> None:
        await self.has_entry.wait()

    async def close(self) -> None: ...


async def read(
    channels: FailingChannels, history: str, idle_timeout: float | None = None
) -> list[ChannelEvent]:
    options = ReadOptions(
        ack_timeout=1.0,
        idle_timeout=idle_timeout,
        terminal=frozenset({"step"}),
        history=history,
        format=EventFormat(),
    )
    return [event async for event in ChannelReader(lambda: channels, "channel", options).events()]


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("history", ["beginning", "now"])
async def test_an_outage_is_logged_once_and_ends_the_reader(
    history: str, caplog: pytest.LogCaptureFixture
) -> None:
    channels, loop = FailingChannels(), asyncio.get_running_loop()
    began = loop.time()
    (end,) = await read(channels, history)
    assert json.loads(end.data)["error"]["code"] == "store_unavailable"
    assert 30 < loop.time() - began < 33
    assert warnings(caplog) == 1
    assert channels.queries < 35  # it pauses; there may be very many readers


@pytest.mark.parametrize("history", ["beginning", "now"])
async def test_an_outage_is_forgotten_when_the_store_answers(
    history: str, caplog: pytest.LogCaptureFixture
) -> None:
    channels = FailingChannels()
    reading = asyncio.ensure_future(read(channels, history))
    await asyncio.sleep(20)
    channels.fails = False
    await asyncio.sleep(20)
    channels.has_entry.set()
    (event,) = await reading
    assert event.event == "step"
    assert warnings(caplog) == 1


@pytest.mark.parametrize("history", ["beginning", "now"])
async def test_the_time_of_an_outage_is_no_silence_of_the_worker(history: str) -> None:
    channels, loop = FailingChannels(), asyncio.get_running_loop()
    reading = asyncio.ensure_future(read(channels, history, idle_timeout=5.0))
    await asyncio.sleep(20)
    channels.fails = False
    (end,) = await reading
    assert json.loads(end.data)["error"]["code"] == "idle_timeout"
    assert loop.time() > 24
