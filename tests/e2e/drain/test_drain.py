"""Servers that are told to end, with endless streams open: they end, and every client is told."""

import asyncio
import json
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

from sse_middleware import Event, EventParser, drain
from tests.e2e.drain.app import app
from tests.support.ports import free_port
from tests.support.servers import SERVERS, Server, running_process, serving, wait_until_listening

pytestmark = pytest.mark.anyio

APP = "tests.e2e.drain.app:app"
DRAIN = 1.0
ENVIRON = {"SSE_DRAIN_SECONDS": str(DRAIN), "SSE_READY_PATH": "/ready", "SSE_LINGER_SECONDS": "60"}
HYPERCORNS_OWN = 3.0
"""It tells nobody, and cancels its apps after this time."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Stream:
    """One `EventSource`, by hand: httpx would take seconds for a thousand.

    Attributes:
        events: what was dispatched.
        whole: whether the response ended as it should.
        ended_at: when it did, or was cut.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.events: list[Event] = []
        self.whole = False
        self.ended_at = 0.0
        self.writer = writer
        self._reader = reader
        self._parser = EventParser()

    async def until_end(self) -> None:
        try:
            while line := await self._reader.readline():
                size = int(line, 16)
                chunk = await self._reader.readexactly(size + 2)
                self.events += self._parser.feed(chunk[:size])
                if not size:
                    self.whole = True
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it is not whole
        finally:
            self.ended_at = time.monotonic()
            self.writer.close()

    @property
    def reason(self) -> str:
        last = self.events[-1]
        return str(json.loads(last.data)["reason"]) if last.event == "complete" else last.event


async def opened(port: int, path: str) -> Stream:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET %b HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        b"Cache-Control: no-cache\r\n\r\n" % path.encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head, head
    return Stream(reader, writer)


@asynccontextmanager
async def streams(port: int, path: str, count: int) -> AsyncIterator[list[Stream]]:
    """Open streams, and read them to their ends behind the block."""
    found = [await opened(port, path) for _ in range(count)]
    tasks = [asyncio.ensure_future(stream.until_end()) for stream in found]
    try:
        await asyncio.sleep(0.5)
        yield found
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def exit_of(process: subprocess.Popen[bytes], began: float) -> tuple[int, float]:
    """Return the status of a process, and how long after `began` it has ended."""
    status = await asyncio.to_thread(process.wait, 30)
    return status, time.monotonic() - began


def idle_status(name: str) -> int:
    """Return how a server ends that has nothing to do."""
    return -signal.SIGTERM if name.startswith("uvicorn") else 0


def longest(name: str, drain_seconds: float = DRAIN) -> float:
    return drain_seconds + (HYPERCORNS_OWN if name == "hypercorn" else 0.0) + 1


def assert_told(found: list[Stream], drain_seconds: float = DRAIN) -> None:
    for stream in found:
        assert stream.whole
        assert stream.reason == "shutdown"
        retry = stream.events[-1].retry
        assert retry is not None
        assert drain_seconds * 500 <= retry <= drain_seconds * 1000


@pytest.mark.parametrize("path", ["/feed", "/deaf/"])
@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_ends_in_time_and_all_clients_are_told(
    name: str, path: str, tmp_path: Path
) -> None:
    with serving(name, APP, tmp_path, ENVIRON) as server:
        async with streams(server.port, path, 20) as found:
            began = time.monotonic()
            server.process.terminate()
        status, took = await exit_of(server.process, began)
        assert_told(found)
        assert status == idle_status(name)
        assert took < longest(name)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_that_has_nothing_to_do_ends_at_once(name: str, tmp_path: Path) -> None:
    with serving(name, APP, tmp_path, ENVIRON) as server:
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{server.url}/ready")).status_code == 200
        began = time.monotonic()
        server.process.terminate()
        status, took = await exit_of(server.process, began)
        assert status == idle_status(name)
        assert took < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
