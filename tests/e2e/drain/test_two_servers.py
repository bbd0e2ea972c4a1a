"""The second server of a process drains like the first one."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.drain.drained_stream import opened
from tests.support.ports import free_port
from tests.support.servers import running_process, wait_until_listening
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def two_servers(
    way: str, directory: Path
) -> AsyncIterator[tuple[subprocess.Popen[bytes], list[int], Path]]:
    """Run two servers, and return their process, ports and log; they end after the block."""
    ports = [free_port(), free_port()]
    command = [sys.executable, "-m", "tests.e2e.drain.two_servers", way, *map(str, ports)]
    with running_process(command, directory / "servers.log") as (process, log):
        yield process, ports, log
        status = await asyncio.to_thread(process.wait, HANG_SECONDS)
        assert status == 0, log.read_text()


async def assert_drains(process: subprocess.Popen[bytes], log: Path, *ports: int) -> None:
    """Open three streams of each server, send the signal, and read the streams to their ends."""
    found = []
    for port in ports:
        wait_until_listening(port, process, log)
        found += [await opened(port, "/feed") for _ in range(3)]
    tasks = [asyncio.ensure_future(stream.until_end()) for stream in found]
    await until(lambda: all(stream.numbers for stream in found), "a stream has no event")
    before = [len(stream.numbers) for stream in found]
    process.terminate()
    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(*tasks)
    for stream, count in zip(found, before, strict=True):
        assert stream.whole
        assert stream.reason == "shutdown"
        # An event each tenth of a second of the two of the drain; fewer on a busy machine.
        assert len(stream.numbers) - count >= 3


@pytest.mark.parametrize("way", ["in-one-loop", "with-a-thread", "in-threads"])
@pytest.mark.parametrize("streaming", ["both", "first", "second"])
async def test_servers_that_run_together_drain_together(
    way: str, streaming: str, tmp_path: Path
) -> None:
    async with two_servers(way, tmp_path) as (process, ports, log):
        for port in ports:
            wait_until_listening(port, process, log)
        used = {"both": ports, "first": ports[:1], "second": ports[1:]}[streaming]
        await assert_drains(process, log, *used)


async def test_a_server_that_starts_when_the_other_one_has_streams_drains_like_that(
    tmp_path: Path,
) -> None:
    async with two_servers("in-one-loop-later", tmp_path) as (process, ports, log):
        await assert_drains(process, log, *ports)


@pytest.mark.parametrize("way", ["in-turn", "in-turn-in-one-loop"])
async def test_a_server_that_runs_after_another_one_drains_like_that(
    way: str, tmp_path: Path
) -> None:
    async with two_servers(way, tmp_path) as (process, ports, log):
        for port in ports:
            await assert_drains(process, log, port)
