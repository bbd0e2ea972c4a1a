"""A rolling restart behind the proxies of docs/deployment.md, one upstream right after another."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.proxies import PROXIES, configured
from tests.support.redis_server import RedisServer
from tests.support.servers import Server, running_process, serving, wait_until_listening
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
READERS = 24
NUMBERS = 60
ANSWER = f"/ticks?n={NUMBERS}&pause=0.05"
ENVIRON = {"SSE_DRAIN_SECONDS": "8", "SSE_RETRY_MS": "1000", "SSE_LINGER_SECONDS": "1"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("proxy", PROXIES)
async def test_each_answer_arrives_whole_and_once_while_all_upstreams_are_restarted(
    proxy: str, tmp_path: Path
) -> None:
    ports = {"8080": free_port(), "8001": free_port(), "8002": free_port()}
    with RedisServer(tmp_path) as redis, ExitStack() as stack:
        environ = {**ENVIRON, "SSE_REDIS_URL": redis.patient_url}

        def start(port: int, number: int) -> Server:
            place = tmp_path / f"{port}-{number}"
            place.mkdir()
            return stack.enter_context(serving("uvicorn-httptools", APP, place, environ, port=port))

        upstreams = [start(ports[name], 0) for name in ("8001", "8002")]
        command = PROXIES[proxy](tmp_path, configured(proxy, ports))
        process, log = stack.enter_context(running_process(command, tmp_path / "proxy.log"))
        wait_until_listening(ports["8080"], process, log)
        viewers = [Viewer(ports["8080"], ANSWER, haste=0.05) for _ in range(READERS)]
        readers = [
            asyncio.ensure_future(read(viewer, number * 0.25))
            for number, viewer in enumerate(viewers)
        ]
        await until(lambda: viewers[READERS // 3].last > 0, "no reader has an event")
        for upstream in upstreams:
            upstream.process.terminate()
            await asyncio.to_thread(upstream.process.wait, HANG_SECONDS)
            await asyncio.to_thread(start, upstream.port, 1)
        await asyncio.gather(*readers)
    for viewer in viewers:
        assert viewer.numbers == list(range(1, NUMBERS + 1)), viewer.stopped_by
        assert not viewer.discarded
        assert viewer.data_of("complete")[0]["reason"] == "finished"
    assert any(len(viewer.asked_with) > 1 for viewer in viewers)


async def read(viewer: Viewer, begins_in: float) -> None:
    await asyncio.sleep(begins_in)
    await viewer.run(most_connections=10_000)
