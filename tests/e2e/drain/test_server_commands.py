"""The commands of docs/servers.md, at SIGTERM: open streams, new connections, and own limits."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.e2e.drain.drained_stream import DrainedStream, opened
from tests.support import needs
from tests.support.ports import free_port
from tests.support.servers import Server, running_process, wait_until_listening
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

PAGE = (needs.REPOSITORY / "docs" / "servers.md").read_text()
COMMANDS = dict(re.findall(r"^## ([^\n]+)\n\n```sh\n([^\n]+)\n```", PAGE, re.MULTILINE))
"""The command of each section."""
LIMITS = ("--timeout-graceful-shutdown", "--graceful-timeout", "--workers-kill-timeout")
DRAIN_SECONDS = 2
NEVER = 10 * HANG_SECONDS
REFUSED, UNANSWERED = "refused", "accepted, never answered"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def workers_of(command: str) -> int:
    found = re.search(r"--workers (\d+)", command)
    return int(found[1]) if found else 1


@contextmanager
def started(command: str, directory: Path, drain_seconds: float, *more: str) -> Iterator[Server]:
    """Run a command of the page with another port and the app of these tests."""
    needs.module(command.split(maxsplit=1)[0])
    if "uvicorn_worker" in command:
        needs.module("uvicorn_worker")
    port, log = free_port(), directory / "server.log"
    assert "8000" in command
    arguments = shlex.split(command.replace("8000", str(port)))
    arguments[arguments.index("app:app")] = "tests.e2e.drain.app:app"
    if command.startswith("gunicorn"):
        more += ("--no-control-socket",)  # its path is the same for all
    environ = {
        "SSE_DRAIN_SECONDS": str(drain_seconds),
        "SSE_READY_PATH": "/ready",
        "SSE_LINGER_SECONDS": "60",
        "SERVER_ENDS_SECONDS": "0.5",
    }
    with running_process([sys.executable, "-m", *arguments, *more], log, environ) as (process, _):
        wait_until_listening(port, process, log)
        yield Server(f"http://127.0.0.1:{port}", port, process, log)


async def get(port: int, path: str) -> bytes:
    """Make a request on a new connection, and return the response; `b""` for none.

    Raises:
        ConnectionRefusedError: nothing listens.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
        return await asyncio.wait_for(reader.read(), HANG_SECONDS)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def until_all_run(port: int, workers: int) -> None:
    """Wait until each worker has answered: one that gets a signal while it starts may ignore it."""
    found = set[bytes]()
    async with asyncio.timeout(HANG_SECONDS):
        while len(found) < workers:
            answer = await get(port, "/pid")
            assert b" 200 " in answer.partition(b"\r\n")[0]
            found.add(answer.rpartition(b"\r\n\r\n")[2])


@asynccontextmanager
async def reading(server: Server, count: int) -> AsyncIterator[list[DrainedStream]]:
    """Open streams, and read them to their ends after the block."""
    streams = [await opened(server.port, "/feed") for _ in range(count)]
    tasks = [asyncio.ensure_future(stream.until_end()) for stream in streams]
    try:
        await until(lambda: all(stream.numbers for stream in streams), "a stream has no event")
        yield streams
        await asyncio.wait_for(asyncio.gather(*tasks), HANG_SECONDS)
    finally:
        for task in tasks:
            task.cancel()


async def new_connection(port: int, streams: list[DrainedStream]) -> str:
    """Return what happens to a new connection, once the server does not serve them as before.

    A connection that comes just before the server closes its socket is reset, while the streams
    are still open. Only one that is reset after all of them have ended was never answered.
    """
    while True:
        try:
            answer = await get(port, "/ready")
        except ConnectionRefusedError:
            return REFUSED
        await asyncio.sleep(0.05 if answer else 0.5)
        if not answer and all(stream.ended_at for stream in streams):
            return UNANSWERED


def row_of(name: str) -> str:
    """Return the row of a server in the table of the page."""
    anchor = re.sub(r"[^a-z -]", "", name.lower()).replace(" ", "-")
    (row,) = re.findall(rf"^\| \[[^\]]+\]\(#{anchor}\).*$", PAGE, re.MULTILINE)
    return str(row)


