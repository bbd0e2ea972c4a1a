"""The example's `/v1/responses` with OpenAI's SDKs, on one worker and on three."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Any

import httpx2 as httpx
import pytest

from tests.e2e.clients.client_runs import Dispatch, Outcomes, by_node, in_threads
from tests.support import needs
from tests.support.example_site import ONE_AND_THREE, Site, running_example
from tests.support.waiting import HANG_SECONDS, wait_until
from tests.support.workers import Worker

QUESTION = "What is the global interpreter lock?"
HEADERS = {"authorization": "Bearer ann", "accept": "application/json"}
SCENARIOS = ["whole", "continued", "polled", "cancelled"]


@pytest.fixture(scope="module", params=ONE_AND_THREE)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with running_example(request.param, tmp_path_factory.mktemp("responses")) as running:
        yield running


class PythonClient:
    """What `example-responses.mjs` does; each request may reach another worker."""

    def __init__(self, clients: Iterator[Any], dispatch: Dispatch) -> None:
        self._clients = clients
        self._dispatch = dispatch

    @property
    def responses(self) -> Any:
        return next(self._clients).responses

    def dump(self, found: Any) -> dict[str, Any]:
        dumped: dict[str, Any] = found.model_dump(mode="json", exclude_unset=True)
        self._dispatch(dumped)
        return dumped

    def whole(self) -> None:
        for event in self.responses.create(input=QUESTION, stream=True):
            self.dump(event)
        self.dump(self.responses.create(input=QUESTION, model="qwen3-max"))

    def continued(self) -> None:
        with self.responses.create(input=QUESTION, background=True, stream=True) as stream:
            for event in stream:
                found = self.dump(event)
                if found["sequence_number"] == 0:
                    name = found["response"]["id"]
                if found["sequence_number"] == 9:
                    break
        for event in self.responses.retrieve(name, stream=True, starting_after=9):
            self.dump(event)

    def polled(self) -> None:
        response = self.responses.create(input=QUESTION, background=True)
        self.dump(response)
        while response.status in ("queued", "in_progress"):
            time.sleep(0.02)
            response = self.responses.retrieve(response.id)
        self.dump(response)

    def cancelled(self) -> None:
        name = self.responses.create(input=QUESTION, background=True).id
        self.dump(self.responses.cancel(name))
        self.dump(self.responses.retrieve(name))


def in_python(bases: str, scenario: str, dispatch: Dispatch) -> str:
    package = needs.module("openai")
    with ExitStack() as stack:
        clients = [
            stack.enter_context(package.OpenAI(api_key="ann", base_url=f"{base}/v1", max_retries=0))
            for base in bases.split(",")
        ]
        getattr(PythonClient(cycle(clients), dispatch), scenario)()
    return "ended"


@pytest.fixture(scope="module", params=["python", "node"])
def outcomes(request: pytest.FixtureRequest, site: Site) -> Outcomes:
    needs.module("openai")
    if request.param == "python":
        run = in_threads(in_python)
    else:
        run = by_node("example-responses.mjs", QUESTION=QUESTION)
    return run(",".join(site.addresses), SCENARIOS)


def text_of(response: dict[str, Any]) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


def check_whole(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Check the events of one response, and return it."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    response: dict[str, Any] = events[-1]["response"]
    assert text_of(response) == "".join(event.get("delta", "") for event in events)
    assert "only one thread executes Python bytecode at a time" in text_of(response)
    return response


def test_a_response_is_a_stream_or_an_object(outcomes: Outcomes) -> None:
    *events, response = outcomes["whole"].events
    streamed = check_whole(events)
    assert outcomes["whole"].end == "ended"
    assert (response["status"], response["model"]) == ("completed", "qwen3-max")
    assert text_of(response) == text_of(streamed)
    assert response["usage"] == streamed["usage"]
    assert response["usage"]["total_tokens"] > 10


def test_a_response_in_the_background_is_continued_at_another_worker(outcomes: Outcomes) -> None:
    assert outcomes["continued"].end == "ended"
    check_whole(outcomes["continued"].events)


def test_a_response_in_the_background_is_polled_at_all_workers(outcomes: Outcomes) -> None:
    assert outcomes["polled"].end == "ended"
    queued, response = outcomes["polled"].events
    assert (queued["status"], response["status"]) == ("queued", "completed")
    assert "only one thread" in text_of(response)


def test_a_response_in_the_background_is_cancelled_at_another_worker(outcomes: Outcomes) -> None:
    assert outcomes["cancelled"].end == "ended"
    assert [one["status"] for one in outcomes["cancelled"].events] == 2 * ["cancelled"]


def response_at(worker: Worker, response_id: str) -> dict[str, Any]:
    """Return a response as a worker knows it."""
    url = f"{worker.server.url}/v1/responses/{response_id}"
    found: dict[str, Any] = httpx.get(url, headers=HEADERS, timeout=HANG_SECONDS).json()
    return found


@pytest.mark.parametrize("site", ["three workers"], indirect=True)
def test_a_response_in_the_background_ends_before_its_worker(
    site: Site, request: pytest.FixtureRequest
) -> None:
    first, second, _ = site.workers
    body = {"input": QUESTION, "background": True}
    url = f"{first.server.url}/v1/responses"
    begun = httpx.post(url, json=body, headers=HEADERS, timeout=HANG_SECONDS).json()
    assert begun["status"] == "queued"
    first.stop()
    request.addfinalizer(first.start)
    response = response_at(second, begun["id"])
    assert response["status"] == "completed"
    assert "only one thread" in text_of(response)


@pytest.mark.parametrize("site", ["three workers"], indirect=True)
def test_a_response_whose_worker_dies_fails(site: Site, request: pytest.FixtureRequest) -> None:
    first, second, _ = site.workers
    body = {"input": QUESTION, "background": True, "stream": True}
    url = f"{first.server.url}/v1/responses"
    with httpx.stream("POST", url, json=body, headers=HEADERS, timeout=HANG_SECONDS) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data:"))
        data, *_ = islice(lines, 20)  # by then, the stream is in Redis
        first.kill()
    request.addfinalizer(first.start)
    response_id = json.loads(data[5:])["response"]["id"]
    wait_until(
        lambda: response_at(second, response_id)["status"] == "failed",
        "the response has not failed",
    )
    assert response_at(second, response_id)["error"]["code"] == "server_error"
