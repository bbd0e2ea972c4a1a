"""The usage that providers report, in the formats of their APIs."""

import json
from typing import Any

import pytest

from sse_middleware import Event
from sse_middleware.observability.source_record import TokenUsage
from sse_middleware.protocol.token_usage import read_usage

OPENAI_CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "model": "gpt-4o",
    "choices": [],
    "usage": {
        "prompt_tokens": 19,
        "completion_tokens": 10,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    },
}
OPENAI_COMPLETED = {
    "type": "response.completed",
    "response": {
        "model": "gpt-5",
        "usage": {
            "input_tokens": 36,
            "input_tokens_details": {"cached_tokens": 6},
            "output_tokens": 87,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 123,
        },
    },
}
ANTHROPIC_START = {
    "type": "message_start",
    "message": {
        "model": "claude-sonnet-4-5",
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 7,
            "cache_read_input_tokens": 100,
            "output_tokens": 1,
        },
    },
}
ANTHROPIC_DELTA = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn"},
    "usage": {"output_tokens": 15},
}
GOOGLE = {
    "candidates": [],
    "modelVersion": "gemini-2.5-flash",
    "usageMetadata": {
        "promptTokenCount": 8,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 5,
        "cachedContentTokenCount": 3,
        "totalTokenCount": 33,
    },
}
QWEN = {
    "output": {"choices": []},
    "usage": {"input_tokens": 22, "output_tokens": 17, "total_tokens": 39},
    "request_id": "x",
}


@pytest.mark.parametrize(
    ("report", "usage", "model"),
    [
        (OPENAI_CHUNK, TokenUsage(19, 10, 4), "gpt-4o"),
        (OPENAI_COMPLETED, TokenUsage(36, 87, 6), "gpt-5"),
        (ANTHROPIC_START, TokenUsage(132, 1, 100, 7), "claude-sonnet-4-5"),
        (ANTHROPIC_DELTA, TokenUsage(0, 15), ""),
        (GOOGLE, TokenUsage(8, 25, 3), "gemini-2.5-flash"),
        (QWEN, TokenUsage(22, 17), ""),
        (QWEN["usage"], TokenUsage(22, 17), ""),
        ({"prompt_token_count": 1, "thoughts_token_count": 2}, TokenUsage(1, 2), ""),
    ],
)
def test_each_format_is_read_as_an_object_and_as_an_event(
    report: Any, usage: TokenUsage, model: str
) -> None:
    assert read_usage(report) == (usage, model)
    if "usage" in str(report):
        assert read_usage(Event(json.dumps(report))) == (usage, model)


def test_an_object_of_an_sdk_is_read_by_its_dump() -> None:
    class Chunk:
        def model_dump(self) -> dict[str, Any]:
            return OPENAI_CHUNK

    assert read_usage(Chunk()) == (TokenUsage(19, 10, 4), "gpt-4o")


def test_reports_of_one_call_add_up_to_the_latest_totals() -> None:
    usage = TokenUsage()
    for report in (ANTHROPIC_START, ANTHROPIC_DELTA, ANTHROPIC_START):
        found = read_usage(report)
        assert found is not None
        usage = usage.updated(found[0])
    assert usage == TokenUsage(132, 15, 100, 7)
    assert usage.total_tokens == 147


@pytest.mark.parametrize(
    "report",
    [
        None,
        5,
        "usage",
        {},
        {"usage": None},
        {"usage": []},
        {"usage": {"seconds": 3}},
        {"message": "usage"},
        {"choices": [{"delta": {"content": "prompt_tokens"}}], "usage": None},
        Event("[DONE]"),
        Event('{"usage": '),
        Event('["usage"]'),
        Event('{"usage": ' + "[" * 100_000),
    ],
)
def test_a_report_without_usage_is_none(report: object) -> None:
    assert read_usage(report) is None


@pytest.mark.parametrize("value", [-1, 1.5, True, "7", None, 10**13, [], {}])
def test_a_number_that_is_no_count_is_ignored(value: object) -> None:
    usage = {"prompt_tokens": value, "completion_tokens": 2, "prompt_tokens_details": value}
    assert read_usage({"model": value, "usage": usage}) == (
        TokenUsage(0, 2),
        value if isinstance(value, str) else "",
    )
