"""Faults of Redis and the network, with publishers in tasks and in threads, and many readers.

A call that has returned has published its event: each reader receives it once, in the order of its
publisher, or is notified with `truncated` if Redis has lost it.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from sse_middleware.channels import close_channels
from tests.support import redis_refusals
from tests.support.channel_contract import new_channel
from tests.support.channel_history import Run
from tests.support.redis_channels import ask
from tests.support.redis_cluster import REPLACES_NODES, RedisCluster, wait_for_replica_of
from tests.support.redis_sentinel import AT_ONCE, watched_master
from tests.support.redis_server import Proxy, RedisServer
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, REPLACES_NODES]

TIMEOUT_SECONDS = 0.6
FAULT_SECONDS = 2.5 * TIMEOUT_SECONDS


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
async def _closed_channels() -> AsyncIterator[None]:
    yield
    await close_channels()


class Place:
    """A Redis, its replica, and the network to it.

    Attributes:
        redis: the Redis to which the network leads.
        replica: its replica.
        network: the network.
    """

    def __init__(self, redis: RedisServer, replica: RedisServer, network: Proxy) -> None:
        self.redis = redis
        self.replica = replica
        self.network = network


@asynccontextmanager
async def suspended(place: Place) -> AsyncIterator[None]:
    with place.redis.stopped():
        yield


@asynccontextmanager
async def partitioned(place: Place) -> AsyncIterator[None]:
    with place.network.partition():
        yield


@asynccontextmanager
async def without_answers(place: Place) -> AsyncIterator[None]:
    place.network.swallows = True
    yield
    place.network.swallows = False


@asynccontextmanager
async def slow(place: Place) -> AsyncIterator[None]:
    place.network.delay = 0.4 * TIMEOUT_SECONDS
    yield
    place.network.delay = 0.0


@asynccontextmanager
async def full(place: Place) -> AsyncIterator[None]:
    with redis_refusals.full(place.redis):
        yield


@asynccontextmanager
async def with_too_few_replicas(place: Place) -> AsyncIterator[None]:
    with redis_refusals.without_replicas(place.redis):
        yield


@asynccontextmanager
async def without_permission(place: Place) -> AsyncIterator[None]:
    ask(place.redis, "ACL", "SETUSER", "default", "-eval", "-evalsha", "-xrange")
    yield
    ask(place.redis, "ACL", "SETUSER", "default", "+@all")


@asynccontextmanager
async def emptied(place: Place) -> AsyncIterator[None]:
    ask(place.redis, "FLUSHALL")
    yield


@asynccontextmanager
async def restarted(place: Place) -> AsyncIterator[None]:
    place.redis.kill()
    yield
    place.redis.start()


@asynccontextmanager
async def failed_over(place: Place) -> AsyncIterator[None]:
    """The master dies, and the address leads to its replica."""
    place.redis.kill()
    yield
    ask(place.replica, "REPLICAOF", "NO", "ONE")
    place.network.target = place.replica


@asynccontextmanager
async def demoted(place: Place) -> AsyncIterator[None]:
    """The address leads to another master, and the old one stays, read-only."""
    ask(place.replica, "REPLICAOF", "NO", "ONE")
    ask(place.redis, "REPLICAOF", "127.0.0.1", place.replica.port)
    yield
    place.network.target = place.replica


Fault = Callable[[Place], AbstractAsyncContextManager[None]]
HARMLESS: list[Fault] = [
    *(
        suspended,
        partitioned,
        without_answers,
        slow,
        full,
        with_too_few_replicas,
        without_permission,
    ),
]
LOSING: list[Fault] = [emptied, restarted, failed_over, demoted]


async def play(run: Run, fault: AbstractAsyncContextManager[None], *, loses: bool) -> list[str]:
    """Publish and read during a fault, and return what is not as promised."""
    run.start()
    try:
        await until(lambda: run.history.count() > 50, "few events were published before the fault")
        async with fault:
            await asyncio.sleep(FAULT_SECONDS)
        healed = time.monotonic()
        lost_until = healed + 1 if loses else -math.inf
        later = max(healed, lost_until)
        await until(lambda: run.history.count(later) > 100, "few events were published after it")
    finally:
        await run.finish()
    return list(run.history.problems(may_be_lost_until=lost_until))


@pytest.mark.parametrize("fault", HARMLESS + LOSING, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))]
)
async def test_events_are_received_once_or_their_loss_is_reported(
    fault: Fault, seed: int, tmp_path: Path
) -> None:
    (tmp_path / "replica").mkdir()
    with RedisServer(tmp_path, *AT_ONCE) as redis, RedisServer(tmp_path / "replica") as replica:
        ask(replica, "REPLICAOF", "127.0.0.1", redis.port)
        wait_for_replica_of(redis)
        async with Proxy(redis) as network:
            place = Place(redis, replica, network)
            url = f"{network.url}?socket_timeout={TIMEOUT_SECONDS}"
            run = Run(url, [new_channel() for _ in range(3)], seed)
            assert await play(run, fault(place), loses=fault in LOSING) == []
            await close_channels()


async def test_a_master_of_a_cluster_fails_over(tmp_path: Path) -> None:
    with RedisCluster(tmp_path, *AT_ONCE, replicas=True) as cluster:
        channels = [new_channel() for _ in range(6)]
        run = Run(cluster.patient_url, channels, 0)

        @asynccontextmanager
        async def one_killed() -> AsyncIterator[None]:
            cluster.nodes[2].kill()  # a master, and not that of the URL
            yield
            await until(
                lambda: ask(cluster.nodes[0], "CLUSTER INFO")["cluster_state"] == "ok",
                "the replica was to take over",
            )

        assert await play(run, one_killed(), loses=True) == []
        await close_channels()


async def test_a_master_fails_over_that_sentinels_watch(tmp_path: Path) -> None:
    with watched_master(tmp_path) as servers:
        channels = [new_channel() for _ in range(3)]
        run = Run(f"{servers.url}?socket_timeout={TIMEOUT_SECONDS}", channels, 0)

        @asynccontextmanager
        async def killed() -> AsyncIterator[None]:
            servers.master.kill()
            yield

        assert await play(run, killed(), loses=True) == []
        await close_channels()
