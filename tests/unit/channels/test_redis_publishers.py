"""Publishers in Redis: batches, connections and their cost."""

import asyncio
import json
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Connection

from sse_middleware.channels import (
    BlockingPublisher,
    Publisher,
    blocking_redis,
    publish_batch,
    publish_pipeline,
    subscribe,
)
from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import BEGINNING, outgoing_event
from sse_middleware.channels.publish_batch import PublishBatch, PublisherSequence
from sse_middleware.channels.redis import RedisChannels
from sse_middleware.channels.redis_connection import RedisConnection
from sse_middleware.errors import StoreError
from tests.support.channel_contract import new_channel, whole
from tests.support.redis_channels import KEYS, ask, count, fill
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("closed_channels")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Batches


async def test_events_published_at_the_same_time_are_sent_together(
    server: RedisServer, publisher: Publisher
) -> None:
    await publisher.ack("warm")
    before = server.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    await asyncio.gather(*(publisher.publish("channel", "n", n) for n in range(100)))
    assert server.client.info("commandstats")["cmdstat_evalsha"]["calls"] <= before + 2


async def test_a_cancelled_call_leaves_the_others_alone(
    server: RedisServer, publisher: Publisher
) -> None:
    channel = new_channel()
    publishing = [
        asyncio.ensure_future(publisher.publish(channel, "n", number)) for number in range(10)
    ]
    await asyncio.sleep(0)
    publishing[3].cancel()
    results = await asyncio.gather(*publishing, return_exceptions=True)
    assert [result for number, result in enumerate(results) if number != 3] == [True] * 9
    await publisher.finish(channel)
    found = [event.json() for event in await whole(subscribe(channel, url=server.patient_url))][:-1]
    assert found in (list(range(10)), [n for n in range(10) if n != 3])


async def test_a_publisher_is_closed_after_its_callers_were_cancelled(
    server: RedisServer, publisher: Publisher
) -> None:
    channel = new_channel()
    await publisher.ack(channel)
    publishing = [asyncio.ensure_future(publisher.publish(channel, "n", n)) for n in range(9)]
    await asyncio.sleep(0)
    for one in publishing:
        one.cancel()
    async with asyncio.timeout(20):
        await publisher.close()
    assert server.client.xlen(KEYS.channel(channel).log) == 10


def connection_of(publisher: Publisher) -> RedisConnection:
    channels = publisher._channels()
    assert isinstance(channels, RedisChannels)
    assert channels._pipeline._connection is not None
    return channels._pipeline._connection


def is_closed(connection: RedisConnection) -> bool:
    return not connection.is_open


async def test_a_publisher_connects_again_if_its_connection_is_closed_between_events(
    server: RedisServer, publisher: Publisher
) -> None:
    channel = new_channel()
    failures = count("publish")
    for number in range(5):
        await publisher.publish(channel, "n", number)
        ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        if number % 2:  # it knows, or finds out
            connection = connection_of(publisher)
            await until(partial(is_closed, connection), "the connection was to be lost")
    await publisher.finish(channel)
    events = await whole(subscribe(channel, url=server.patient_url, ack_timeout=None))
    assert [event.json() for event in events[:-1]] == list(range(5))
    assert count("publish") <= failures + 3


async def test_no_task_is_made_for_an_event(server: RedisServer, publisher: Publisher) -> None:
    await publisher.ack("c")
    before = asyncio.all_tasks()
    outcome = publisher.publish("c", "n", 1)
    outcome.send(None)
    assert asyncio.all_tasks() == before
    outcome.close()


async def test_packed_commands_equal_those_of_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_batch, "_MAX_HEADS", 4)
    numbering = PublisherSequence()
    for names in ("a", "a", "aab", "bcdefgh", "ah"):
        posts = [outgoing_event(name, "schön", "ä" * 9, f"k{name}", 99) for name in names]
        dispatch = PublishBatch(posts, numbering, KEYS, Limits())
        assert packed_by_redis_py(dispatch) == dispatch.packed()
    assert len(numbering.heads) <= 4


def packed_by_redis_py(dispatch: PublishBatch) -> bytes:
    """Return the bytes that redis-py would send, after a PING."""
    connection = Connection()
    commands: list[Any] = [("PING",), *dispatch.commands()]
    return b"".join(part for command in commands for part in connection.pack_command(*command))


async def test_a_publisher_that_is_closed_has_sent_all(server: RedisServer) -> None:
    channel = new_channel()
    publisher = Publisher(server.patient_url)
    publishing = [asyncio.ensure_future(publisher.publish(channel, "n", n)) for n in range(300)]
    await asyncio.sleep(0)
    await publisher.close()
    assert await asyncio.gather(*publishing) == [True] * 300
    assert await publisher.publish(channel, "again", 1)
    await publisher.close()


