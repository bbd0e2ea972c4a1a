"""Workers that share a Redis are replaced one by one under load; no reader loses an event."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.drain.drained_stream import opened
from tests.support.cut_proxy import CuttingProxy
from tests.support.redis_server import RedisServer
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS, until
from tests.support.workers import Worker, working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
READERS = 200
DRAIN = 3.0
NUMBERS = 60
ANSWER = f"/ticks?n={NUMBERS}&pause=0.05"
ENVIRON = {"SSE_DRAIN_SECONDS": "8", "SSE_RETRY_MS": "1000"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Balancer(CuttingProxy):
    """Send each connection to the next of the servers that run at the moment.

    Attributes:
        ports: the ports of these servers.
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


async def replace(worker: Worker, balancer: Balancer) -> None:
    """Start a worker in the place of another one, and wait for the end of that."""
    process, port = worker.server.process, worker.server.port
    await asyncio.to_thread(worker.start)
    balancer.ports.append(worker.server.port)
    balancer.ports.remove(port)
    process.terminate()
    await asyncio.to_thread(process.wait, HANG_SECONDS)


async def read(viewer: Viewer, begins_in: float) -> None:
    await asyncio.sleep(begins_in)
    await viewer.run(most_connections=10_000)


async def test_each_reader_receives_the_whole_answer_once_while_all_workers_are_replaced(
    tmp_path: Path,
) -> None:
    with (
        RedisServer(tmp_path) as redis,
        working(APP, 3 * [redis.patient_url], tmp_path, ENVIRON) as workers,
    ):
        ports = [worker.server.port for worker in workers]
        async with Balancer(ports) as balancer:
            viewers = [Viewer(balancer.port, ANSWER, haste=0.05) for _ in range(READERS)]
            readers = [
                asyncio.ensure_future(read(viewer, number * 0.05))
                for number, viewer in enumerate(viewers)
            ]
            await until(lambda: viewers[READERS // 10].last > 0, "no reader has an event")
            for worker in workers:
                await replace(worker, balancer)
            await asyncio.gather(*readers)
    for viewer in viewers:
        assert viewer.numbers == list(range(1, NUMBERS + 1))
        assert not viewer.discarded
        assert viewer.data_of("complete")[0]["reason"] == "finished"
    assert sum(len(viewer.asked_with) > 1 for viewer in viewers) > READERS / 10


async def test_a_worker_that_ends_disconnects_its_clients_first_and_they_resume_at_another(
    tmp_path: Path,
) -> None:
    with (
        RedisServer(tmp_path) as redis,
        working(
            APP, 2 * [redis.patient_url], tmp_path, {"SSE_DRAIN_SECONDS": str(DRAIN)}
        ) as workers,
    ):
        one, two = (worker.server for worker in workers)
        stream = await opened(one.port, "/ticks")
        reading = asyncio.ensure_future(stream.until_end())
        await until(lambda: len(stream.numbers) >= 10, "the stream has too few events")
        began = time.monotonic()
        one.process.terminate()
        await asyncio.wait_for(reading, HANG_SECONDS)
        assert stream.whole
        assert stream.events[-1].event == "heartbeat"
        assert stream.events[-1].retry is not None
        async with Viewer(two.port, "/ticks", last_event_id=stream.last_event_id) as again:
            assert (await again.until_control("complete"))["reason"] == "shutdown"
            assert time.monotonic() - began > DRAIN - 0.1
        await asyncio.to_thread(one.process.wait, HANG_SECONDS)
        last = max(stream.numbers)
        assert again.last > last, "the app did not run until the drain was over"
        assert again.is_whole(last + 1)
