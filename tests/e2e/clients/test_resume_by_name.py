"""Clients without a library, which continue the answer to a POST by its name on another worker."""

import asyncio
import hashlib
import secrets
import subprocess

import pytest

from tests.e2e.clients.client_runs import Outcome, by_node
from tests.support import needs
from tests.support.answers import numbers
from tests.support.cut_proxy import Cut, CuttingProxy, How
from tests.support.named_runs import ANN, NamedRuns
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

EVENTS = numbers(30)
WHOLE = b"".join(EVENTS)
AFTER_AN_EVENT = rb"data: \d+\n\n"
PARTIAL_FILE = 18
"""The exit status of curl if a response ends uncleanly."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def fetched(proxy: CuttingProxy, name: str, query: str = "") -> Outcome:
    """Return the events that a `fetch` loop receives."""
    run = by_node("resume-fetch.mjs", QUERY=query)
    outcomes = await asyncio.to_thread(run, f"http://127.0.0.1:{proxy.port}", [name])
    return outcomes[name]


async def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [needs.program("curl"), "-sN", "-H", "authorization: Bearer ann", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, timeout=HANG_SECONDS, check=False
    )


@pytest.mark.parametrize("how", How)
async def test_a_phone_that_is_cut_at_each_event_of_an_answer_has_each_event_once(
    runs: NamedRuns, how: How
) -> None:
    """Each connection of the phone passes one event, and the next one reaches the other worker."""
    name = f"phone-{how}"
    async with CuttingProxy(runs.ports, len(EVENTS) * [Cut(AFTER_AN_EVENT, how)]) as proxy:
        events, end = await fetched(proxy, name)
    assert [event.encode() for event in events] == EVENTS, (
        end,
        proxy.made,
        runs.of(f"answer:{name}"),
    )
    assert end.split()[1] == hashlib.sha256(WHOLE).hexdigest()
    assert len(proxy.made) == len(EVENTS)
    runs.wait_for(f"answer:{name}", ["finished"], [])


async def test_a_phone_continues_its_answer_by_id_after_a_later_one_has_its_name(
    runs: NamedRuns,
) -> None:
    name = f"id-{secrets.token_hex(4)}"
    async with CuttingProxy(runs.ports, len(EVENTS) * [Cut(AFTER_AN_EVENT)]) as proxy:
        phone = asyncio.ensure_future(fetched(proxy, name, "hold=3"))
        await until(lambda: len(proxy.made) == 3, lambda: f"{proxy.made}")
        later = await curl("-X", "POST", f"{runs.workers[1].server.url}/answers/{name}?n=5")
        assert later.stdout == b"".join(EVENTS[:5])
        runs.release(f"answer:{name}")
        events, _ = await phone
    assert [event.encode() for event in events] == EVENTS
    runs.wait_for(f"answer:{name}", ["finished"], ["finished"])


async def test_a_fetch_loop_continues_after_a_cut_within_an_event(runs: NamedRuns) -> None:
    cuts = [Cut(rb"data: 1[0-9]?\nX?"), Cut(rb"data: 1\d"), Cut(rb"data: 2"), Cut(rb"data: 30\n")]
    async with CuttingProxy(runs.ports, cuts) as proxy:
        events, end = await fetched(proxy, "halves")
    assert "".join(events).encode() == WHOLE
    assert end == f"done {hashlib.sha256(WHOLE).hexdigest()}"
    assert len(proxy.made) == len(cuts)
    runs.wait_for("answer:halves", ["finished"], [])


async def test_curl_continues_an_answer_that_was_cut(runs: NamedRuns) -> None:
    async with CuttingProxy(runs.ports, [Cut(rb"data: 7\n\n")]) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/answers/curl"
        first = await curl("-X", "POST", url)
        assert first.returncode == PARTIAL_FILE
        assert first.stdout == b"".join(EVENTS[:7])
        rest = await curl("--fail", f"{url}/live?after=7")
    assert rest.returncode == 0
    assert first.stdout + rest.stdout == WHOLE
    runs.wait_for("answer:curl", ["finished"], [])


async def test_curl_sees_an_answer_that_another_device_has_opened(runs: NamedRuns) -> None:
    name = f"device-{secrets.token_hex(4)}"
    first, second = (worker.server.url for worker in runs.workers)
    opened = asyncio.ensure_future(curl("-X", "POST", f"{first}/answers/{name}?hold=5"))
    await asyncio.to_thread(runs.wait_until_known, f"/answers/{name}/live", ANN)
    resumes = runs.resumes()
    others = [
        asyncio.ensure_future(curl(f"{url}/answers/{name}/live")) for url in (first, second, second)
    ]
    stranger = await curl("-H", "authorization: Bearer bob", f"{second}/answers/{name}/live")
    assert (stranger.returncode, stranger.stdout) == (0, b"")
    await asyncio.to_thread(runs.wait_for_resumes, resumes + len(others))
    runs.release(f"answer:{name}")
    for done in await asyncio.gather(opened, *others):
        assert (done.returncode, done.stdout) == (0, WHOLE)