async def test_a_thousand_streams_end_in_time(name: str, tmp_path: Path) -> None:
    with serving(name, APP, tmp_path, {**ENVIRON, "SSE_DRAIN_SECONDS": "2"}) as server:
        async with streams(server.port, "/feed?pause=2", 1000) as found:
            began = time.monotonic()
            server.process.terminate()
        status, took = await exit_of(server.process, began)
        assert_told(found, 2)
        assert len({stream.events[-1].retry for stream in found}) > 200
        assert status == idle_status(name)
        assert took < longest(name, 2)


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    environ = {**ENVIRON, "SSE_DRAIN_SECONDS": "20"}
    with serving("uvicorn-httptools", APP, tmp_path, environ) as server:
        async with streams(server.port, "/feed", 5) as found:
            server.process.terminate()
            await asyncio.sleep(1.3)
            assert not any(stream.ended_at for stream in found)
            began = time.monotonic()
            server.process.terminate()
        _, took = await exit_of(server.process, began)
        assert [stream.reason for stream in found] == ["shutdown"] * 5
        assert took < 1


@contextmanager
def uvicorn_with(directory: Path, *arguments: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), *arguments, APP]
    with running_process(command, directory / "uvicorn.log", ENVIRON) as (process, log):
        wait_until_listening(port, process, log)
        yield Server(f"http://127.0.0.1:{port}", port, process, log)


async def test_all_workers_of_a_server_end_in_time(tmp_path: Path) -> None:
    with uvicorn_with(tmp_path, "--workers", "3") as server:
        async with streams(server.port, "/feed", 30) as found:
            began = time.monotonic()
            server.process.terminate()
        status, took = await exit_of(server.process, began)
        assert_told(found)
        assert status == 0
        assert took < DRAIN + 1.5  # the parent asks its workers each half a second


async def test_ctrl_c_which_reaches_the_workers_twice_leaves_streams_their_time(
    tmp_path: Path,
) -> None:
    with uvicorn_with(tmp_path, "--workers", "2") as server:
        async with streams(server.port, "/feed", 10) as found:
            began = time.monotonic()
            os.killpg(server.process.pid, signal.SIGINT)
        await exit_of(server.process, began)
        assert_told(found)
        assert min(stream.ended_at for stream in found) - began > DRAIN - 0.1


async def test_a_reload_ends_the_streams_of_the_old_code(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "code.py").write_text("")
    with uvicorn_with(tmp_path, "--reload", "--reload-dir", str(watched)) as server:
        async with httpx.AsyncClient() as client:
            old = (await client.get(f"{server.url}/pid")).text
        async with streams(server.port, "/feed", 5) as found:
            (watched / "code.py").write_text("changed = True")
        assert_told(found)
        async with httpx.AsyncClient(timeout=20) as client:
            assert (await client.get(f"{server.url}/pid")).text != old


async def test_a_server_in_a_thread_ends_when_it_was_drained(monkeypatch: Any) -> None:
    port = free_port()
    for variable, text in ENVIRON.items():
        monkeypatch.setenv(variable, text)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:  # noqa: ASYNC110 - it is in another loop
        await asyncio.sleep(0.01)
    async with streams(port, "/feed", 5) as found, httpx.AsyncClient() as client:
        began = time.monotonic()
        drains = asyncio.ensure_future(drain())
        await asyncio.sleep(0.1)
        assert (await client.get(f"http://127.0.0.1:{port}/ready")).status_code == 503
        assert (await client.get(f"http://127.0.0.1:{port}/pid")).status_code == 200
        await drains
        server.should_exit = True
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
    assert time.monotonic() - began < DRAIN + 1
    assert_told(found)


@pytest.mark.parametrize("name", SERVERS)
async def test_the_streams_of_sse_starlette_end_too(name: str, tmp_path: Path) -> None:
    with serving(name, APP, tmp_path, ENVIRON) as server:
        async with streams(server.port, "/sse-starlette", 5) as found:
            began = time.monotonic()
            server.process.terminate()
        status, took = await exit_of(server.process, began)
        assert all(stream.whole for stream in found)
        assert {stream.reason for stream in found} <= {"shutdown", "finished", "message"}
        assert status == idle_status(name)
        assert took < longest(name)
