"""gunicorn, with uvicorn's worker and with its own: signals, and workers that end without one."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.e2e.drain.drained_stream import opened
from tests.support import needs
from tests.support.ports import free_port
from tests.support.servers import Server, running_process, wait_until_listening
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

DRAIN_SECONDS = 1
WORKERS = {"uvicorn_worker": "uvicorn_worker.UvicornWorker", "gunicorn.workers.gasgi": "asgi"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def gunicorn(module: str, directory: Path, *more: str) -> Iterator[Server]:
    """Run one worker; gunicorn kills it when it is not heard of for five seconds."""
    for name in ("gunicorn", module):
        needs.module(name)
    port, log = free_port(), directory / "gunicorn.log"
    command = [
        *(sys.executable, "-m", "gunicorn", "--worker-class", WORKERS[module], "--workers", "1"),
        *("--bind", f"127.0.0.1:{port}", "--timeout", "5", "--graceful-timeout", "60"),
        *("--no-control-socket", *more, "tests.e2e.drain.app:app"),
    ]
    environ = {"SSE_DRAIN_SECONDS": str(DRAIN_SECONDS)}
    with running_process(command, log, environ) as (process, _):
        wait_until_listening(port, process, log)
        yield Server(f"http://127.0.0.1:{port}", port, process, log)


@pytest.mark.parametrize("how", ["signal", "max-requests"])
@pytest.mark.parametrize("worker", WORKERS)
async def test_a_worker_that_ends_drains_its_streams(worker: str, how: str, tmp_path: Path) -> None:
    more = ("--max-requests", "3") if how == "max-requests" else ()
    with gunicorn(worker, tmp_path, *more) as server:
        streams = [await opened(server.port, path) for path in ("/feed", "/deaf/")]
        tasks = [asyncio.ensure_future(stream.until_end()) for stream in streams]
        await until(lambda: all(stream.numbers for stream in streams), "a stream has no event")
        if how == "signal":
            server.process.terminate()
        else:
            async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
                for _ in range(3):
                    await client.get(f"{server.url}/pid", headers={"connection": "close"})
        await asyncio.wait_for(asyncio.gather(*tasks), HANG_SECONDS)
        for stream in streams:
            assert stream.whole
            assert stream.reason == "shutdown"
        assert "WORKER TIMEOUT" not in server.log_text()
        if how == "signal":
            assert await asyncio.to_thread(server.process.wait, HANG_SECONDS) == 0
