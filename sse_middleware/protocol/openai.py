"""The OpenAI dialect: the end of a chat completion stream, in a form that OpenAI's SDKs read."""

import json
from collections.abc import Mapping
from typing import Any, Final

from sse_middleware.protocol.control_events import SERVER_ERROR, SHUTDOWN_ERROR, encode_json
from sse_middleware.protocol.wire import Kind, Splitter, event_data

CHUNK_TYPE = b"chat.completion.chunk"
"""The `object` of a chunk (https://platform.openai.com/docs/api-reference/chat-streaming)."""
DONE = b"[DONE]"
"""The data of a stream's last event."""
_REPEATED: Final = ("id", "object", "created", "model", "system_fingerprint")
"""The fields that all chunks of a completion have in common."""


def parse_chunk(data: bytes) -> dict[str, Any] | None:
    """Return the chat completion chunk in the `data` of an event, `None` if there is none.

    It has only what the end of the completion repeats.
    """
    if CHUNK_TYPE not in data:
        return None
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(chunk, dict) or chunk.get("object") != CHUNK_TYPE.decode():
        return None
    indexes = [{"index": index} for index in _indexes(chunk)]
    return {**_repeated(chunk), "choices": indexes}


def find_chunk(frames: bytes) -> dict[str, Any] | None:
    """Return the first chat completion chunk in events, the last of which may be incomplete."""
    if CHUNK_TYPE not in frames:
        return None
    blocks = (block for kind, block in Splitter(len(frames)).feed(frames) if kind is Kind.BLOCK)
    chunks = (parse_chunk(event_data(block)) for block in blocks)
    return next((chunk for chunk in chunks if chunk is not None), None)


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
    choices = [
        {"index": index, "delta": {}, "finish_reason": "length"} for index in _indexes(first) or [0]
    ]
    return _end({**_repeated(first), "choices": choices}, line_end)


def _repeated(chunk: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: chunk[name] for name in _REPEATED if name in chunk}
    return {name: value for name, value in found.items() if not isinstance(value, dict | list)}


def _indexes(chunk: Mapping[str, Any]) -> list[int]:
    """Return the indexes of the choices of a chunk."""
    choices = chunk.get("choices")
    found = [
        choice.get("index", 0)
        for choice in (choices if isinstance(choices, list) else [])
        if isinstance(choice, dict)
    ]
    return [index for index in found if type(index) is int]


def _end(payload: Mapping[str, Any], line_end: bytes) -> bytes:
    blank = line_end * 2
    return b"data: " + encode_json(payload).encode() + blank + b"data: " + DONE + blank
