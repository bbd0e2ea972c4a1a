"""Workers that share a Redis are replaced one by one, under load, and no reader loses an event."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.drain.test_drain import Stream, opened
from tests.support.cut_proxy import CuttingProxy
from tests.support.redis_server import RedisServer
from tests.support.viewers import Viewer
from tests.support.workers import Worker, working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
READERS = 200
NUMBERS = 60
ANSWER = f"/ticks?n={NUMBERS}&pause=0.05"
ENVIRON = {"SSE_DRAIN_SECONDS": "8", "SSE_RETRY_MS": "1000"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Balancer(CuttingProxy):
    """Send each connection to the next of the servers that there are now.

    Attributes:
        ports: theirs.
    """

    def __init__(self, ports: list[int]) -> None:
        super().__init__(ports)
        self.ports = ports
        self._server_ports = self._in_turn()

    def _in_turn(self) -> Iterator[int]:
        while True:
            port = self.ports.pop(0)
            self.ports.append(port)
            yield port


async def replace(worker: Worker, balancer: Balancer) -> float:
    """Start a worker in the place of another one, and return how long that took to end."""
    process, port = worker.server.process, worker.server.port
    await asyncio.to_thread(worker.start)
    balancer.ports.append(worker.server.port)
    balancer.ports.remove(port)
    began = time.monotonic()
    process.terminate()
    await asyncio.to_thread(process.wait, 20)
    return time.monotonic() - began


async def read(port: int, begins_in: float) -> Viewer:
    await asyncio.sleep(begins_in)
    viewer = Viewer(port, ANSWER, haste=0.05)
    await viewer.run(most_connections=10_000)
    return viewer


async def test_every_reader_has_the_whole_answer_once_though_all_workers_are_replaced(
    tmp_path: Path,
) -> None:
    with (
        RedisServer(tmp_path) as redis,
        working(APP, 3 * [redis.url], tmp_path, ENVIRON) as workers,
    ):
        ports = [worker.server.port for worker in workers]
        async with Balancer(ports) as balancer:
            readers = [
                asyncio.ensure_future(read(balancer.port, number * 0.05))
                for number in range(READERS)
            ]
            await asyncio.sleep(1)
            took = [await replace(worker, balancer) for worker in workers]
            viewers = await asyncio.gather(*readers)
    for viewer in viewers:
        assert viewer.numbers == list(range(1, NUMBERS + 1))
        assert not viewer.discarded
        assert viewer.told("complete")[0]["reason"] == "finished"
    assert sum(len(viewer.asked_with) > 1 for viewer in viewers) > READERS / 10
    assert max(took) < 9


async def test_a_worker_that_ends_lets_its_clients_go_at_once_to_read_on_elsewhere(
    tmp_path: Path,
) -> None:
    with (
        RedisServer(tmp_path) as redis,
        working(APP, 2 * [redis.url], tmp_path, {"SSE_DRAIN_SECONDS": "3"}) as workers,
    ):
        one, two = (worker.server for worker in workers)
        stream = await opened(one.port, "/ticks")
        reading = asyncio.ensure_future(stream.until_end())
        while len(stream.events) < 10:  # noqa: ASYNC110 - another task reads
            await asyncio.sleep(0.01)
        began = time.monotonic()
        one.process.terminate()
        await reading
        assert stream.ended_at - began < 1
        assert stream.whole
        assert stream.events[-1].event == "heartbeat"
        assert stream.events[-1].retry is not None
        async with Viewer(two.port, "/ticks", last_event_id=last_id(stream)) as again:
            assert (await again.until_told("complete"))["reason"] == "shutdown"
            assert 2.5 < time.monotonic() - began < 4.5
        await asyncio.to_thread(one.process.wait, 5)
        last = max(int(event.data) for event in stream.events if event.event == "message")
        assert again.is_whole(last + 1)


def last_id(stream: Stream) -> str:
    return [event.id for event in stream.events if event.id][-1]
