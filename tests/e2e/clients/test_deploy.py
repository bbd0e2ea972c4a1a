"""A deploy during an answer: its worker shuts down, and its client reads the rest elsewhere."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from tests.e2e.clients.client_runs import by_node
from tests.support.answers import numbers
from tests.support.cut_proxy import Cut, CuttingProxy
from tests.support.named_runs import named_runs
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

EVENTS = numbers(30)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_client_has_the_whole_answer_of_a_worker_that_shuts_down(
    tmp_path: Path, *, is_cut: bool
) -> None:
    """Also if its connection is cut meanwhile: the answer continues for the time of the drain."""
    with named_runs(tmp_path, SSE_DRAIN_SECONDS="30") as runs:
        first, second = runs.workers
        async with CuttingProxy(runs.ports, [Cut(rb"data: 9\n\n")] * is_cut) as proxy:
            fetch = by_node("resume-fetch.mjs", QUERY="pause=0.05")
            url = f"http://127.0.0.1:{proxy.port}"
            reading = asyncio.ensure_future(asyncio.to_thread(fetch, url, ["deploy"]))
            await until(lambda: runs.of("answer:deploy")[0] == ["running"], "it is not opened")
            first.server.process.terminate()
            events, end = (await reading)["deploy"]
            assert len(proxy.made) == is_cut
        assert "".join(events).encode() == b"".join(EVENTS)
        assert end == "done " + hashlib.sha256(b"".join(EVENTS)).hexdigest()
        assert second.server.process.poll() is None
