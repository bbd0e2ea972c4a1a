"""A `preStop` hook: a GET of `SSE_DRAIN_PATH` returns when all streams of a server have ended."""

import asyncio
import signal
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.e2e.drain.drained_stream import opened
from tests.support.servers import serving, until_logged
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

ENVIRON = {"SSE_DRAIN_SECONDS": "1", "SSE_READY_PATH": "/ready", "SSE_DRAIN_PATH": "/drain"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("name", ["uvicorn-httptools", "granian"])
async def test_streams_end_before_the_hook_returns_and_the_server_then_stops(
    name: str, tmp_path: Path
) -> None:
    with serving(name, "tests.e2e.drain.app:app", tmp_path, ENVIRON) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=HANG_SECONDS) as client:
            stream = await opened(server.port, "/feed")
            reading = asyncio.ensure_future(stream.until_end())
            await until(lambda: bool(stream.numbers), "the stream has no event")
            proxied = await client.get("/drain", headers={"x-forwarded-for": "203.0.113.9"})
            assert proxied.status_code == 404
            assert (await client.get("/ready")).status_code == 200
            answer = await client.get("/drain")
            assert (answer.status_code, answer.text) == (200, "drained\n")
            assert (await client.get("/ready")).status_code == 503
            async with asyncio.timeout(HANG_SECONDS):
                await reading
        assert stream.whole
        assert stream.reason == "shutdown"
        until_logged(server.log, "has cut before their end: 1")
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.process.wait, HANG_SECONDS)
