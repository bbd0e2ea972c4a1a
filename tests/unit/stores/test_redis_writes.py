"""Keys and writes of the Redis store, on a real server."""

import asyncio
from typing import Any

import pytest

from sse_middleware.stores.base import LogState
from sse_middleware.stores.redis import client as redis_client
from sse_middleware.stores.redis import keys as redis_keys
from sse_middleware.stores.redis.log import RedisLog
from sse_middleware.testing import FakeStream, Reader
from sse_middleware.testing.streams import eventually
from tests.support.redis_server import Proxy, RedisServer
from tests.support.redis_stores import Counting, hidden, stores, visible, whole

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    running_server.client.flushall()
    return running_server


# Keys


async def test_each_key_has_the_prefix_the_schema_and_an_end(server: RedisServer) -> None:
    async with stores(server, prefix="app:") as (store,):
        stream = FakeStream(store)
        stream.log.set_name("chat")
        stream.write(2)
        async with Reader(store, stream.id) as reader:
            await reader.until(2)

        async def all_keys() -> list[str]:  # the lease has a thread of its own
            return server.all_keys()

        await eventually(all_keys, lambda keys: len(keys) == 5, "there were to be five keys")
        keys = server.all_keys()
        assert all(key.startswith(f"app:{redis_keys.SCHEMA}:") for key in keys)
        assert all(0 < server.client.pttl(key) <= 60_000 for key in keys), keys
        of_the_stream = [key for key in keys if stream.id in key]
        assert len({key[key.index("{") : key.index("}")] for key in of_the_stream}) == 1


