"""SDKs that continue the answer of a server by their own protocols, on another worker."""

import asyncio
from typing import Any

import pytest

from tests.e2e.clients.client_runs import Dispatch, Outcome, Run, by_node, in_threads
from tests.e2e.clients.resume_app import FIRST_SEQUENCE_NUMBER, TEXT, WORDS
from tests.support import needs
from tests.support.cut_proxy import Cut, CuttingProxy, How
from tests.support.named_runs import NamedRuns

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def openai(base: str, name: str, dispatch: Dispatch) -> str:
    """Run a response in the background, and continue its stream after each cut."""
    package = needs.module("openai")
    with package.OpenAI(api_key="ann", base_url=f"{base}/v1", max_retries=0) as client:
        stream = client.responses.create(model="gpt", input=name, background=True, stream=True)
        response, last, cuts = "", -1, 0
        while True:
            try:
                for event in stream:
                    dispatch(event.model_dump(mode="json", exclude_unset=True))
                    response = response or event.response.id
                    last = event.sequence_number
            except package.APIConnectionError:
                cuts += 1
                stream = client.responses.retrieve(response, stream=True, starting_after=last)
            else:
                return f"{cuts} cuts"


OPENAI: dict[str, Run] = {
    "python": in_threads(openai),
    "node": by_node("resume-openai.mjs"),
}


async def run_through(proxy: CuttingProxy, run: Run, name: str) -> Outcome:
    outcomes = await asyncio.to_thread(run, f"http://127.0.0.1:{proxy.port}", [name])
    return outcomes[name]


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("client", OPENAI)
async def test_a_response_in_the_background_continues_after_each_cut(
    runs: NamedRuns, client: str, how: How
) -> None:
    name = f"{client}-{how}"
    places = [rb"response.created.*\n\n", rb"word3 .*\n\n", rb"word7 .*\n", rb"word20"]
    async with CuttingProxy(runs.ports, [Cut(place, how) for place in places]) as proxy:
        events, end = await run_through(proxy, OPENAI[client], name)
        assert len(proxy.made) == len(places)
    assert end == f"{len(places)} cuts"
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(FIRST_SEQUENCE_NUMBER, FIRST_SEQUENCE_NUMBER + len(WORDS) + 4))
    assert "".join(event.get("delta", "") for event in events) == TEXT
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == TEXT
    runs.wait_for(f"response:resp_{name}", ["finished"], [])


@pytest.mark.parametrize("client", OPENAI)
async def test_a_response_that_has_ended_is_read_again_from_any_event(
    runs: NamedRuns, client: str
) -> None:
    name = f"{client}-at-the-end"
    cuts = [Cut(rb"response.created.*\n\n", held=True), Cut(rb"response.completed.*\n\n")]
    async with CuttingProxy(runs.ports, cuts) as proxy:
        events, end = await run_through(proxy, OPENAI[client], name)
        assert len(proxy.made) == len(cuts)
    assert end == "2 cuts"
    assert len(events) == len(WORDS) + 4
    runs.wait_for(f"response:resp_{name}", ["finished"], [])


def texts(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("delta", "") for event in events)


async def test_an_agent_of_ag_ui_is_connected_to_again_after_a_cut(runs: NamedRuns) -> None:
    resumes, run = runs.resumes(), by_node("resume-ag-ui.mjs", QUERY="hold=15")
    async with CuttingProxy(runs.ports, [Cut(rb"word9 .*\n\n")]) as proxy:
        running = asyncio.ensure_future(run_through(proxy, run, "t1"))
        await asyncio.to_thread(runs.wait_for_resumes, resumes + 1)
        runs.release("agent:t1")
        events, end = await running
    assert end == "ended", end
    cut = events.index({"connects": True})
    *before, failure = events[:cut]
    *after, outcome = events[cut + 1 :]
    assert failure["failed"]
    assert texts(before) == "".join(WORDS[:10])
    assert before == after[: len(before)], "the run is sent again from its beginning"
    assert texts(after) == TEXT
    assert after[-1]["type"] == "RUN_FINISHED"
    (message,) = outcome["messages"]
    assert message["content"] == TEXT
    assert outcome["state"] == {"step": 1}
    runs.wait_for("agent:t1", ["finished"], [])
