"""The agents of `/v1/react/sessions`, and the alias that selects one."""

from __future__ import annotations

import json
from contextlib import aclosing
from itertools import groupby
from typing import TYPE_CHECKING, Any, get_args

import httpx2
import pytest
from asgi_lifespan import LifespanManager

from example_app.agents import DEFAULT_ALIAS, Agents, ModelAlias, Step, split_question
from example_app.app import create_app
from example_app.completions.endpoint import create_qwen_client
from example_app.completions.qwen_client import QwenClient
from example_app.search import NOTHING_FOUND, SearchIndex, load_passages
from sse_middleware.sources import UpstreamError
from tests.support.asgi import handle
from tests.support.upstreams import Visit, upstream_service
from tests.support.waiting import HANG_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

pytestmark = pytest.mark.anyio

ONE = "What is the global interpreter lock?"
TWO = "What is the global interpreter lock and what is a generator?"


@pytest.fixture(scope="module")
def index() -> SearchIndex:
    return SearchIndex(load_passages())


@pytest.fixture(scope="module")
async def example() -> AsyncIterator[FastAPI]:
    app = create_app(token_delay_seconds=0)
    async with LifespanManager(app):
        yield app


async def steps_of(agents: Agents, alias: ModelAlias, question: str) -> list[Step]:
    async with aclosing(agents.run(alias, question)) as steps:
        return [step async for step in steps]


def joined(steps: list[Step]) -> list[tuple[str, str]]:
    """Join the pieces of each thought and answer."""
    groups = groupby(steps, key=lambda step: step.kind)
    return [(kind, "".join(step.text for step in group)) for kind, group in groups]


async def session(app: FastAPI, **body: str) -> tuple[int, list[Any]]:
    data, headers = json.dumps(body).encode(), [(b"content-type", b"application/json")]
    path = "/v1/react/sessions"
    exchange = await handle(app, method="POST", path=path, headers=headers, body=data)
    if exchange.status != 200:
        return exchange.status, [json.loads(exchange.body)]
    return exchange.status, [json.loads(event.data) for event in exchange.events]


async def test_each_alias_selects_an_agent_of_its_own(index: SearchIndex) -> None:
    agents = Agents(index, create_qwen_client(index, token_delay_seconds=0))
    answers = {alias: joined(await steps_of(agents, alias, TWO)) for alias in get_args(ModelAlias)}
    assert [kind for kind, _ in answers["extractive"]] == ["thought", "tool", "answer"]
    assert [kind for kind, _ in answers["smart_agent"]] == [*2 * ["thought", "tool"], "answer"]
    assert [kind for kind, _ in answers["qwen3-max"]] == ["thought", "answer"]
    assert answers["extractive"][-1] == ("answer", index.answer(TWO).text)
    assert answers["qwen3-max"][-1] == ("answer", index.answer(TWO).text)
    parts = [index.answer(part).text for part in split_question(TWO)]
    assert answers["smart_agent"][-1] == ("answer", "\n\n".join(parts))
    assert all("generator" in text or "bytecode" in text for text in parts)


async def test_the_smart_agent_answers_a_simple_question_as_the_extractive_one(
    index: SearchIndex,
) -> None:
    agents = Agents(index, create_qwen_client(index, token_delay_seconds=0))
    for question in (ONE, "xyzzy plugh"):
        one, other = [
            await steps_of(agents, alias, question) for alias in ("extractive", "smart_agent")
        ]
        assert one == other
    assert joined(one)[-1] == ("answer", NOTHING_FOUND)


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        (ONE, [ONE]),
        ("and what?", ["and what?"]),
        ("lists and tuples", ["lists and tuples"]),
        (
            "What is the capital of France and what is the weather there right now?",
            ["What is the capital of France", "what is the weather there right now?"],
        ),
        ("What is a list? What is a tuple?", ["What is a list", "What is a tuple?"]),
        ("? ", ["? "]),
    ],
)
def test_a_question_is_split_where_another_one_begins(question: str, parts: list[str]) -> None:
    assert split_question(question) == parts


async def test_a_session_is_answered_by_the_agent_of_its_alias(example: FastAPI) -> None:
    tools = {}
    for alias in ("", *get_args(ModelAlias)):
        body = {"model_alias": alias} if alias else {}
        status, events = await session(example, user_query=TWO, **body)
        assert status == 200
        assert events[-1] == {"event_type": "FinalAnswerStreamEnd", "payload": {}}
        tools[alias] = sum(event["event_type"] == "AgentToolCallStart" for event in events)
    assert tools == {"": 1, "extractive": 1, "smart_agent": 2, "qwen3-max": 0}
    assert DEFAULT_ALIAS == "extractive"


async def test_an_unknown_alias_is_refused_before_the_stream(example: FastAPI) -> None:
    status, (body,) = await session(example, user_query=ONE, model_alias="any")
    assert status == 422
    (detail,) = body["detail"]
    assert detail["loc"] == ["body", "model_alias"]
    assert all(alias in detail["msg"] for alias in get_args(ModelAlias))


async def test_an_agent_whose_model_is_cut_off_fails(index: SearchIndex) -> None:
    async def end_early(visit: Visit) -> None:
        await visit.start()
        await visit.chunk(b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n')
        await visit.end()

    async with (
        upstream_service(end_early) as service,
        httpx2.AsyncClient(base_url=service.url, timeout=HANG_SECONDS) as client,
    ):
        agents, steps = Agents(index, QwenClient(client)), list[Step]()
        with pytest.raises(UpstreamError, match="before the answer was finished"):
            async with aclosing(agents.run("qwen3-max", ONE)) as running:
                async for step in running:
                    steps.append(step)
        assert steps[-1] == Step("answer", "Hel")