async def exit_status(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, HANG_SECONDS)


def test_the_page_has_a_command_for_each_server() -> None:
    assert len(COMMANDS) == 6
    assert PAGE.count("```sh") == len(COMMANDS)
    for name, command in COMMANDS.items():
        (limit,) = [option for option in LIMITS if option in command]
        assert f"`{limit}`" in PAGE
        assert row_of(name)


@pytest.mark.parametrize("name", COMMANDS)
async def test_open_streams_end_in_order_and_new_connections_do_as_documented(
    name: str, tmp_path: Path
) -> None:
    command = COMMANDS[name]
    with started(command, tmp_path, DRAIN_SECONDS) as server:
        workers = workers_of(command)
        await until_all_run(server.port, workers)
        async with reading(server, 4 * workers) as streams:
            server.process.send_signal(signal.SIGTERM)
            outcome = await new_connection(server.port, streams)
            if outcome == REFUSED:  # and not because the server has ended
                before = [len(stream.numbers) for stream in streams]
                await until(
                    lambda: any(
                        len(stream.numbers) > count
                        for stream, count in zip(streams, before, strict=True)
                    ),
                    "the connection was refused after the streams had ended",
                )
        status = await exit_status(server.process)
    assert f"| {outcome} | {status}" in row_of(name)
    for stream in streams:
        assert stream.whole
        assert stream.reason == "shutdown"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "hypercorn"])
async def test_the_limit_of_a_server_cuts_its_streams(name: str, tmp_path: Path) -> None:
    command, count = re.subn(rf"({'|'.join(LIMITS)}) \d+", r"\1 1", COMMANDS[name])
    assert count == 1
    with started(command, tmp_path, NEVER) as server:
        await until_all_run(server.port, workers_of(command))
        async with reading(server, 4) as streams:
            server.process.send_signal(signal.SIGTERM)
        await exit_status(server.process)
    for stream in streams:
        assert not stream.whole
        assert stream.reason == "message"


async def test_hypercorn_ends_its_streams_in_order_at_its_limit_or_after_the_drain(
    tmp_path: Path,
) -> None:
    has_limit = sys.version_info < (3, 12)
    command = COMMANDS["hypercorn"].replace("--graceful-timeout 35", "--graceful-timeout 1")
    with started(command, tmp_path, NEVER if has_limit else DRAIN_SECONDS) as server:
        async with reading(server, 4) as streams:
            server.process.send_signal(signal.SIGTERM)
        assert await exit_status(server.process) == 0
    assert [(stream.whole, stream.reason) for stream in streams] == [(True, "shutdown")] * 4


async def test_a_worker_of_hypercorn_keeps_its_streams_though_another_one_has_ended(
    tmp_path: Path,
) -> None:
    with started(COMMANDS["hypercorn"], tmp_path, DRAIN_SECONDS, "--workers", "2") as server:
        await until_all_run(server.port, 2)
        async with reading(server, 1) as streams:
            server.process.send_signal(signal.SIGTERM)
        await exit_status(server.process)
    assert (streams[0].whole, streams[0].reason) == (True, "shutdown")


async def test_a_worker_of_hypercorn_that_is_terminated_alone_drains_and_ends(
    tmp_path: Path,
) -> None:
    with started(COMMANDS["hypercorn"], tmp_path, 1) as server:
        worker = int((await get(server.port, "/pid")).rpartition(b"\r\n\r\n")[2])
        assert worker != server.process.pid
        async with reading(server, 2) as streams:
            os.kill(worker, signal.SIGTERM)
        await exit_status(server.process)  # the parent ends after its worker
    assert [(stream.whole, stream.reason) for stream in streams] == [(True, "shutdown")] * 2


async def test_uvicorn_drains_its_streams_after_its_maximum_of_requests(tmp_path: Path) -> None:
    with started(COMMANDS["uvicorn"], tmp_path, 1, "--limit-max-requests", "6") as server:
        async with reading(server, 2) as streams:
            for _ in range(6):
                await get(server.port, "/pid")
        assert await exit_status(server.process) == 0
    assert [(stream.whole, stream.reason) for stream in streams] == [(True, "shutdown")] * 2
