"""Many streams: what a worker has of Redis does not grow with them, and nothing is left of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.event_source import EventSource
from tests.support.redis_server import RedisServer
from tests.support.viewers import Viewer
from tests.support.workers import working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
WORKERS = 3
CONNECTIONS = 8 + 1
"""A pool, and the lease's own."""
TTL_SECONDS = 1.0
LINGER_SECONDS = 1.0
NAME_SECONDS = 60.0
"""How long a name is kept, at least."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def place(directory: Path) -> Generator[tuple[RedisServer, list[int]]]:
    """Run workers whose connections to Redis bear their names."""
    environ = {
        "SSE_REPLAY_TTL": str(TTL_SECONDS),
        "SSE_LINGER_SECONDS": str(LINGER_SECONDS),
        "SSE_STREAM_MAX_SECONDS": "600",
    }
    with RedisServer(directory) as redis:
        urls = [f"{redis.url}?client_name=worker-{number}" for number in range(WORKERS)]
        with working(APP, urls, directory, environ) as workers:
            yield redis, [worker.server.port for worker in workers]


def connections(redis: RedisServer) -> Counter[str]:
    return Counter(client["name"] for client in redis.client.client_list() if client["name"])


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_thousand_streams_with_three_readers_each_need_no_more_connections(
    tmp_path: Path,
) -> None:
    count, path = 1000, "/ticks?pause=1&n=60"
    most: Counter[str] = Counter()
    with place(tmp_path) as (redis, ports):
        async with AsyncExitStack() as stack:
            live = []
            for number in range(count):
                viewer = Viewer(ports[number % WORKERS], path)
                live.append(await stack.enter_async_context(viewer))
            readers = []
            for viewer in live:
                await viewer.until(1)
                for port in ports:
                    cursor = viewer.events[0].last_event_id
                    reader = Viewer(port, path, last_event_id=cursor, haste=1)
                    readers.append(await stack.enter_async_context(reader))
            while not all(viewer.stopped_by for viewer in (*live, *readers)):
                most |= connections(redis)
                await asyncio.sleep(0.2)
        assert {viewer.stopped_by for viewer in (*live, *readers)} == {"complete"}
        assert all(viewer.is_whole() and viewer.last == 60 for viewer in live)
        assert all(reader.is_whole(2) and reader.last == 60 for reader in readers)
    assert len(most) == WORKERS
    assert max(most.values()) <= CONNECTIONS, most


@pytest.mark.parametrize(
    ("count", "path", "within"),
    [
        (300, "/ticks?", TTL_SECONDS),
        pytest.param(10_000, "/ticks?", TTL_SECONDS, marks=pytest.mark.slow),
        pytest.param(300, "/ticks?chat={}&", NAME_SECONDS, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(300)
async def test_no_key_is_left_of_streams_that_are_over(
    count: int, path: str, within: float, tmp_path: Path
) -> None:
    with place(tmp_path) as (redis, ports):
        waiting = iter(range(count))

        async def play_some() -> None:
            for number in waiting:
                port, own_path = ports[number % WORKERS], path.format(number)
                if number % 4 == 0:  # one that is left alone, and gives up by itself
                    async with Viewer(port, f"{own_path}pause=0.05") as viewer:
                        await viewer.until(2)
                else:
                    client = EventSource(port, f"{own_path}pause=0&n=5")
                    await client.run()
                    assert client.stopped_by == "complete"

        await asyncio.gather(*(play_some() for _ in range(50)))
        assert len(redis.all_keys()) > 2 * WORKERS  # those of the latest are still there
        deadline = time.monotonic() + LINGER_SECONDS + within + 2
        own = {"lease", "inbox"}  # of the workers, which live
        while keys := [key for key in redis.all_keys() if key.rpartition(":")[2] not in own]:
            assert time.monotonic() < deadline, (len(keys), keys[:5])
            await asyncio.sleep(0.2)
        assert len(redis.all_keys()) == 2 * WORKERS
