"""A running fleet is replaced by a version with another schema of its keys in the same Redis."""

import asyncio
from pathlib import Path

import pytest

from sse_middleware.stores.redis.keys import SCHEMA
from tests.e2e.drain.test_rolling import Balancer, read
from tests.support.redis_server import RedisServer
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS, until
from tests.support.workers import working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
READERS = 40
NUMBERS = 60
ANSWER = f"/ticks?n={NUMBERS}&pause=0.05"
ENVIRON = {"SSE_DRAIN_SECONDS": "8", "SSE_RETRY_MS": "1000"}
OTHER = {**ENVIRON, "KEY_SCHEMA": str(SCHEMA + 1)}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def schemas_in(redis: RedisServer) -> set[str]:
    return {key.split(":")[1] for key in redis.all_keys()}


@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
async def test_each_reader_receives_a_whole_answer_while_the_schema_changes(
    direction: str, tmp_path: Path
) -> None:
    before, after = (ENVIRON, OTHER) if direction == "upgrade" else (OTHER, ENVIRON)
    with (
        RedisServer(tmp_path) as redis,
        working(APP, 2 * [redis.patient_url], tmp_path / "before", before) as old,
        working(APP, 2 * [redis.patient_url], tmp_path / "after", after) as new,
    ):
        async with Balancer([worker.server.port for worker in old]) as balancer:
            viewers = [Viewer(balancer.port, ANSWER, haste=0.05) for _ in range(READERS)]
            readers = [
                asyncio.ensure_future(read(viewer, number * 0.1))
                for number, viewer in enumerate(viewers)
            ]
            await until(lambda: viewers[READERS // 4].last > 0, "no reader has an event")
            for leaving, coming in zip(old, new, strict=True):
                balancer.ports.append(coming.server.port)
                balancer.ports.remove(leaving.server.port)
                leaving.server.process.terminate()
                await asyncio.to_thread(leaving.server.process.wait, HANG_SECONDS)
            assert schemas_in(redis) == {str(SCHEMA), str(SCHEMA + 1)}
            await asyncio.gather(*readers)
    for viewer in viewers:
        received = [int(event.data) for event in viewer.events]
        assert received == list(range(1, NUMBERS + 1)), viewer.stopped_by
        assert viewer.data_of("complete")[0]["reason"] == "finished"
        assert {reset["reason"] for reset in viewer.data_of("reset")} <= {"gone"}
    # Streams of the old version are continued there, and begin again at a worker of the new one.
    moved = [viewer for viewer in viewers if len(viewer.asked_with) > 1]
    assert any(viewer.discarded for viewer in moved)
    assert any(not viewer.discarded for viewer in viewers)
