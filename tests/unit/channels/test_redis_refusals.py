"""Redis refuses commands for some time: publishers repeat their events, and leave old masters."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from sse_middleware.channels import BlockingPublisher, Publisher
from sse_middleware.stores.base import LogState
from sse_middleware.testing import FakeStream
from tests.support.channel_contract import new_channel
from tests.support.redis_channels import KEYS, ask, count, has_failed_since
from tests.support.redis_cluster import RedisCluster, wait_for_replica_of
from tests.support.redis_refusals import full, read_only, without_replicas
from tests.support.redis_server import Proxy, RedisServer
from tests.support.redis_stores import Counting, stores
from tests.support.waiting import HANG_SECONDS, until, wait_until

pytestmark = pytest.mark.anyio

Publish = Callable[[str, str, object], Awaitable[bool]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def publishing(url: str, *, blocking: bool) -> AsyncGenerator[Publish]:
    """Return the `publish` of one of the two publishers."""
    if not blocking:
        async with Publisher(url) as publisher:
            yield publisher.publish
        return
    with BlockingPublisher(url) as blocking_publisher:

        def publish(channel: str, event: str, data: object) -> Awaitable[bool]:
            return asyncio.to_thread(blocking_publisher.publish, channel, event, data)

        yield publish


@contextmanager
def without_master(server: RedisServer) -> Iterator[None]:
    server.client.config_set("replica-serve-stale-data", "no")
    with read_only(server):
        yield
    server.client.config_set("replica-serve-stale-data", "yes")


@contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    server.client.config_set("lua-time-limit", 1)
    with socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(b"EVAL 'while true do end' 0\r\n")
        wait_until(partial(is_busy, server), "Redis was to be busy")
        yield
        while True:
            try:
                ask(server, "SCRIPT", "KILL")
            except redis.ResponseError as exc:
                if "NOTBUSY" in str(exc) or "No scripts" in str(exc):
                    return


def is_busy(server: RedisServer) -> bool:
    try:
        server.client.ping()
    except redis.ResponseError:
        return True
    return False


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("fault", [full, read_only, without_master, without_replicas, busy])
async def test_an_event_is_repeated_while_redis_refuses_it(
    any_server: RedisServer,
    fault: Callable[[RedisServer], object],
    *,
    blocking: bool,
) -> None:
    server, channel = any_server, new_channel()
    async with publishing(server.patient_url, blocking=blocking) as publish:
        await publish(channel, "n", 0)
        failures = count("publish")
        with ExitStack() as stack:
            stack.enter_context(fault(server))  # type: ignore[arg-type]
            outcome = asyncio.ensure_future(publish(channel, "n", 1))
            await until(partial(has_failed_since, failures + 1), "two attempts were to fail")
            assert not outcome.done()
        assert await outcome
    assert server.client.xlen(KEYS.channel(channel).log) == 2


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("of_cluster", [False, True])
async def test_an_event_is_repeated_while_a_cluster_is_down(
    tmp_path: Path, *, of_cluster: bool, blocking: bool
) -> None:
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as server:
        ask(server, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until(partial(is_up, server), "the cluster was to be up")
        url = server.patient_url
        if of_cluster:
            url = url.replace("redis:", "redis+cluster:").replace("/0?", "?")
        channel = new_channel()
        async with publishing(url, blocking=blocking) as publish:
            await publish(channel, "n", 0)
            failures = count("publish")
            ask(server, "CLUSTER", "DELSLOTS", 0)
            await until(lambda: not is_up(server), "the cluster was to be down")
            outcome = asyncio.ensure_future(publish(channel, "n", 1))
            await until(partial(has_failed_since, failures), "an attempt was to fail")
            assert not outcome.done()
            ask(server, "CLUSTER", "ADDSLOTS", 0)
            assert await outcome


def is_up(server: RedisServer) -> bool:
    return bool(ask(server, "CLUSTER INFO")["cluster_state"] == "ok")


@pytest.mark.parametrize("blocking", [False, True])
async def test_an_event_is_repeated_while_its_slot_moves(tmp_path: Path, *, blocking: bool) -> None:
    channel = new_channel()
    keys = KEYS.channel(channel)
    with RedisCluster(tmp_path) as cluster:
        source = cluster.owner(keys.log)
        target = next(node for node in cluster.nodes if node is not source)
        setslot = ("CLUSTER", "SETSLOT", key_slot(keys.log.encode()))
        # Of one node, because redis-py itself repeats commands to a cluster.
        async with publishing(source.patient_url, blocking=blocking) as publish:
            await publish(channel, "n", 0)
            failures = count("publish")
            ask(target, *setslot, "IMPORTING", ask(source, "CLUSTER", "MYID"))
            ask(source, *setslot, "MIGRATING", ask(target, "CLUSTER", "MYID"))
            ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", keys.about)
            outcome = asyncio.ensure_future(publish(channel, "n", 1))
            await until(partial(has_failed_since, failures), "an attempt was to fail")
            assert not outcome.done()
            ask(source, *setslot, "STABLE")
            assert await outcome


@asynccontextmanager
async def two_servers(directory: Path) -> AsyncGenerator[tuple[RedisServer, RedisServer, Proxy]]:
    """Run two servers, and a proxy that leads to the first one."""
    (directory / "other").mkdir()
    with RedisServer(directory) as first, RedisServer(directory / "other") as second:
        async with Proxy(first) as proxy:
            yield first, second, proxy


async def fail_over(first: RedisServer, second: RedisServer, proxy: Proxy) -> None:
    """Make the second server the master at the proxy's address; connections to the first stay."""
    ask(second, "REPLICAOF", "127.0.0.1", first.port)
    await asyncio.to_thread(wait_for_replica_of, first)
    ask(second, "REPLICAOF", "NO", "ONE")
    ask(first, "REPLICAOF", "127.0.0.1", second.port)
    proxy.target = second


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_publisher_leaves_a_former_master(tmp_path: Path, *, blocking: bool) -> None:
    channel = new_channel()
    async with two_servers(tmp_path) as (first, second, proxy):
        async with publishing(proxy.url, blocking=blocking) as publish:
            assert await publish(channel, "n", 0)
            await fail_over(first, second, proxy)
            for number in range(1, 4):
                assert await publish(channel, "n", number)
        assert second.client.xlen(KEYS.channel(channel).log) == 3


async def test_the_writer_and_the_lease_of_streams_leave_a_former_master(tmp_path: Path) -> None:
    counting = Counting()
    async with (
        two_servers(tmp_path) as (first, second, proxy),
        stores(proxy, observers=[counting], lease_seconds=2.0) as (store,),
        asyncio.timeout(HANG_SECONDS),
    ):
        before = FakeStream(store)
        before.write()
        await before.log.flush()
        await fail_over(first, second, proxy)
        second.client.flushall()
        after = FakeStream(store)
        after.write()
        after.log.end(LogState.FINISHED)
        await after.log.flush()
        assert any(after.id in key for key in second.all_keys())
        await until(lambda: has_lease(second), "the lease was to be renewed")


def has_lease(server: RedisServer) -> bool:
    return any(key.endswith(":lease") for key in server.all_keys())