async def test_two_prefixes_and_two_schemas_do_not_see_each_other(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stores(server) as (ours,), stores(server, prefix="b:") as (other,):
        monkeypatch.setattr(redis_keys, "SCHEMA", redis_keys.SCHEMA + 1)
        async with stores(server) as (newer,):
            streams = [FakeStream(store, stream_id="same") for store in (ours, other, newer)]
            for number, stream in enumerate(streams, 1):
                stream.log.set_name("chat")
                stream.write(number)
                stream.log.end(LogState.FINISHED)
            for number, store in enumerate((ours, other, newer), 1):
                reader = await Reader(store, "same").read_all()
                assert (len(reader.numbers), reader.holes) == (number, [])
                found = await store.find_named("chat")
                assert found is not None
                assert found.last == number


async def test_two_versions_of_the_schema_do_not_disturb_each_other_in_a_rolling_upgrade(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stores(server, 2) as (old, older):
        monkeypatch.setattr(redis_keys, "SCHEMA", redis_keys.SCHEMA + 1)
        async with stores(server, 2) as (new, newer):
            for here, there, *others in ((old, older, new), (new, newer, old)):
                stream = FakeStream(here)
                stream.write(2)
                await visible(there, stream, last=2)
                async with Reader(there, stream.id) as reader:
                    await stream.producer.until_notified("followed")
                    for other in others:  # a worker of the other version knows nothing of it
                        assert await other.find(stream.id) is None
                        assert not await other.cancel(stream.id)
                        stranger = await Reader(other, stream.id).read_all()
                        assert stranger.end is not None
                        assert stranger.end.state is LogState.GONE
                    stream.write(3)
                    await reader.until(5)
                    stream.log.end(LogState.FINISHED)
                    assert await reader.until_end() is LogState.FINISHED
                assert stream.producer.cancels == 0
    await asyncio.sleep(0)
    leases = [key for key in server.all_keys() if "lease" in key or "inbox" in key]
    assert leases == []


async def test_no_key_remains_after_its_expiry(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.log_writer._RUNNING_SECONDS", 1.0)
    async with stores(server, ttl=0.3) as (store,):
        for number in range(500):
            stream = FakeStream(store)
            stream.log.set_name(f"chat:{number}")
            stream.write(3)
            how = number % 4
            if how == 0:
                stream.log.end(LogState.GONE)
            elif how == 1:
                stream.log.use_app_ids()
            else:
                stream.log.end(LogState.FINISHED)
    await hidden(server)


async def test_the_log_of_a_dead_process_expires(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.log_writer._RUNNING_SECONDS", 0.5)
    async with stores(server, ttl=0.3) as (store,):
        stream = FakeStream(store)
        stream.write(3)

        async def all_keys() -> int:
            return len(server.all_keys())

        await eventually(all_keys, lambda count: count == 4, "there were to be four keys")
    await hidden(server)


async def test_a_running_log_is_renewed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.inbox.PRESENCE_SECONDS", 0.3)
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.log.set_name("chat")
        stream.write(3)
        await stream.log.flush()
        keys = [key for key in server.all_keys() if "lease" not in key and "inbox" not in key]
        assert len(keys) == 3
        for key in keys:
            server.client.pexpire(key, 30_000)
        assert isinstance(stream.log, RedisLog)
        stream.log.renew_at = 0.0

        async def shortest() -> int:
            return min(server.client.pttl(key) for key in keys)

        await eventually(shortest, lambda ttl: ttl > 30_000, "all keys were to be renewed")
        assert await there.find_named("chat") is not None
        async with Reader(there, stream.id) as reader:
            await reader.until(3)
        assert reader.holes == []


# Writes that are repeated, late or lost


async def test_a_write_happens_once_if_its_answer_is_lost(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.3)
    observer = Counting()
    async with Proxy(server) as proxy, stores(server) as (there,):
        async with stores(proxy, timeout=0.3, observers=[observer]) as (here,):
            stream = FakeStream(here)
            stream.write(3)
            await visible(there, stream, last=3)
            proxy.swallows = True
            stream.write(3)
            await visible(there, stream, last=6)  # it has arrived
            stream.write(3)
            await observer.until_failed("flush")
            proxy.swallows = False
            stream.write(2)
            stream.log.end(LogState.FINISHED)
            reader = await Reader(there, stream.id).read_all()
        assert (reader.numbers, reader.holes) == (list(range(1, 12)), [])
        assert len(reader.frames) == len(b"".join(b"id: %d\ndata: x\n\n" % n for n in range(1, 12)))


async def test_a_first_write_happens_once_if_its_answer_is_lost(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.3)
    observer = Counting()
    options: dict[str, Any] = {"timeout": 0.3, "observers": [observer]}
    async with (
        Proxy(server) as proxy,
        stores(server) as (there,),
        stores(proxy, **options) as (here,),
    ):
        proxy.swallows = True
        stream = FakeStream(here)
        stream.write(3)
        await observer.until_failed("flush")
        proxy.swallows = False
        stream.write(2)
        stream.log.end(LogState.FINISHED)
        await visible(there, stream, state=LogState.FINISHED)
        reader = await Reader(there, stream.id).read_all()
    assert (reader.numbers, reader.holes) == ([1, 2, 3, 4, 5], [])


async def test_an_id_that_redis_has_already_is_taken_for_written(server: RedisServer) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.write(2)
        await visible(there, stream, last=2)
        async with Reader(there, stream.id) as reader:
            await reader.until(2)
            (key,) = [key for key in server.all_keys() if key.endswith(":log")]
            server.client.xadd(key, {"h": ""}, id="4-0")
            stream.write(4)
            await reader.until(6)
        assert reader.numbers == [1, 2, 5, 6]
        assert reader.holes == [(3, 4)]


async def test_a_log_that_redis_has_lost_begins_again_and_readers_are_notified(
    server: RedisServer,
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.log.set_name("chat")
        stream.write(3)
        await visible(there, stream, last=3)
        server.client.flushall()
        stream.write(2)
        await visible(there, stream, last=5, first=4)
        late, in_time = Reader(there, stream.id), Reader(there, stream.id, 3)
        stream.log.end(LogState.FINISHED)
        for reader in (late, in_time):
            await reader.read_all()
        assert (late.numbers, late.holes) == ([4, 5], [(1, 3)])
        assert (in_time.numbers, in_time.holes) == ([4, 5], [])
        assert await there.find_named("chat") is not None
        assert all(server.client.pttl(key) > 0 for key in server.all_keys())


async def test_a_late_write_does_not_make_a_key_that_lives_for_ever(server: RedisServer) -> None:
    async with stores(server) as (store,):
        streams = [FakeStream(store) for _ in range(20)]
        for _ in range(20):
            for stream in streams:
                stream.write()
            await asyncio.sleep(0.01)
            server.client.flushall()
            await asyncio.sleep(0.01)
            assert all(server.client.pttl(key) > 0 for key in server.all_keys())


async def test_pending_events_are_bounded_and_dropped_events_are_reported_and_counted(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.2)
    observer = Counting()
    options: dict[str, Any] = {"timeout": 0.2, "max_bytes": 10_000, "observers": [observer]}
    async with stores(server, **options) as (store,):
        stream = FakeStream(store)
        stream.write(10, size=100)
        await stream.log.flush()
        with server.stopped():
            for _ in range(10):
                stream.write(100, size=100)
                await asyncio.sleep(0.01)
            await observer.until_failed("flush")
            stream.write(200, size=100)
            await observer.until_failed("drop")
        stream.log.end(LogState.FINISHED)
        await stream.log.flush()
        reader = await whole(store, stream)
    assert reader.holes
    assert len(reader.numbers) <= 100
    assert reader.last == stream.last
