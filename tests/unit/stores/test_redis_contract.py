"""The contract of all stores on other kinds of Redis: a cluster of three, the oldest one, Valkey.

Its trials wait for time to go by, and so run side by side, each in a thread with a loop of its own.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster as RedisClusterClient

from sse_middleware.stores.redis import RedisStore
from sse_middleware.testing import StoreContract
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, need_old_redis_server, need_valkey_server
from tests.unit.stores.test_redis_clients import check_url

AT_ONCE = 4
LONG = ("a_running_log_is_kept_however_old", "a_reader_too_slow", "is_kept_for_its_time")


def check_contract(make: Callable[..., RedisStore]) -> None:
    """Run all trials, those that wait longest first."""

    class Contract(StoreContract):
        def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> RedisStore:
            return make(max_events=max_events, max_bytes=max_bytes, ttl=ttl)

    names = [name for name in dir(Contract) if name.startswith("test_")]
    names.sort(key=lambda name: not re.search("|".join(LONG), name))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        trials = {name: pool.submit(getattr(Contract(), name)) for name in names}
    failures = {name: trial.exception() for name, trial in trials.items() if trial.exception()}
    assert len(trials) > 30
    assert not failures


def test_the_contract_holds_on_redis_6_2(tmp_path: Path) -> None:
    with RedisServer(tmp_path, program=need_old_redis_server()) as server:
        assert server.client.info("server")["redis_version"].startswith("6.2.")
        check_contract(lambda **bounds: RedisStore(server.patient_url, **bounds))
        asyncio.run(check_url(server.url, server))


def test_the_contract_holds_on_valkey(tmp_path: Path) -> None:
    with RedisServer(tmp_path, program=need_valkey_server()) as server:
        assert server.client.info("server")["server_name"] == "valkey"
        check_contract(lambda **bounds: RedisStore(server.patient_url, **bounds))


def test_the_contract_holds_on_a_cluster(tmp_path: Path) -> None:
    with RedisCluster(tmp_path) as cluster:
        check_contract(lambda **bounds: RedisStore(cluster.patient_url, **bounds))
        assert all(node.client.info("stats")["total_commands_processed"] for node in cluster.nodes)


@pytest.mark.slow
def test_the_contract_holds_on_a_cluster_of_6_2_by_the_users_client(tmp_path: Path) -> None:
    with RedisCluster(tmp_path, program=need_old_redis_server()) as cluster:
        port = cluster.nodes[1].port

        class Store(RedisStore):
            def __init__(self, **bounds: Any) -> None:
                self.client = RedisClusterClient(host="127.0.0.1", port=port, decode_responses=True)
                super().__init__(client=self.client, timeout=30, **bounds)

            async def close(self) -> None:
                await super().close()
                await self.client.aclose()

        check_contract(Store)
