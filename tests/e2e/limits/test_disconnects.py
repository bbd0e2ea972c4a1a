"""Clients that disconnect while their limits are being checked leave nothing in the app."""

import asyncio
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.redis_server import Proxy, RedisServer
from tests.support.servers import serving
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

CLIENTS = 150
APP = "tests.e2e.limits.holding_app:app"
BROWSER = "Accept: text/event-stream\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0\r\n"
KINDS = {"any": "Accept: */*\r\n", "eventsource": BROWSER}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def request_and_disconnect(port: int, path: str, kind: str, seconds: float) -> None:
    """Send a request, and close its connection without reading."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{KINDS[kind]}\r\n".encode())
    await asyncio.sleep(seconds)  # the disconnects are spread over the time of a check
    writer.transport.abort()


async def until_left(url: str) -> dict[str, int]:
    """Wait until no request runs and nothing is held, or the time is over; return the counts."""
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        counts: dict[str, int] = {}
        for _ in range(200):
            counts = (await client.get(f"{url}/state")).json()
            if not (counts["running"] or counts["held"]):
                break
            await asyncio.sleep(0.05)
    return counts


def leases(redis: RedisServer) -> list[str]:
    return [key for key in redis.all_keys() if "leases" in key]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/unmarked", "/marked"])
@pytest.mark.parametrize("limit", ["off", "1000"])
async def test_no_resource_of_the_app_stays_held(
    limit: str, path: str, kind: str, tmp_path: Path
) -> None:
    """A response start that is cancelled while it waits leaves a body that has never begun."""
    with RedisServer(tmp_path) as redis:
        async with Proxy(redis) as proxy:
            proxy.delay = 0.1
            environ = {"SSE_REDIS_URL": proxy.url, "SSE_MAX_STREAMS_PER_CLIENT": limit}
            environ |= {"SSE_LINGER_SECONDS": "0"}
            with serving("uvicorn-httptools", APP, tmp_path, environ) as server:
                requests = (
                    request_and_disconnect(server.port, path, kind, number / 1000)
                    for number in range(CLIENTS)
                )
                await asyncio.gather(*requests)
                counts = await until_left(server.url)
                await until(lambda: not leases(redis), "a lease is left")
    assert counts["begun"] > 0
    assert (counts["running"], counts["held"]) == (0, 0), counts
