"""On a real cluster: one round trip to each node, from worker to worker, while slots move."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.cluster import RedisCluster as ClusterClient

from sse_middleware import StoreError
from sse_middleware.stores.base import LogState
from sse_middleware.stores.redis import RedisStore
from sse_middleware.stores.redis.client import WRITE_TIMEOUT_SECONDS
from sse_middleware.stores.redis.keys import Keys
from sse_middleware.testing import FakeStream, Reader
from sse_middleware.testing.streams import eventually
from tests.support.middleware import marking
from tests.support.redis_cluster import REPLACES_NODES, RedisCluster
from tests.support.resuming import Counting, opened, returning

pytestmark = [pytest.mark.anyio, REPLACES_NODES]

COMMANDS = (
    *("+get", "+set", "+del", "+exists", "+eval", "+pexpire"),
    *("+xadd", "+xread", "+xrange", "+xrevrange", "+cluster", "+command"),
)
"""The permissions that docs/resume.md lists."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("redis")) as cluster:
        yield cluster


@asynccontextmanager
async def stores(cluster: RedisCluster, count: int = 1) -> AsyncGenerator[list[RedisStore]]:
    """Make stores as different processes have them."""
    async with AsyncExitStack() as stack:
        made = [RedisStore(cluster.patient_url) for _ in range(count)]
        for store in made:
            stack.push_async_callback(store.close)
        yield made


async def visible(store: RedisStore, stream: FakeStream, last: int) -> None:
    """Wait until a store in another process finds a stream so far."""

    async def ask() -> int:
        found = await store.find(stream.id)
        return -1 if found is None else found.last

    await eventually(ask, lambda got: got >= last, f"{stream.id} was to be found at {last}")


def log_key(stream: FakeStream) -> str:
    return Keys("sse:").log(stream.id)


async def test_streams_of_all_nodes_are_followed_and_cancelled_from_another_process(
    cluster: RedisCluster,
) -> None:
    async with stores(cluster, 2) as (here, there), AsyncExitStack() as stack:
        streams = [FakeStream(here) for _ in range(30)]
        assert {cluster.owner(log_key(stream)).port for stream in streams} == {
            node.port for node in cluster.nodes
        }
        readers = []
        for stream in streams:
            stream.log.set_name(stream.id)
            stream.write(3)
            await visible(there, stream, 3)
            readers.append(await stack.enter_async_context(Reader(there, stream.id)))
        for stream, reader in zip(streams, readers, strict=True):
            await stream.producer.until_notified("followed")
            assert await there.find_named(stream.id) is not None
            assert await there.cancel(stream.id)
            await stream.producer.until_cancelled()
            stream.write(2)
            stream.log.end(LogState.CANCELLED, b"event: complete\n\n")
            assert await reader.until_end() is LogState.CANCELLED
            assert (reader.numbers, reader.holes) == ([1, 2, 3, 4, 5], [])


async def test_a_flush_is_one_round_trip_to_each_node(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.log_writer.FLUSH_SECONDS", 0.3)
    adding = ("EVAL", "XADD")
    trips: list[tuple[object, list[Any]]] = []
    execute = ClusterNode.execute_pipeline

    async def note(node: ClusterNode, commands: list[Any]) -> bool:
        trips.append((node.port, [command.args for command in commands]))
        return await execute(node, commands)

    async with stores(cluster) as (store,):
        streams = [FakeStream(store) for _ in range(60)]
        for stream in streams:
            await stream.log.flush()
        monkeypatch.setattr(ClusterNode, "execute_pipeline", note)
        for _ in range(2):  # the first entries of their logs, and some more
            for stream in streams:
                stream.write(3)
            trips.clear()
            for stream in streams:
                await stream.log.flush()
            writes = [trip for trip in trips if any(args[0] in adding for args in trip[1])]
            assert len(writes) == 3
            assert {port for port, _ in writes} == {node.port for node in cluster.nodes}
            assert sum(args[0] in adding for _, commands in writes for args in commands) == 60


async def test_a_slot_that_moves_is_followed(cluster: RedisCluster) -> None:
    async with stores(cluster, 2) as (here, there):
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream, 3)
        async with Reader(there, stream.id) as reader:
            for _ in range(3):
                moving = asyncio.get_running_loop().run_in_executor(
                    None, cluster.move, log_key(stream)
                )
                while not moving.done():
                    stream.write()
                    await asyncio.sleep(0.002)
                await moving
                stream.write(5)
                await reader.until(stream.last)
            stream.log.end(LogState.FINISHED)
            await reader.until_end()
        late = await Reader(there, stream.id).read_all()
        for one in (reader, late):
            assert (one.numbers, one.holes) == (list(range(1, stream.last + 1)), [])
        assert all(
            node.client.pttl(key) > 0 for node in cluster.nodes for key in node.client.scan_iter()
        )


