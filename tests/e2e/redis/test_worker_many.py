"""Many streams: a worker needs no more connections to Redis for them, and no key is left."""

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.event_source import EventSource
from tests.support.redis_server import RedisServer
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS, until
from tests.support.workers import working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
WORKERS = 3
CONNECTIONS = 8 + 1
"""A pool, and the connection of the lease."""
TTL_SECONDS = 1.0
LINGER_SECONDS = 1.0
NAME_SECONDS = 60.0
"""The minimum time for which a name is kept."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def place(directory: Path) -> Generator[tuple[RedisServer, list[int]]]:
    """Run workers whose connections to Redis are named after them."""
    environ = {
        "SSE_REPLAY_TTL": str(TTL_SECONDS),
        "SSE_LINGER_SECONDS": str(LINGER_SECONDS),
        "SSE_STREAM_MAX_SECONDS": "600",
    }
    with RedisServer(directory) as redis:
        urls = [f"{redis.patient_url}&client_name=worker-{number}" for number in range(WORKERS)]
        with working(APP, urls, directory, environ) as workers:
            yield redis, [worker.server.port for worker in workers]


def connections(redis: RedisServer) -> Counter[str]:
    return Counter(client["name"] for client in redis.client.client_list() if client["name"])


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_thousand_streams_with_three_readers_each_need_no_additional_connections(
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
async def test_no_key_is_left_after_streams_have_ended(
    count: int, path: str, within: float, tmp_path: Path
) -> None:
    with place(tmp_path) as (redis, ports):
        waiting = iter(range(count))
        most_keys = 0

        async def play_some() -> None:
            nonlocal most_keys
            for number in waiting:
                port, own_path = ports[number % WORKERS], path.format(number)
                if number % 4 == 0:  # its client leaves before the end
                    async with Viewer(port, f"{own_path}pause=0.05") as viewer:
                        await viewer.until(2)
                else:
                    client = EventSource(port, f"{own_path}pause=0&n=5")
                    await client.run()
                    assert client.stopped_by == "complete"
                if number % (count // 10) == 0:
                    most_keys = max(most_keys, len(redis.all_keys()))

        await asyncio.gather(*(play_some() for _ in range(50)))
        assert most_keys > 2 * WORKERS

        def keys_of_streams() -> list[str]:
            own = {"lease", "inbox"}  # of the workers
            return [key for key in redis.all_keys() if key.rpartition(":")[2] not in own]

        await until(
            lambda: not keys_of_streams(),
            lambda: f"{len(keys_of_streams())} keys are left, such as {keys_of_streams()[:5]}",
            LINGER_SECONDS + within + HANG_SECONDS,
        )
        assert len(redis.all_keys()) == 2 * WORKERS
