"""Servers that receive a signal while endless streams are open: they end, as do the streams."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn

from sse_middleware import drain
from tests.e2e.drain.app import app
from tests.e2e.drain.drained_stream import DrainedStream, opened
from tests.support.ports import free_port
from tests.support.servers import (
    SERVERS,
    Server,
    running_process,
    serving,
    until_logged,
    wait_until_listening,
)
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

APP = "tests.e2e.drain.app:app"
DRAIN = 1.0
ENVIRON = {"SSE_DRAIN_SECONDS": str(DRAIN), "SSE_READY_PATH": "/ready", "SSE_LINGER_SECONDS": "60"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def streams(port: int, path: str, count: int) -> AsyncIterator[list[DrainedStream]]:
    """Open streams and wait for an event of each; after the block, read them to their ends."""
    found = [await opened(port, path) for _ in range(count)]
    tasks = [asyncio.ensure_future(stream.until_end()) for stream in found]
    try:
        await until(lambda: all(stream.numbers for stream in found), "a stream has no event")
        yield found
        async with asyncio.timeout(HANG_SECONDS):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def exit_status(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, and return its status."""
    return await asyncio.to_thread(process.wait, HANG_SECONDS)


def idle_status(name: str) -> int:
    """Return the exit status of a server without requests."""
    return -signal.SIGTERM if name.startswith("uvicorn") else 0


def assert_shut_down(found: list[DrainedStream], drain_seconds: float = DRAIN) -> None:
    """Check that each stream has ended with `complete`, and reconnects within the drain."""
    for stream in found:
        assert stream.whole
        assert stream.reason == "shutdown"
        retry = stream.events[-1].retry
        assert retry is not None
        assert drain_seconds * 500 <= retry <= drain_seconds * 1000


@pytest.mark.parametrize("path", ["/feed", "/deaf/"])
@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_ends_and_each_client_receives_complete(
    name: str, path: str, tmp_path: Path
) -> None:
    with serving(name, APP, tmp_path, ENVIRON) as server:
        async with streams(server.port, path, 20) as found:
            server.process.terminate()
        assert await exit_status(server.process) == idle_status(name)
        assert_shut_down(found)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_without_streams_does_not_wait_for_the_drain(
    name: str, tmp_path: Path
) -> None:
    environ = {**ENVIRON, "SSE_DRAIN_SECONDS": str(10 * HANG_SECONDS)}
    with serving(name, APP, tmp_path, environ) as server:
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            assert (await client.get(f"{server.url}/ready")).status_code == 200
        server.process.terminate()
        assert await exit_status(server.process) == idle_status(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
async def test_a_thousand_streams_reconnect_at_different_times(name: str, tmp_path: Path) -> None:
    with serving(name, APP, tmp_path, {**ENVIRON, "SSE_DRAIN_SECONDS": "2"}) as server:
        async with streams(server.port, "/feed?pause=2", 1000) as found:
            server.process.terminate()
        assert await exit_status(server.process) == idle_status(name)
        assert_shut_down(found, 2)
        assert len({stream.events[-1].retry for stream in found}) > 200


async def test_a_second_signal_ends_the_streams_before_the_drain_is_over(tmp_path: Path) -> None:
    environ = {**ENVIRON, "SSE_DRAIN_SECONDS": str(10 * HANG_SECONDS)}
    with serving("uvicorn-httptools", APP, tmp_path, environ) as server:
        async with streams(server.port, "/feed", 5) as found:
            server.process.terminate()
            await asyncio.to_thread(until_logged, server.log, "Shutting down")
            await asyncio.sleep(1.3)  # a signal within a second counts as the same one
            assert not any(stream.ended_at for stream in found)
            server.process.terminate()
        await exit_status(server.process)
        assert [stream.reason for stream in found] == ["shutdown"] * 5


@contextmanager
def uvicorn_with(directory: Path, *arguments: str, **environ: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), *arguments, APP]
    log_file, environ = directory / "uvicorn.log", {**ENVIRON, **environ}
    with running_process(command, log_file, environ) as (process, log):
        wait_until_listening(port, process, log)
        yield Server(f"http://127.0.0.1:{port}", port, process, log)


async def test_all_workers_of_a_server_end(tmp_path: Path) -> None:
    with uvicorn_with(tmp_path, "--workers", "3") as server:
        async with streams(server.port, "/feed", 30) as found:
            server.process.terminate()
        assert await exit_status(server.process) == 0
        assert_shut_down(found)


async def test_ctrl_c_does_not_shorten_the_drain_though_workers_receive_it_twice(
    tmp_path: Path,
) -> None:
    # A parent that is late would send its signal after the second in which both count as one.
    environ = {"DUPLICATE_SIGNAL_SECONDS": str(HANG_SECONDS), "SSE_DRAIN_SECONDS": "2"}
    with uvicorn_with(tmp_path, "--workers", "2", **environ) as server:
        async with streams(server.port, "/feed", 10) as found:
            began = time.monotonic()
            os.killpg(server.process.pid, signal.SIGINT)
        await exit_status(server.process)
        assert_shut_down(found, 2)
        assert min(stream.ended_at for stream in found) - began > 1.9


async def reload(server: Server, file: Path) -> None:
    """Change a file until the server reloads, since it may not watch the folder at once."""
    async with asyncio.timeout(HANG_SECONDS):
        for change in itertools.count():
            await asyncio.to_thread(file.write_text, f"changed = {change}")
            await asyncio.sleep(2)
            if "Reloading" in await asyncio.to_thread(server.log.read_text):
                return


async def test_a_reload_ends_the_streams_of_the_old_code(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "code.py").write_text("")
    with uvicorn_with(tmp_path, "--reload", "--reload-dir", str(watched)) as server:
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            old = (await client.get(f"{server.url}/pid")).text
            async with streams(server.port, "/feed", 5) as found:
                await reload(server, watched / "code.py")
            assert_shut_down(found)
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            assert (await client.get(f"{server.url}/pid")).text != old


async def test_a_server_in_a_thread_ends_after_it_was_drained(monkeypatch: Any) -> None:
    port = free_port()
    for variable, text in ENVIRON.items():
        monkeypatch.setenv(variable, text)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    await until(lambda: server.started, "the server does not start")
    url = f"http://127.0.0.1:{port}"
    async with (
        streams(port, "/feed", 5) as found,
        httpx.AsyncClient(timeout=HANG_SECONDS) as client,
    ):
        drains = asyncio.ensure_future(drain())
        while (await client.get(f"{url}/ready")).status_code != 503:
            assert not drains.done()
        assert (await client.get(f"{url}/pid")).status_code == 200
        await drains
        server.should_exit = True
    await asyncio.to_thread(thread.join, HANG_SECONDS)
    assert not thread.is_alive()
    assert_shut_down(found)


@pytest.mark.parametrize("name", SERVERS)
async def test_the_streams_of_sse_starlette_end_too(name: str, tmp_path: Path) -> None:
    with serving(name, APP, tmp_path, ENVIRON) as server:
        async with streams(server.port, "/sse-starlette", 5) as found:
            server.process.terminate()
        assert await exit_status(server.process) == idle_status(name)
        assert all(stream.whole for stream in found)
        assert {stream.reason for stream in found} <= {"shutdown", "finished", "message"}
