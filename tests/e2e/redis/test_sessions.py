"""Sessions of an agent: a page, two web processes, and worker processes, which share a Redis.

The page's script is an ordinary `fetch` loop that knows nothing of this library. One worker calls
`publish_event`, and the other one, in another language, the `PUBLISH` of Redis.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from sse_middleware import EventParser
from tests.e2e.redis.session_worker import ANSWER
from tests.support import needs
from tests.support.redis_server import RedisServer
from tests.support.servers import running_process, until_logged
from tests.support.waiting import HANG_SECONDS
from tests.support.workers import working

HERE = Path(__file__).parent
QUESTION = "What is the capital of France and what is the weather there right now?"
CALLING = "Agent is calling tool: weather"
ACKNOWLEDGED = "Backend worker has acknowledged the session."
ENDING = ["Final answer received. Closing connection.", "Stream finished."]


@pytest.fixture(scope="module")
def webs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Run two web processes and a worker of each kind; return the addresses of the former."""
    directory = tmp_path_factory.mktemp("sessions")
    app = "tests.e2e.redis.session_app:app"
    with RedisServer(directory) as redis, ExitStack() as stack:
        urls = [redis.patient_url] * 2
        workers = {
            "python": [sys.executable, "-m", "tests.e2e.redis.session_worker"],
            "node": [needs.node(), str(HERE / "session_worker.mjs"), str(redis.port)],
        }
        for name, command in workers.items():
            environ = {"SSE_REDIS_URL": redis.patient_url}
            run = running_process(command, directory / f"{name}.log", environ)
            until_logged(stack.enter_context(run)[1], "The worker is ready")
        found = stack.enter_context(working(app, urls, directory, {}))
        yield [web.server.url for web in found]


def show(address: str, **request: Any) -> dict[str, Any]:
    """Return what the page shows for its request, of which some fields are replaced."""
    command = [needs.node(), str(HERE / "session_client.mjs"), address, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, timeout=HANG_SECONDS, check=True)
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


@pytest.mark.parametrize("web", [0, 1])
@pytest.mark.parametrize("path", ["", "/other_language"])
def test_a_page_shows_the_answer_of_a_worker(webs: list[str], web: int, path: str) -> None:
    assert show(webs[web] + path) == {
        "lines": [ACKNOWLEDGED, CALLING, *ENDING],
        "errors": [],
        "thought-display": f"I think: {QUESTION}",
        "answer-display": ANSWER,
    }


def test_a_worker_needs_no_acknowledgement(webs: list[str]) -> None:
    shown = show(webs[0], model_alias="without_ack")
    assert shown["lines"] == [CALLING, *ENDING]
    assert shown["answer-display"] == ANSWER


def test_a_page_shows_the_error_of_a_worker(webs: list[str]) -> None:
    shown = show(webs[1], model_alias="broken")
    assert shown["lines"] == [ACKNOWLEDGED, CALLING, "Stream finished."]
    assert shown["errors"] == [["An error event was received:", "The model is broken."]]


def test_a_page_shows_why_its_request_is_rejected(webs: list[str]) -> None:
    shown = show(webs[0], user_query=None)
    ((text, detail),) = shown["errors"]
    assert text == "Error starting stream:"
    assert detail[0]["loc"] == ["body", "user_query"]
    assert shown["lines"] == []


async def answer(client: httpx.AsyncClient, address: str, question: str) -> tuple[str, str]:
    """Return the thoughts and the answer for a question."""
    body = {"user_query": question, "model_alias": "smart_agent"}
    response = await client.post(f"{address}/v1/react/sessions", json=body)
    events = [json.loads(event.data) for event in EventParser().feed(response.content)]
    assert (events[0]["event_type"], events[-1]["event_type"]) == (
        "worker_ack",
        "FinalAnswerStreamEnd",
    )
    texts = {"AgentThoughtStream": "", "FinalAnswerStream": ""}
    for event in events:
        if event["event_type"] in texts:
            texts[event["event_type"]] += event["payload"]["char"]
    return texts["AgentThoughtStream"], texts["FinalAnswerStream"]


async def ask_all(webs: list[str], path: str, number: int) -> list[tuple[str, str]]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=HANG_SECONDS, limits=limits) as client:
        questions = [f"question {one}" for one in range(number)]
        asked = (
            answer(client, webs[one % 2] + path, question) for one, question in enumerate(questions)
        )
        return await asyncio.gather(*asked)


@pytest.mark.parametrize("path", ["", "/other_language"])
def test_each_of_many_sessions_receives_its_own_answer(webs: list[str], path: str) -> None:
    answers = asyncio.run(ask_all(webs, path, 20))
    assert answers == [(f"I think: question {one}", ANSWER) for one in range(20)]
