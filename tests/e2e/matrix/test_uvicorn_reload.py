"""`uvicorn --reload`: a file of the app changes while streams are open."""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.event_source import events_in
from tests.support.ports import free_port
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import running_process, until_logged, wait_until_listening
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

APP = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from sse_middleware import SSEMiddleware

VERSION = 1

async def stream(request):
    async def events():
        for number in range(1, int(request.query_params["n"]) + 1):
            yield b"data: %d\\n\\n" % number
            await asyncio.sleep(0.1)
        print("the app has ended", flush=True)
    return StreamingResponse(events(), media_type="text/event-stream")

async def version(request):
    return PlainTextResponse(str(VERSION))

app = Starlette(routes=[Route("/stream", stream), Route("/version", version)])
"""
LINES = {
    "marked": 'app.add_middleware(SSEMiddleware, mark="/stream", drain_seconds=0.5)\n',
    "unmarked": "app.add_middleware(SSEMiddleware)\n",
    "without": "",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Reloading:
    """A server that watches the file of its app."""

    port: int
    file: Path
    log: Path

    def change(self) -> None:
        self.file.write_text(self.file.read_text().replace("VERSION = 1", "VERSION = 2"))
        until_logged(self.log, "Reloading")

    async def until_changed(self) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            while True:
                try:
                    answer = await client.get(f"http://127.0.0.1:{self.port}/version")
                    if answer.text == "2":
                        return
                except httpx.HTTPError:
                    pass
                assert time.monotonic() < deadline, self.log.read_text()
                await asyncio.sleep(0.1)


@contextmanager
def reloading(line: str, directory: Path) -> Iterator[Reloading]:
    source = directory / "source"
    source.mkdir(parents=True)
    file, port = source / "changing_app.py", free_port()
    file.write_text(APP + line)
    command = [sys.executable, "-m", "uvicorn", "--reload", "--reload-dir", str(source)]
    command += ["--app-dir", str(source), "--port", str(port), "changing_app:app"]
    with running_process(command, directory / "uvicorn.log") as (process, log):
        wait_until_listening(port, process, log)
        yield Reloading(port, file, log)


async def read(port: int, count: int) -> bytes:
    body = b""
    async with (
        httpx.AsyncClient(timeout=HANG_SECONDS, headers=EVENTSOURCE) as client,
        client.stream("GET", f"http://127.0.0.1:{port}/stream?n={count}") as response,
    ):
        async for part in response.aiter_raw():
            body += part
    return body


async def test_a_marked_stream_ends_in_time_so_that_the_reload_is_not_held_up(
    tmp_path: Path,
) -> None:
    with reloading(LINES["marked"], tmp_path) as server:
        async with Viewer(server.port, "/stream?n=100000", closes=False) as viewer:
            await viewer.until(3)
            await asyncio.to_thread(server.change)
            await server.until_changed()
            assert viewer.data_of("complete")[0]["reason"] == "shutdown"
            await viewer.until_control("reset")  # its memory has the old process only
            await viewer.until(3)
            assert viewer.numbers[-1] >= 1
        assert "the app has ended" not in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("line", ["unmarked", "without"])
async def test_without_a_mark_the_reload_waits_for_the_stream_as_without_us(
    line: str, tmp_path: Path
) -> None:
    with reloading(LINES[line], tmp_path) as server:
        reading = asyncio.ensure_future(read(server.port, 30))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.change)
        body = await reading
        assert [event.data for event in events_in(body)] == [str(n) for n in range(1, 31)]
        await server.until_changed()
        log = server.log.read_text()
        assert "the app has ended" in log
        assert "Traceback" not in log
