"""Channels in Redis: the contract, and faults of the network and of the server."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sse_middleware.channels import (
    BlockingPublisher,
    Publisher,
    blocking_redis,
    close_channels,
    publish_batch,
    publish_pipeline,
    pubsub,
    subscribe,
)
from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import outgoing_event
from sse_middleware.channels.publish_batch import PublishBatch, PublisherSequence
from sse_middleware.errors import StoreError
from sse_middleware.stores.redis import client as redis_client
from sse_middleware.testing.streams import eventually
from tests.support.channel_contract import ChannelContract, code, new_channel, parsed, take, whole
from tests.support.redis_channels import KEYS, ask, count, has_failed_since
from tests.support.redis_server import Proxy, RedisServer
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("closed_channels")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestInRedis(ChannelContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, running_server: RedisServer) -> None:
        cls.url = running_server.patient_url


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("cluster")
    with RedisServer(directory, "--cluster-enabled", "yes") as server:
        ask(server, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 10
        while ask(server, "CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server.patient_url.replace("redis:", "redis+cluster:").replace("/0?", "?")


async def test_channels_work_on_a_cluster(cluster_url: str) -> None:
    channels = [new_channel() for _ in range(20)]
    async with Publisher(cluster_url) as one, Publisher(cluster_url) as other:
        blocking = BlockingPublisher(cluster_url)
        for channel in channels[:10]:  # some are early and some late
            assert await one.ack(channel)
        readings = [
            asyncio.ensure_future(whole(subscribe(channel, url=cluster_url)))
            for channel in channels
        ]
        await asyncio.sleep(0.1)
        for channel in channels[10:]:
            assert await one.ack(channel)
        assert await asyncio.gather(*(other.ack(channel) for channel in channels)) == [False] * 20
        for number in range(5):
            sent = [one.publish(channel, "n", number, key=str(number)) for channel in channels]
            assert await asyncio.gather(*sent) == [True] * 20
        for channel in channels:
            assert await asyncio.to_thread(blocking.finish, channel)
        await asyncio.to_thread(blocking.close)
    whole_session = [("worker_ack", {}), *(("n", n) for n in range(5))]
    for events in await asyncio.gather(*readings):
        assert parsed(events) == [*whole_session, ("complete", {"reason": "finished"})]


# Lost answers


async def test_an_event_is_published_once_if_its_answer_is_lost(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.3)
    channel = new_channel()
    async with Proxy(server) as proxy, Publisher(proxy.url) as publisher:
        assert await publisher.ack(channel)
        for number in range(3):
            failures = count("publish")
            proxy.swallows = True
            publishing = asyncio.gather(
                publisher.publish(channel, "step", number, key=f"step-{number}"),
                publisher.publish(channel, "word", number),
            )
            await until(partial(has_failed_since, failures), "an attempt was to fail")
            proxy.swallows = False
            assert list(await publishing) == [True, True]
        await publisher.finish(channel)
    events = parsed(await whole(subscribe(channel, url=server.patient_url)))
    assert events[1:-1] == [(name, n) for n in range(3) for name in ("step", "word")]


async def test_a_publisher_keeps_an_ack_if_its_answer_is_lost(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.3)
    channel = new_channel()
    async with Proxy(server) as proxy, Publisher(proxy.url) as one:
        await one.publish(channel, "queued", 1)
        failures = count("publish")
        proxy.swallows = True
        claiming = asyncio.ensure_future(one.ack(channel))
        await until(partial(has_failed_since, failures), "an attempt was to fail")
        async with Publisher(server.patient_url) as other:
            assert not await other.ack(channel)
        proxy.swallows = False
        assert await claiming


async def test_a_blocking_publisher_doubles_nothing_either(server: RedisServer) -> None:
    channel = new_channel()
    failures = count("publish")
    async with Proxy(server) as proxy:
        publisher = BlockingPublisher(proxy.url)
        assert await asyncio.to_thread(publisher.ack, channel)
        proxy.swallows = True
        publishing = asyncio.ensure_future(asyncio.to_thread(publisher.publish, channel, "n", 1))
        await until(partial(has_failed_since, failures), "an attempt was to fail")
        proxy.swallows = False
        assert await publishing
        assert not await asyncio.to_thread(publisher.ack, channel)
        assert await asyncio.to_thread(publisher.finish, channel)
        await asyncio.to_thread(publisher.close)
    events = await whole(subscribe(channel, url=server.patient_url))
    assert [event.event for event in events] == ["worker_ack", "n", "complete"]
    assert count("publish") > failures


async def test_a_first_attempt_that_arrives_after_the_second_has_no_effect(
    server: RedisServer,
) -> None:
    numbering, posts = (
        PublisherSequence(),
        [outgoing_event("c", "step", n, None, 100) for n in range(3)],
    )
    late = PublishBatch(posts, numbering, KEYS, Limits())
    later = PublishBatch([outgoing_event("c", "step", 9, "key", 100)], numbering, KEYS, Limits())

    def send(dispatch: PublishBatch) -> list[Any]:
        (command,) = dispatch.commands()
        return [ask(server, *command)]

    late._has_script = later._has_script = False
    assert send(late) == [[1, 1, 1]]
    assert send(later) == [[1]]
    assert send(late) == [[1, 1, 1]]
    assert send(later) == [[1]]
    assert server.client.xlen(KEYS.channel("c").log) == 4


async def test_publishers_that_take_turns_are_known_by_their_numbers(server: RedisServer) -> None:
    first, second = (
        PublishBatch(
            [outgoing_event("c", "step", n, None, 100)], PublisherSequence(), KEYS, Limits()
        )
        for n in range(2)
    )
    for dispatch in (first, second, first, second, first):
        dispatch._has_script = False
        (command,) = dispatch.commands()
        assert ask(server, *command) == [1]
    assert server.client.xlen(KEYS.channel("c").log) == 2


async def test_a_claim_that_was_refused_and_comes_late_is_refused_still(
    server: RedisServer, publisher: Publisher
) -> None:
    await publisher.publish("c", "step", 1, key="k")
    late = PublishBatch(
        [outgoing_event("c", "step", 2, "k", 100)], PublisherSequence(), KEYS, Limits()
    )
    late._has_script = False
    (command,) = late.commands()
    assert ask(server, *command) == [0]
    server.client.hdel(KEYS.channel("c").about, "k:u:k")  # as if its event were not kept any more
    assert ask(server, *command) == [0]
    assert server.client.xlen(KEYS.channel("c").log) == 1


async def test_a_log_that_redis_has_evicted_has_its_time_again(
    server: RedisServer, publisher: Publisher
) -> None:
    await publisher.publish("c", "step", 1)
    server.client.delete(KEYS.channel("c").log)
    await publisher.publish("c", "step", 2)
    assert 0 < server.client.pttl(KEYS.channel("c").log) <= 3_660_000


async def test_a_channel_lives_on_as_long_as_it_is_published_on(server: RedisServer) -> None:
    async with Publisher(server.patient_url, channel_ttl=10) as publisher:
        for number in range(8):
            await asyncio.sleep(0.25)
            await publisher.publish("c", "step", number)
            assert all(
                server.client.pttl(key) > 9000
                for key in (KEYS.channel("c").log, KEYS.channel("c").about)
            )
    assert server.client.xlen(KEYS.channel("c").log) == 8


async def test_every_key_has_its_time(server: RedisServer, publisher: Publisher) -> None:
    await publisher.ack("one")
    async with Publisher(server.patient_url) as other:
        await other.publish("one", "step", 1, key="k")
    assert len(server.all_keys()) == 3
    assert all(0 < server.client.pttl(key) <= 3_660_000 for key in server.all_keys())
    assert all("{" in key and "one" not in key for key in server.all_keys())


# Redis is gone


async def test_a_publisher_gets_an_error_after_some_time_without_redis(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (publish_pipeline, blocking_redis):
        monkeypatch.setattr(module, "PUBLISH_SECONDS", 0.5)
    before = count("publish")
    async with Publisher("redis://127.0.0.1:1/0") as publisher:
        with pytest.raises(StoreError, match=r"ConnectionError.*under a key"):
            await publisher.publish("channel", "step", 1)
    assert count("publish") > before
    blocking = BlockingPublisher("redis://127.0.0.1:1/0")
    with pytest.raises(StoreError, match=r"ConnectionError.*under a key"):
        await asyncio.to_thread(blocking.publish, "channel", "step", 1)


async def test_a_reader_gets_an_error_after_some_time_without_redis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sse_middleware.channels.subscriber._MAX_OUTAGE_SECONDS", 0.7)
    (event,) = await whole(subscribe("channel", url="redis://127.0.0.1:1/0"))
    assert code(event) == "store_unavailable"


async def test_a_redis_that_hangs_for_a_while_costs_time_and_nothing_else(
    server: RedisServer,
) -> None:
    channel = new_channel()
    reading = asyncio.ensure_future(whole(subscribe(channel, url=server.url)))
    async with Publisher(server.url) as publisher:
        await publisher.ack(channel)
        with server.stopped():
            publishing = asyncio.gather(*(publisher.publish(channel, "n", n) for n in range(20)))
            await asyncio.sleep(1.5)
        assert await publishing == [True] * 20
        await publisher.finish(channel)
    assert parsed(await reading)[1:-1] == [("n", n) for n in range(20)]


async def test_a_reader_is_notified_if_redis_has_lost_its_channel(tmp_path: Path) -> None:
    channel = new_channel()
    with RedisServer(tmp_path) as server:
        async with Publisher(server.patient_url) as publisher:
            await publisher.ack(channel)
            await publisher.publish(channel, "n", 1)
            async with aclosing(subscribe(channel, url=server.patient_url)) as events:
                await take(events, 2)
                server.restart()
                await asyncio.gather(*(publisher.publish(channel, "n", n) for n in range(5)))
                async with asyncio.timeout(10):
                    assert code(await anext(events)) == "truncated"
        await close_channels()


async def test_a_refused_event_fails_at_once_and_does_not_affect_others(
    server: RedisServer, publisher: Publisher
) -> None:
    server.client.set(KEYS.channel("taken").log, "by something else")
    async with asyncio.timeout(publish_batch.PUBLISH_SECONDS / 2):
        refused, fine = await asyncio.gather(
            publisher.publish("taken", "step", 1),
            publisher.publish("free", "step", 1),
            return_exceptions=True,
        )
    assert isinstance(refused, StoreError)
    assert fine is True


# The listener


async def heard(server: RedisServer, topics: list[str]) -> None:
    """Wait until each subscribed connection has so many topics."""

    async def ask_redis() -> list[str]:
        return [one["sub"] for one in server.client.client_list() if one["sub"] != "0"]

    await eventually(ask_redis, lambda got: got == topics, f"{topics} were to be subscribed")


async def test_one_connection_listens_to_all_channels(
    server: RedisServer, publisher: Publisher
) -> None:
    channels = [new_channel() for _ in range(100)]
    readings = [
        asyncio.ensure_future(whole(subscribe(channel, url=server.patient_url)))
        for channel in channels
        for _ in range(3)
    ]
    await heard(server, ["100"])
    assert server.connections() < 12
    for channel in channels:
        await publisher.ack(channel)
        await publisher.finish(channel)
    for events in await asyncio.gather(*readings):
        assert [event.event for event in events] == ["worker_ack", "complete"]
    await heard(server, [])


async def test_a_listener_misses_no_event_if_its_connection_is_closed(
    server: RedisServer, publisher: Publisher
) -> None:
    channel = new_channel()
    reading = asyncio.ensure_future(whole(subscribe(channel, url=server.patient_url)))
    await publisher.ack(channel)
    for number in range(60):
        await publisher.publish(channel, "n", number)
        if number % 20 == 10:
            ask(server, "CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.01)
    await publisher.finish(channel)
    assert parsed(await reading)[1:-1] == [("n", n) for n in range(60)]


async def test_readers_hear_without_news_too(server: RedisServer) -> None:
    channel, name = new_channel(), "deaf" + secrets.token_hex(4)
    ask(server, "ACL", "SETUSER", name, "on", ">pass", "~*", "+@all", "resetchannels")
    url = server.patient_url.replace("redis://", f"redis://{name}:pass@")
    async with Publisher(url) as publisher:
        reading = asyncio.ensure_future(whole(subscribe(channel, url=url)))
        await asyncio.sleep(0.2)
        await publisher.ack(channel)
        await publisher.finish(channel)
        assert len(await reading) == 2
    await close_channels()


async def test_an_event_without_a_message_is_read_in_a_few_seconds(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pubsub._TICKS_PER_CHECK * pubsub._TICK_SECONDS <= 5  # which the docs promise
    monkeypatch.setattr(pubsub, "_TICK_SECONDS", 0.05)
    channel, name = new_channel(), "mute" + secrets.token_hex(4)
    ask(server, "ACL", "SETUSER", name, "on", ">pass", "~*", "+@all", "resetchannels")
    reading = asyncio.ensure_future(whole(subscribe(channel, url=server.patient_url)))
    async with Publisher(
        server.patient_url.replace("redis://", f"redis://{name}:pass@")
    ) as publisher:
        await heard(server, ["1"])
        await publisher.ack(channel)
        await publisher.finish(channel)
        async with asyncio.timeout(10):
            events = await reading
    assert [event.event for event in events] == ["worker_ack", "complete"]


async def test_a_channel_is_subscribed_again_if_readers_return(
    server: RedisServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "_TICKS_PER_CHECK", 1_000_000)  # only messages wake readers
    channel = new_channel()
    await publisher.ack(channel)
    for number in range(20):
        async with aclosing(subscribe(channel, url=server.patient_url)) as events:
            await take(events, number + 1)
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.02)
            await publisher.publish(channel, "n", number)
            async with asyncio.timeout(20):
                assert (await waiting).json() == number


# Malformed entries


async def test_malformed_entries_are_skipped_counted_and_logged(
    server: RedisServer, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    channel = new_channel()
    log = KEYS.channel(channel).log
    before = count("malformed")
    strange: list[dict[Any, Any]] = [
        {"hello": "s3cret"},
        {"g": "0123abcd", "n": "x", "e": "step", "d": "1"},
        {"g": "s3cret", "n": 2, "e": "step", "d": "1"},
        {"g": "0123abcd", "n": 2, "e": "st\nep", "d": "1"},
        {"g": "0123abcd", "n": 2, "e": "step", "d": "s3cret"},
        {"g": "0123abcd", "n": 2, "e": "step", "d": b"\xff"},
    ]
    await publisher.ack(channel)
    with caplog.at_level(logging.WARNING):
        for fields in strange:
            server.client.xadd(log, fields)
        readings = [
            asyncio.ensure_future(whole(subscribe(channel, url=server.patient_url)))
            for _ in range(3)
        ]
        await asyncio.sleep(0.2)
        server.client.xadd(log, {"n": "s3cret"})
        for message in (
            b"s3cret",
            b"0123abcd.2\n1-1\nstep\ns3cret",
            b"0123abcd.2\n1-1\nstep",
            b"2\n1-1\nstep\n1",
            b"\xff",
            b"",
        ):
            server.client.publish(KEYS.channel(channel).topic, message)
        await publisher.publish(channel, "step", 1)
        await publisher.finish(channel)
        for events in await asyncio.gather(*readings):
            assert [event.event for event in events] == ["worker_ack", "step", "complete"]
    assert count("malformed") == before + len(strange) + 1
    assert "s3cret" not in caplog.text
    assert channel not in caplog.text


async def test_a_flood_of_strange_entries_is_read_through(
    server: RedisServer, publisher: Publisher
) -> None:
    channel = new_channel()
    await publisher.ack(channel)
    pipe = server.client.pipeline(transaction=False)
    for _ in range(1000):
        pipe.xadd(KEYS.channel(channel).log, {"x": 1})
    pipe.execute()
    await publisher.finish(channel)
    events = await whole(subscribe(channel, url=server.patient_url))
    assert [event.event for event in events] == ["worker_ack", "complete"]