@contextmanager
def script_timed(server: RedisServer) -> Iterator[dict[str, float]]:
    server.client.config_resetstat()
    found: dict[str, float] = {}
    yield found
    found["microseconds"] = server.client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]


async def test_a_full_channel_costs_no_more_with_its_length(
    server: RedisServer, publisher: Publisher
) -> None:
    await asyncio.gather(*(publisher.publish("full", "n", "x" * 100) for _ in range(10_500)))
    assert server.client.xlen(KEYS.channel("full").log) == 10_000
    with script_timed(server) as full:
        for number in range(50):
            await publisher.publish("full", "n", number)
    assert server.client.xlen(KEYS.channel("full").log) == 10_000
    assert full["microseconds"] < 20_000


async def test_a_reader_gets_an_error_if_redis_refuses_reads(server: RedisServer) -> None:
    server.client.set(KEYS.channel("taken").log, json.dumps("by something else"))
    channels = RedisChannels(server.patient_url)
    with pytest.raises(StoreError), channels.follow("taken") as feed:
        await feed.read(BEGINNING)
    await channels.close()


@pytest.mark.parametrize("is_connected", [True, False])
async def test_a_long_timeout_in_the_url_does_not_extend_the_time_to_publish(
    *, is_connected: bool, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_pipeline, "PUBLISH_SECONDS", 0.5)
    async with Publisher(f"{server.url}?socket_timeout=1000") as publisher:
        if is_connected:
            await until_published(publisher)
        with server.stopped():
            async with asyncio.timeout(10):
                with pytest.raises(StoreError):
                    await publisher.publish(new_channel(), "step", 1)


async def timed(call: Awaitable[bool]) -> float:
    """Return the duration of a call that fails."""
    began = time.monotonic()
    with pytest.raises(StoreError):
        await call
    return time.monotonic() - began


async def test_each_call_has_one_deadline_in_an_outage(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_pipeline, "PUBLISH_SECONDS", 1.5)
    publisher = Publisher(server.patient_url)
    await until_published(publisher)
    with server.stopped():
        alone = await timed(publisher.publish(new_channel(), "step", 1))
        calls = [timed(publisher.publish(new_channel(), "step", n)) for n in range(1000)]
        one_after_another = asyncio.ensure_future(asyncio.gather(*calls))
        await asyncio.sleep(alone / 2)
        later = timed(publisher.publish(new_channel(), "step", 1))
        durations = [*await one_after_another, await later]
        assert max(durations) < 4 * alone  # nine batches follow one another
        late = asyncio.ensure_future(timed(publisher.publish(new_channel(), "step", 1)))
        await asyncio.sleep(0)
        began = time.monotonic()
        await publisher.close()
        assert time.monotonic() - began < 4 * alone
        await late


async def test_each_thread_has_one_deadline_in_an_outage(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking_redis, "PUBLISH_SECONDS", 1.5)
    publisher = BlockingPublisher(server.patient_url)

    def publish() -> Awaitable[bool]:
        return asyncio.to_thread(publisher.publish, new_channel(), "step", 1)

    await publish()
    with server.stopped():
        alone = await timed(publish())
        calls = [timed(publish()) for _ in range(6)]
        together = asyncio.ensure_future(asyncio.gather(*calls))
        await asyncio.sleep(alone / 2)
        await asyncio.to_thread(publisher.close)
        assert not together.done()  # `close` does not wait for them
        assert max(await together) < 4 * alone  # there are six


async def test_an_event_is_not_sent_after_its_call_has_failed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_pipeline, "PUBLISH_SECONDS", 1.5)
    channel = new_channel()
    async with Publisher(server.patient_url) as publisher:
        await until_published(publisher)
        fill(server)
        first = asyncio.ensure_future(timed(publisher.publish(channel, "first", 1)))
        await asyncio.sleep(0.75)
        monkeypatch.setattr(publish_pipeline, "PUBLISH_SECONDS", 30)
        second = asyncio.ensure_future(publisher.publish(channel, "second", 2))
        await first
        server.client.config_set("maxmemory", 0)
        assert await second
    (entry,) = ask(server, "XRANGE", KEYS.channel(channel).log, "-", "+")
    assert entry[1][b"e"] == b"second"


async def test_a_full_redis_refuses_the_first_event_of_a_channel(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Publisher(server.patient_url) as publisher:
        await until_published(publisher)
        monkeypatch.setattr(publish_pipeline, "PUBLISH_SECONDS", 0.5)
        fill(server)
        channel = new_channel()
        await timed(publisher.publish(channel, "step", 1))
        server.client.config_set("maxmemory", 0)
    assert server.client.exists(KEYS.channel(channel).log) == 0


async def until_published(publisher: Publisher) -> None:
    """Publish an event; on a busy machine, the short time of a test may not be enough at first."""
    while True:
        with suppress(StoreError):
            await publisher.publish(new_channel(), "step", 1)
            return
