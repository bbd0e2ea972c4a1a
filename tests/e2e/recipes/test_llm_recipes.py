"""The recipes whose packages do not go with the versions of the other tests (tox: llm)."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import needs
from tests.support.log_records import stream_fields
from tests.support.recipes import NAMED, request, run_program, types_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

WORDS = ["to ", "be ", "continued"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would load the newest one


def fake_model() -> Any:
    """Return a model of the Agents SDK that says always the same."""
    responses = needs.module("openai.types.responses")
    model: Any = needs.module("agents").Model

    class FakeModel(model):  # type: ignore[misc]  # it is not known to mypy
        async def get_response(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

        async def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            place = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
            for number, word in enumerate(WORDS):
                yield responses.ResponseTextDeltaEvent(
                    type="response.output_text.delta", delta=word, sequence_number=number, **place
                )
            part = responses.ResponseOutputText(
                type="output_text", text="".join(WORDS), annotations=[]
            )
            message = responses.ResponseOutputMessage(
                id="m", type="message", role="assistant", status="completed", content=[part]
            )
            response = responses.Response(
                id="r",
                created_at=0,
                model="fake",
                object="response",
                output=[message],
                parallel_tool_calls=False,
                tool_choice="auto",
                tools=[],
            )
            yield responses.ResponseCompletedEvent(
                type="response.completed", sequence_number=len(WORDS), response=response
            )

    return FakeModel()


async def test_the_openai_agents_sdk() -> None:
    needs.module("agents").set_tracing_disabled(disabled=True)
    names = run_program("OpenAI Agents SDK", "agents")
    names["agent"].model = fake_model()
    exchange = await request(names["app"], "POST", "/chat", query=b"question=Why%3F")
    assert types_of(exchange) == ["token"] * 3 + ["step"]
    assert [event.data for event in exchange.events] == [*WORDS, "message_output_created"]
    exchange = await request(names["app"], "POST", "/chat", query=b"question=W", accept=NAMED)
    assert types_of(exchange)[-1] == "complete"


async def test_litellm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    names = run_program("LiteLLM", "litellm")
    names["OPTIONS"]["mock_response"] = "to be continued"
    messages = [{"role": "user", "content": "Why?"}]
    path = "/v1/chat/completions"
    exchange = await request(names["app"], "POST", path, messages=messages)
    *chunks, done = [event.data for event in exchange.events]
    assert done == "[DONE]"
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "to be continued"
    usage = json.loads(chunks[-1])["usage"]
    (fields,) = stream_fields(caplog)
    assert fields["tokens"] == usage["total_tokens"] > 0
    assert fields["family"] == "openai"


async def test_a_provider_of_litellm_that_fails_has_a_status() -> None:
    names = run_program("LiteLLM", "litellm")
    names["OPTIONS"]["mock_response"] = Exception("the provider is down")
    messages = [{"role": "user", "content": "Why?"}]
    with pytest.raises(Exception, match="provider is down"):
        await request(names["app"], "POST", "/v1/chat/completions", messages=messages)
