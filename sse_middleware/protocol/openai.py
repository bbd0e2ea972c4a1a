"""The OpenAI dialect: the end of a chat completion stream, in a form that OpenAI's SDKs read."""

import json
from collections.abc import Mapping
from typing import Any

from sse_middleware.protocol.control_events import SERVER_ERROR, SHUTDOWN_ERROR, encode_json

CHUNK_TYPE = b"chat.completion.chunk"
"""The `object` of a chunk (https://platform.openai.com/docs/api-reference/chat-streaming)."""
DONE = b"[DONE]"
"""The data of a stream's last event."""


def parse_chunk(data: bytes) -> dict[str, Any] | None:
    """Return the chat completion chunk in the `data` of an event, `None` if there is none."""
    if CHUNK_TYPE not in data:
        return None
    try:
        chunk = json.loads(data)
    except ValueError:
        return None
    if isinstance(chunk, dict) and chunk.get("object") == CHUNK_TYPE.decode():
        return chunk
    return None


def error_end(line_end: bytes, *, shutdown: bool = False) -> bytes:
    """Return an error, for which SDKs raise their `APIError`, and the end of the stream."""
    error = SHUTDOWN_ERROR if shutdown else SERVER_ERROR
    return _end({"error": {**error, "param": None}}, line_end)


def length_end(first: Mapping[str, Any], line_end: bytes) -> bytes:
    """Return the end of a completion that has reached the cap: `finish_reason` is `length`.

    Args:
        first: the first chunk of the stream; its `id`, `model` and choices are repeated.
        line_end: the line end of the stream.
    """
    repeated = ("id", "object", "created", "model", "system_fingerprint")
    choices = first.get("choices")
    indexes = [
        choice.get("index", 0)
        for choice in (choices if isinstance(choices, list) else [])
        if isinstance(choice, dict)
    ]
    chunk: dict[str, Any] = {name: first[name] for name in repeated if name in first}
    chunk["choices"] = [
        {"index": index, "delta": {}, "finish_reason": "length"} for index in indexes or [0]
    ]
    return _end(chunk, line_end)


def _end(payload: Mapping[str, Any], line_end: bytes) -> bytes:
    blank = line_end * 2
    return b"data: " + encode_json(payload).encode() + blank + b"data: " + DONE + blank
