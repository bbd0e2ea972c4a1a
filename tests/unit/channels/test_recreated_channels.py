"""Channels in Redis that are deleted, expire or lose a key, while readers wait for their events."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial

import pytest
import redis

from sse_middleware.channels import ChannelEvent, Publisher, pubsub
from sse_middleware.channels.events import EventFormat
from sse_middleware.channels.pubsub import ChannelUpdates
from sse_middleware.channels.redis import RedisChannels
from sse_middleware.channels.subscriber import FROM_BEGINNING, ChannelReader, ReadOptions
from tests.support.channel_contract import code, new_channel, take
from tests.support.redis_channels import KEYS
from tests.support.redis_server import RedisServer
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _only_messages_wake_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "_TICKS_PER_CHECK", 1_000_000)


@pytest.fixture
async def channels(server: RedisServer) -> AsyncGenerator[RedisChannels]:
    channels = RedisChannels(server.patient_url)
    yield channels
    await channels.close()


def read(
    channels: RedisChannels, channel: str, history: str | None = None
) -> AsyncGenerator[ChannelEvent, None]:
    options = ReadOptions(
        ack_timeout=None,
        idle_timeout=None,
        terminal=frozenset(),
        history=history or FROM_BEGINNING,
        format=EventFormat(),
    )
    return ChannelReader(lambda: channels, channel, options).events()


class Waiting:
    """A reader that waits for the next event."""

    def __init__(self, channels: RedisChannels, channel: str) -> None:
        self.received: list[ChannelEvent] = []
        self._channels = channels
        self._topic = KEYS.channel(channel).topic.encode()
        self._events = read(channels, channel)
        self._task = asyncio.ensure_future(self._run())

    async def until_waiting(self, readers: int = 1) -> None:
        """Wait until all readers are subscribed, have read the log after that, and wait."""
        await until(partial(self._are_waiting, readers), "the readers were to wait")

    async def finished(self) -> list[ChannelEvent]:
        """Return all events, up to the `error` that ends the reader."""
        async with asyncio.timeout(HANG_SECONDS):
            await self._task
        return self.received

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._events.aclose()

    async def _run(self) -> None:
        async for event in self._events:
            self.received.append(event)

    def _are_waiting(self, readers: int) -> bool:
        updates = self._channels._listener._subscriptions.get(self._topic)
        if not isinstance(updates, ChannelUpdates) or not updates.invalidations:
            return False
        return sum(not waiter.done() for waiter in updates._waiting) >= readers


def delete(server: RedisServer, channel: str) -> None:
    keys = KEYS.channel(channel)
    server.client.delete(keys.log, keys.about)


def expire(server: RedisServer, channel: str) -> None:
    keys = KEYS.channel(channel)
    server.client.pexpire(keys.log, 1)
    server.client.pexpire(keys.about, 1)
    while server.client.exists(keys.log, keys.about):
        pass


def flush(server: RedisServer, _channel: str) -> None:
    server.client.flushall()


def lose_log(server: RedisServer, channel: str) -> None:
    server.client.delete(KEYS.channel(channel).log)


def lose_about(server: RedisServer, channel: str) -> None:
    server.client.delete(KEYS.channel(channel).about)


Lose = Callable[[RedisServer, str], None]
LOSSES = [delete, expire, flush]


@pytest.mark.parametrize("count", [1, 3, 4, 6])
@pytest.mark.parametrize("by_messages", [True, False])
@pytest.mark.parametrize("lose", LOSSES)
async def test_a_waiting_reader_is_notified_if_its_channel_is_created_again(
    channels: RedisChannels,
    publisher: Publisher,
    server: RedisServer,
    *,
    lose: Lose,
    by_messages: bool,
    count: int,
) -> None:
    channel = new_channel()
    reader = None
    if by_messages:
        reader = Waiting(channels, channel)
        await reader.until_waiting()
    for number in range(3):
        await publisher.publish(channel, "old", number)
    reader = reader or Waiting(channels, channel)
    await until(lambda: len(reader.received) == 3, "the reader was to have the events")
    await reader.until_waiting()
    lose(server, channel)
    for number in range(count):
        await publisher.publish(channel, "new", number)
    *old, last = await reader.finished()
    assert [event.event for event in old] == ["old"] * 3
    assert code(last) == "truncated"


async def test_a_new_reader_receives_no_events_of_a_deleted_channel(
    channels: RedisChannels, publisher: Publisher, server: RedisServer
) -> None:
    channel = new_channel()
    first = Waiting(channels, channel)
    await first.until_waiting()
    for number in range(3):
        await publisher.publish(channel, "old", number)
    await until(lambda: len(first.received) == 3, "the reader was to have the events")
    delete(server, channel)
    second = Waiting(channels, channel)
    await second.until_waiting(readers=2)
    for number in range(3):
        await publisher.publish(channel, "new", number)
    await until(lambda: len(second.received) == 3, "the reader was to have the events")
    assert [event.event for event in second.received] == ["new"] * 3
    assert code((await first.finished())[-1]) == "truncated"
    await second.close()


async def test_a_position_in_an_earlier_channel_of_this_name_is_not_continued(
    channels: RedisChannels, server: RedisServer
) -> None:
    channel = new_channel()
    async with Publisher(server.patient_url, channel_max_events=1) as publisher:
        for number in range(2):
            await publisher.publish(channel, "old", number)
        async with aclosing(read(channels, channel)) as events:
            (old,) = await take(events, 1)
        delete(server, channel)
        for number in range(3):  # only the third one is kept, whose number is the next one
            await publisher.publish(channel, "new", number)
    async with aclosing(read(channels, channel, old.id)) as events:
        assert code(await anext(events)) == "truncated"


async def test_a_position_of_a_later_time_in_an_earlier_channel_is_not_continued(
    channels: RedisChannels, publisher: Publisher, server: RedisServer
) -> None:
    channel = new_channel()
    await publisher.publish(channel, "old", 1)
    async with aclosing(read(channels, channel)) as events:
        (old,) = await take(events, 1)
    delete(server, channel)
    await publisher.publish(channel, "new", 1)
    assert old.id is not None
    _, _, rest = old.id.partition("-")
    later = f"{10**14 - 1}-{rest}"  # as if the clock of Redis were set back
    async with aclosing(read(channels, channel, later)) as events, asyncio.timeout(HANG_SECONDS):
        assert code(await anext(events)) == "truncated"


# One of a channel's two keys is evicted


@pytest.mark.parametrize("lose", [lose_log, lose_about])
async def test_all_events_after_the_loss_of_a_key_are_kept(
    channels: RedisChannels, publisher: Publisher, server: RedisServer, lose: Lose
) -> None:
    channel = new_channel()
    for number in range(30):
        assert await publisher.publish(channel, "old", "x" * 1000, key=f"{number}")
    reader = Waiting(channels, channel)
    await until(lambda: len(reader.received) == 30, "the reader was to have the events")
    await reader.until_waiting()
    lose(server, channel)
    async with Publisher(server.patient_url, channel_max_bytes=29_000) as other:
        for number in range(30):
            assert await other.publish(channel, "new", number, key=f"{number}")
    assert code((await reader.finished())[-1]) == "truncated"
    async with aclosing(read(channels, channel)) as events, asyncio.timeout(HANG_SECONDS):
        kept = await take(events, 30)
    assert [(event.event, event.json()) for event in kept] == [("new", n) for n in range(30)]
    keys = KEYS.channel(channel)
    assert {keys.log, keys.about} <= set(server.all_keys())
    assert all(0 < server.client.pttl(key) <= 3_660_000 for key in server.all_keys())


async def test_a_job_stays_taken_if_the_log_of_its_channel_is_lost(
    publisher: Publisher, server: RedisServer
) -> None:
    channel = new_channel()
    assert await publisher.ack(channel)
    assert await publisher.finish(channel)
    lose_log(server, channel)
    assert not await publisher.ack(channel)
    assert await publisher.publish(channel, "step", 1)
    assert not await publisher.ack(channel)
    async with Publisher(server.patient_url) as other:
        assert not await other.ack(channel)
        assert await other.finish(channel)  # otherwise readers would wait for the end
        assert not await other.finish(channel)


async def test_a_slow_reader_is_notified_if_the_log_of_its_channel_is_lost(
    channels: RedisChannels, publisher: Publisher, server: RedisServer
) -> None:
    channel = new_channel()
    await asyncio.gather(*(publisher.publish(channel, "n", number) for number in range(1000)))
    async with aclosing(read(channels, channel)) as events, asyncio.timeout(HANG_SECONDS):
        await take(events, 3)
        lose_log(server, channel)
        *_, last = [event async for event in events]
    assert code(last) == "truncated"


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "allkeys-random"])
async def test_channels_work_after_redis_has_evicted_some_of_their_keys(
    channels: RedisChannels, publisher: Publisher, server: RedisServer, policy: str
) -> None:
    names = [new_channel() for _ in range(60)]
    for name in names:
        await asyncio.gather(*(publisher.publish(name, "old", "x" * 2000) for _ in range(10)))
    used = server.client.info("memory")["used_memory"]
    server.client.config_set("maxmemory-policy", policy)
    server.client.config_set("maxmemory", int(used * 0.8))
    try:
        await until(lambda: is_evicted(server), "Redis was to evict keys")
    finally:
        server.client.config_set("maxmemory", 0)
        server.client.config_set("maxmemory-policy", "noeviction")
    for name in names:
        for number in range(5):
            assert await publisher.publish(name, "new", number)
    for name in names:
        kept = [event async for event in until_number(read(channels, name), 4)]
        new = [event.json() for event in kept if event.event == "new"]
        assert new == list(range(5))
        assert {event.event for event in kept} <= {"old", "new"}


def is_evicted(server: RedisServer) -> bool:
    with suppress(redis.RedisError):
        server.client.set("filler", "x" * 10_000, px=60_000)
    return len(server.client.keys("*:channel")) < 55 and len(server.client.keys("*:about")) < 60


async def until_number(
    events: AsyncGenerator[ChannelEvent, None], number: int
) -> AsyncGenerator[ChannelEvent, None]:
    async with aclosing(events), asyncio.timeout(HANG_SECONDS):
        async for event in events:
            yield event
            if event.data == str(number):
                return
