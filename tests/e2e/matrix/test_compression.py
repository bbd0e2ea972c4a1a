"""Layers that compress event streams, outside and inside of the middleware."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import pytest

from sse_middleware import EventParser
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import Server, serving
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

APP = "tests.e2e.matrix.compression_app:app"
PATHS = ("none", "without", "outside", "inside", "unmarked")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Reading:
    """A response that is being read, decoded."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def names(self) -> list[str]:
        return [event.event for event in EventParser().feed(self.body)]


async def read(server: Server, path: str, reading: Reading) -> None:
    headers = {**EVENTSOURCE, "accept-encoding": "br"}
    async with (
        httpx.AsyncClient(timeout=HANG_SECONDS, headers=headers) as client,
        client.stream("GET", f"{server.url}/{path}/stream") as response,
    ):
        reading.headers = dict(response.headers)
        async for part in response.aiter_bytes():
            reading.body += part


async def test_compressed_streams_are_not_held_back_and_those_inside_are_left_alone(
    tmp_path: Path,
) -> None:
    readings = {path: Reading() for path in PATHS}
    with serving("uvicorn-httptools", APP, tmp_path) as server:
        async with asyncio.TaskGroup() as group:
            for path, reading in readings.items():
                group.create_task(read(server, path, reading))
            await until(
                lambda: all(b"data: 1\n" in reading.body for reading in readings.values()),
                lambda: f"a first event is held back: {readings}",
            )
            async with httpx.AsyncClient() as client:
                await client.get(f"{server.url}/release")
        log = server.log_text()
    assert [path for path in PATHS if readings[path].headers.get("content-encoding") == "br"] == [
        *("without", "outside", "inside", "unmarked")
    ]
    assert readings["outside"].names == ["start", "message", "message", "complete"]
    for path in ("without", "inside", "unmarked"):
        assert readings[path].body == readings["none"].body
        assert "x-stream-id" not in readings[path].headers
    assert "has a content-encoding, so that it cannot stream: an inner layer compresses" in log
