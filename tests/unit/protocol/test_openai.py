"""The OpenAI dialect: which events are chunks, and the ends that SDKs parse."""

import json
from typing import Any

import pytest

from sse_middleware import EventParser
from sse_middleware.protocol import openai
from sse_middleware.protocol.wire import add_trace_id

CHUNK: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {}}],
}


def end(data: bytes) -> dict[str, Any]:
    """Return the data of the event before the one that ends a stream."""
    event, done = EventParser().feed(data)
    assert done.data == "[DONE]"
    return dict(json.loads(event.data))


def test_a_chunk_is_parsed_as_far_as_the_end_repeats_it() -> None:
    more = {"model": "m", "usage": None, "system_fingerprint": ["no text"]}
    assert openai.parse_chunk(json.dumps({**CHUNK, **more}).encode()) == {
        **CHUNK,
        "choices": [{"index": 0}, {"index": 1}],
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"object":"chat.completion"}',
        b'"chat.completion.chunk"',
        b'["chat.completion.chunk"]',
        b'{"model":"chat.completion.chunk"}',
        b"chat.completion.chunk {",
        b'{"object":"chat.completion.chunk\xff"}',
    ],
)
def test_other_data_is_no_chunk(data: bytes) -> None:
    assert openai.parse_chunk(data) is None


@pytest.mark.parametrize("depth", [500, 1000, 500_000])
def test_a_value_of_any_depth_does_no_harm(depth: int) -> None:
    data = b'{"object":"chat.completion.chunk","id":' + b"[" * depth + b"]" * depth + b"}"
    chunk = openai.parse_chunk(data) or {}
    assert end(openai.length_end(chunk, b"\n"))["choices"][0]["finish_reason"] == "length"
    assert "id" not in chunk
    block = b"data: " + data + b"\n\n"
    assert add_trace_id(block, "t").replace(b'"trace_id":"t",', b"") == block


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(("shutdown", "code"), [(False, "internal_error"), (True, "shutdown")])
def test_an_error_ends_the_stream(line_end: bytes, *, shutdown: bool, code: str) -> None:
    data = openai.error_end(line_end, shutdown=shutdown)
    error = end(data)["error"]
    assert error.keys() == {"type", "code", "message", "param"}
    assert (error["code"], error["param"]) == (code, None)
    assert data.count(line_end * 2) == 2


@pytest.mark.parametrize(
    ("choices", "indexes"),
    [
        ([{"index": 0}, {"index": 1}], [0, 1]),
        ([{}, "no choice", {"index": 2}, {"index": [1]}, {"index": True}], [0, 2]),
        ([], [0]),
        ("no list", [0]),
        (None, [0]),
    ],
)
def test_a_completion_that_is_cut_short_ends_each_of_its_choices(
    choices: object, indexes: list[int]
) -> None:
    assert end(openai.length_end({**CHUNK, "choices": choices}, b"\n")) == {
        **CHUNK,
        "choices": [{"index": index, "delta": {}, "finish_reason": "length"} for index in indexes],
    }


def test_a_completion_without_a_first_chunk_ends_too() -> None:
    assert end(openai.length_end({}, b"\n"))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_the_first_chunk_is_found_in_the_events_of_a_log(line_end: bytes) -> None:
    data = b"data: " + json.dumps(CHUNK).encode()
    other = json.dumps({**CHUNK, "id": "other"}).encode()
    lines = (b": ping", b"", b"data: {}", b"", data, b"", b"data: " + other, b"", data[:30])
    found = openai.find_chunk(line_end.join(lines))
    assert found is not None
    assert found["id"] == "c"
    assert openai.find_chunk(line_end.join((b": ping", b"", data))) is None, "it is not complete"
    assert openai.find_chunk(b"") is None