async def test_a_stream_may_begin_while_its_slot_moves(cluster: RedisCluster) -> None:
    async with stores(cluster, 2) as (here, there):
        name = FakeStream(here).id
        await asyncio.sleep(0.1)
        with cluster.moving(Keys("sse:").log(name)):
            stream = FakeStream(here, stream_id=name)
            stream.write(3)
            await asyncio.sleep(0.3)
        stream.write(2)
        stream.log.end(LogState.FINISHED)
        # redis-py may fail meanwhile: it sends ASKING on another connection than the command.
        reader = await whole(there, stream)
        assert (reader.numbers, reader.holes) == ([1, 2, 3, 4, 5], [])


async def test_a_master_that_is_restarted_empty_is_survived(cluster: RedisCluster) -> None:
    async with stores(cluster, 2) as (here, there):
        streams = [FakeStream(here) for _ in range(12)]
        for stream in streams:
            stream.write(3)
            await visible(there, stream, 3)
        down = cluster.owner(log_key(streams[0]))
        down.kill()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            for stream in streams:
                began = time.monotonic()
                stream.write()
                # Usually some microseconds; a call that waits for Redis takes the whole timeout.
                assert time.monotonic() - began < WRITE_TIMEOUT_SECONDS
            await asyncio.sleep(0.05)
        down.start()
        cluster.wait()
        for stream in streams:
            stream.write()
            stream.log.end(LogState.FINISHED)
            reader = await whole(there, stream)
            lost = reader.holes[0] if reader.holes else (1, 0)
            assert reader.numbers == list(range(lost[1] + 1, stream.last + 1))
            assert cluster.owner(log_key(stream)) is down or not reader.holes


async def whole(store: RedisStore, stream: FakeStream) -> Reader:
    """Read all of a stream that has ended, as soon as the store can be reached."""
    deadline = time.monotonic() + 30
    while True:
        try:
            await visible(store, stream, stream.last)
            return await Reader(store, stream.id).read_all()
        except StoreError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def test_the_client_of_a_user_with_a_password(cluster: RedisCluster) -> None:
    for node in cluster.nodes:
        login: dict[str, Any] = {"enabled": True, "passwords": ["+geheim"], "keys": ["sse:*"]}
        node.client.acl_setuser("app", **login, commands=COMMANDS)
    port = cluster.nodes[2].port

    def client() -> ClusterClient:
        return ClusterClient(
            host="127.0.0.1", port=port, username="app", password="geheim", decode_responses=True
        )

    async with client() as ours, client() as theirs:
        here, there = RedisStore(client=ours, timeout=30), RedisStore(client=theirs, timeout=30)
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream, 3)
        async with Reader(there, stream.id) as reader:
            await reader.until(3)
            await stream.producer.until_notified("followed")

            async def inboxes() -> int:
                return sum("inbox" in key for key in cluster.all_keys())

            await eventually(inboxes, lambda count: count >= 2, "both were to hold their leases")
        for store in (here, there):
            await store.close()
        assert await ours.exists("sse:") == 0


async def test_a_stream_is_resumed_by_another_app_that_has_the_same_variable(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSE_REDIS_URL", cluster.patient_url)
    other = Counting(0)
    apps = [marking(app, linger_seconds=5) for app in (Counting(5, pause=0.05), other)]
    async with opened(apps[0]) as exchange:
        await exchange.until_count(2, "message")
        exchange.disconnect()
        async with returning(apps[1], exchange.last_event_id) as back:
            await back.until_end()
    numbers = [
        event.data for one in (exchange, back) for event in one.events if event.event == "message"
    ]
    assert numbers == ["1", "2", "3", "4", "5"]
    assert other.scopes == []
    for app in apps:
        await app._context.store.close()


def test_an_event_loop_ends_although_the_store_is_not_closed(cluster: RedisCluster) -> None:
    program = f"""
import asyncio
import subprocess
import sys
from sse_middleware.stores.redis import RedisStore
from sse_middleware.stores.redis.client import WRITE_TIMEOUT_SECONDS
from sse_middleware.testing import FakeStream
from tests.support.middleware import marking

async def use(seconds):
    FakeStream(RedisStore({cluster.url!r})).write()
    await asyncio.sleep(seconds)

for milliseconds in range(0, 100, 10):
    asyncio.run(use(milliseconds / 1000))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)
