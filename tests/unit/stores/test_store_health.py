"""What observers and metrics learn of the connections to Redis, its circuits and its listeners."""

import asyncio
import gc
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sse_middleware.channels.redis import RedisChannels
from sse_middleware.errors import StoreError
from sse_middleware.limits.open_rate import shared_by_redis, supports_installed_redis
from sse_middleware.observability.metrics import Metrics
from sse_middleware.stores.redis import RedisStore
from sse_middleware.stores.redis.client import client_for, close_client, send_all
from sse_middleware.stores.redis.counted_connection import count_connections
from sse_middleware.testing import FakeStream
from tests.support.redis_cluster import REPLACES_NODES, RedisCluster
from tests.support.redis_server import Proxy, RedisServer
from tests.support.redis_stores import Counting, visible
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_store_reports_what_is_open_and_up_and_nothing_after_its_close(
    running_server: RedisServer,
) -> None:
    observer = Counting()
    async with Proxy(running_server) as proxy:
        store = RedisStore(proxy.url, observers=(observer,))
        stream = FakeStream(store)
        await visible(store, stream)
        await until(lambda: observer.now().get("listener store up") == 1, "it was to listen")
        assert observer.now().keys() == {"connection store open", "listener store up"}
        proxy.cut()
        with pytest.raises(StoreError):
            await store.find("missing")
        await until(lambda: observer.now().get("listener store down") == 1, "it was to be down")
        down = {"circuit read open": 1, "listener store down": 1}
        await until(lambda: observer.now() == down, lambda: str(observer.now()))
        proxy.heal()
        await until(lambda: observer.now().get("listener store up") == 1, "it was to be up")
        await until(lambda: answers(observer), "the circuit was to be closed")
        await store.close()
    assert observer.now() == {}


def answers(observer: Counting) -> bool:
    return "circuit read open" not in observer.now()


async def test_a_circuit_is_closed_by_the_next_query_that_succeeds(
    running_server: RedisServer,
) -> None:
    observer = Counting()
    async with Proxy(running_server) as proxy:
        store = RedisStore(proxy.url, observers=(observer,))
        assert await store.find("missing") is None
        proxy.cut()
        with pytest.raises(StoreError):
            await store.find("other")
        proxy.heal()
        assert observer.now()["circuit read open"] == 1
        while not answers(observer):
            try:
                await store.find("missing")
            except StoreError:
                await asyncio.sleep(0.05)
        await store.close()


async def test_channels_report_their_listener(running_server: RedisServer) -> None:
    observer = Counting()
    async with Proxy(running_server) as proxy:
        channels = RedisChannels(proxy.url, observers=(observer,))
        with channels.follow("channel"):
            await until(lambda: observer.now().get("listener channels up") == 1, "it is not up")
            assert observer.now()["connection channels open"] >= 1
            proxy.cut()
            await until(lambda: observer.now().get("listener channels down") == 1, "it is up")
            proxy.heal()
            await until(lambda: observer.now().get("listener channels up") == 1, "it is not up")
        await channels.close()
    assert observer.now() == {}


async def test_metrics_show_the_health_of_the_store(running_server: RedisServer) -> None:
    registry = CollectorRegistry()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"name": "store", **labels})

    store = RedisStore(running_server.patient_url, observers=(Metrics(registry),))
    await visible(store, FakeStream(store))
    await until(lambda: value("sse_store_listeners", state="up") == 1, "it was to listen")
    opened = value("sse_store_connections", state="open")
    assert opened is not None
    assert 2 <= opened <= 8
    await store.close()
    assert value("sse_store_listeners", state="up") == 0
    assert value("sse_store_connections", state="open") == 0


@REPLACES_NODES
@pytest.mark.filterwarnings("ignore:unclosed Connection:ResourceWarning")  # of replaced nodes
async def test_the_connections_to_all_nodes_of_a_cluster_are_counted(tmp_path: Path) -> None:
    observer = Counting()
    with RedisCluster(tmp_path) as cluster:
        others = open_to(cluster)
        client = client_for(cluster.patient_url)
        count_connections(client, (observer,), "store")
        keys = [f"key-{number}" for number in range(30)]  # they are on all nodes

        def is_exact() -> bool:
            gc.collect()  # redis-py leaves connections of replaced nodes open
            return observer.now().get("connection store open", 0) == open_to(cluster) - others

        async def ask_all() -> None:
            await asyncio.gather(*(send_all(client, [("GET", key)]) for key in keys))
            await until(is_exact, lambda: f"{observer.now()}, {open_to(cluster) - others} are open")

        await ask_all()
        assert observer.now()["connection store open"] >= len(cluster.nodes)
        cluster.move(keys[0])
        await ask_all()
        await close_client(client)
        await until(is_exact, lambda: f"{observer.now()}, {open_to(cluster) - others} are open")
        assert observer.now() == {}


@pytest.mark.skipif(not supports_installed_redis(), reason="limits supports redis-py from 5.2 on")
async def test_stores_channels_and_limits_on_a_cluster_report_their_connections(
    tmp_path: Path,
) -> None:
    observer = Counting()
    with RedisCluster(tmp_path) as cluster:
        store = RedisStore(cluster.patient_url, observers=(observer,))
        channels = RedisChannels(cluster.patient_url, observers=(observer,))
        shared = shared_by_redis(
            cluster.patient_url,
            "sse:",
            lambda client: count_connections(client, (observer,), "limits"),
        )
        await visible(store, FakeStream(store))
        await shared.load_secret()
        with channels.follow("channel"):
            await until(lambda: observer.now().get("listener channels up") == 1, "it is not up")
            counted = {name for name in observer.now() if name.startswith("connection")}
            assert counted == {
                f"connection {name} open" for name in ("store", "channels", "limits")
            }
        await channels.close()
        await store.close()
        await shared.close()
    assert observer.now() == {}


def open_to(cluster: RedisCluster) -> int:
    """Return the number of connections that all nodes of a cluster have, not of other nodes."""
    lists = [
        node.client.client_list(_type=kind)
        for node in cluster.nodes
        for kind in ("normal", "pubsub")
    ]
    return sum(not one["cmd"].startswith("restore") for clients in lists for one in clients)
