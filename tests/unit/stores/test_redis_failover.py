"""A stream continues if its master dies and the replica takes over."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path

import pytest
import redis
from redis.asyncio.cluster import RedisCluster as ClusterClient

from sse_middleware.errors import StoreError
from sse_middleware.stores.base import LogState
from sse_middleware.stores.redis import RedisStore
from sse_middleware.testing import FakeStream, Reader
from sse_middleware.testing.streams import eventually
from tests.support.redis_cluster import REPLACES_NODES, RedisCluster
from tests.support.redis_sentinel import AT_ONCE, WatchedMaster, watched_master

pytestmark = [pytest.mark.anyio, REPLACES_NODES]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Watched:
    """A master and its replica, which a Sentinel watches."""

    def __init__(self, servers: WatchedMaster) -> None:
        self._servers = servers

    def new_store(self, _: AsyncExitStack) -> RedisStore:
        return RedisStore(self._servers.url, timeout=30)

    def kill_master_of(self, _: str) -> None:
        self._servers.master.kill()


class Clustered:
    """Three masters with a replica each, which watch each other."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster

    def new_store(self, stack: AsyncExitStack) -> RedisStore:
        client = ClusterClient(host="127.0.0.1", port=self._cluster.nodes[1].port)
        stack.push_async_callback(client.aclose)
        return RedisStore(client=client, timeout=30)

    def kill_master_of(self, stream_id: str) -> None:
        keys = self._cluster.all_keys()  # a replica has them, too
        (key,) = {key for key in keys if stream_id in key and key.endswith(":log")}
        self._cluster.owner(key).kill()


@pytest.fixture(params=[Watched, Clustered])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched | Clustered]:
    if request.param is Clustered:
        if redis.__version__.startswith(("5.1.", "5.2.")):
            pytest.skip("until 5.3, pipelines of redis-py may fail while a cluster fails over")
        with RedisCluster(tmp_path, *AT_ONCE, replicas=True) as cluster:
            yield Clustered(cluster)
        return
    with watched_master(tmp_path) as servers:
        yield Watched(servers)


async def test_a_stream_continues_on_the_replica_and_readers_are_notified_of_each_gap(
    deployment: Watched | Clustered,
) -> None:
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(2):
            stores.append(deployment.new_store(stack))
            stack.push_async_callback(stores[-1].close)
        here, there = stores
        stream = FakeStream(here)
        stream.write(3)
        await eventually(
            lambda: there.find(stream.id), lambda found: bool(found and found.last == 3), "three"
        )
        reading = asyncio.create_task(read_all_the_same(there, stream.id))
        for number in range(60):
            if number == 10:
                deployment.kill_master_of(stream.id)
            stream.write()
            await asyncio.sleep(0.04)
        stream.log.end(LogState.FINISHED)
        for numbers, holes in (await reading, await read_all_the_same(there, stream.id)):
            told = list(chain(*(range(first, last + 1) for first, last in holes)))
            assert sorted([*numbers, *told]) == list(range(1, stream.last + 1))
            assert len(told) < 10, "the replica had nearly all of it"


async def read_all_the_same(
    store: RedisStore, stream_id: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Read a log to its end, and continue after each time at which the store is out of reach."""
    numbers: list[int] = []
    holes: list[tuple[int, int]] = []
    last, deadline = 0, time.monotonic() + 60
    while True:
        reader = Reader(store, stream_id, last)
        try:
            await reader.read_all()
        except StoreError:
            assert time.monotonic() < deadline, "the replica has not taken over"
            await asyncio.sleep(0.1)
        numbers += reader.numbers
        holes += reader.holes
        last = reader.last
        if reader.end is not None:
            assert reader.end.state is LogState.FINISHED
            return numbers, holes
