"""Equal requests to several workers: the app runs once, and each client gets the whole answer."""

import asyncio
import collections
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.e2e.redis.equal_app import EVENTS
from tests.support.redis_server import RedisServer
from tests.support.waiting import HANG_SECONDS
from tests.support.workers import working

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

ANSWER = b"".join(EVENTS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_five_hundred_equal_requests_to_three_workers_run_the_app_once(
    tmp_path: Path,
) -> None:
    runs = tmp_path / "runs"
    with RedisServer(tmp_path) as server:
        urls = [server.patient_url] * 3
        environ = {"RUNS": str(runs)}
        with working("tests.e2e.redis.equal_app:app", urls, tmp_path, environ) as workers:
            bases = [worker.server.url for worker in workers]

            async def ask(number: int, client: httpx.AsyncClient) -> tuple[bytes, str | None]:
                response = await client.post(
                    f"{bases[number % 3]}/answers",
                    content=b"why?",
                    headers={"authorization": "Bearer ann"},
                )
                assert response.status_code == 200
                return response.content, response.headers.get("x-stream-cache")

            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(timeout=HANG_SECONDS, limits=limits) as client:
                answers = await asyncio.gather(*[ask(number, client) for number in range(500)])
                late = await ask(1, client)
    assert runs.read_bytes() == b"why?\n"
    assert {body for body, _ in answers} == {ANSWER}
    caches = collections.Counter(cache for _, cache in answers)
    assert caches[None] == 1
    assert sum(caches.values()) == 500
    assert late == (ANSWER, "hit")
