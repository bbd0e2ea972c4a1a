"""`on_end` in servers that shut down: no answer is lost that has ended, or that the drain cuts."""

import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.e2e.drain.test_drain import assert_shut_down, exit_status, idle_status, streams
from tests.support.servers import SERVERS, serving
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

APP = "tests.e2e.drain.on_end_app:app"
DRAIN = 1.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def environ(directory: Path, drain_seconds: float, save_seconds: float) -> dict[str, str]:
    return {
        "SAVED": str(directory / "saved"),
        "SAVE_SECONDS": str(save_seconds),
        "SSE_DRAIN_SECONDS": str(drain_seconds),
    }


def saved(directory: Path) -> list[Any]:
    return [json.loads(line) for line in (directory / "saved").read_text().splitlines()]


@pytest.mark.parametrize("name", SERVERS)
async def test_answers_that_a_drain_cuts_are_saved(name: str, tmp_path: Path) -> None:
    with serving(name, APP, tmp_path, environ(tmp_path, DRAIN, 0.05)) as server:
        async with streams(server.port, "/numbers", 5) as found:
            server.process.terminate()
        assert await exit_status(server.process) == idle_status(name)
        assert_shut_down(found)
        received = [[str(number) for number in stream.numbers] for stream in found]
    answers = saved(tmp_path)
    reasons = {reason for reason, _ in answers}
    # hypercorn may cancel the tasks of its requests before it can be seen to shut down
    assert reasons == {"shutdown"} or (name == "hypercorn" and reasons <= {"shutdown", "aborted"})
    assert sorted(data for _, data in answers) == sorted(received)


@pytest.mark.parametrize("name", SERVERS)
async def test_an_answer_that_has_just_ended_is_saved(name: str, tmp_path: Path) -> None:
    with serving(name, APP, tmp_path, environ(tmp_path, 10 * HANG_SECONDS, 0.5)) as server:
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            answer = await client.get(f"{server.url}/numbers?n=3")
        assert answer.text == "data: 1\n\ndata: 2\n\ndata: 3\n\n"
        server.process.terminate()
        assert await exit_status(server.process) == idle_status(name)
    assert saved(tmp_path) == [["finished", ["1", "2", "3"]]]
