"""The words of ours: what we add to a stream, in the language of each family.

Pure functions from numbers to bytes. `data` is never empty, `retry` never stands alone, and nothing
here knows what an exception said.
"""

import json
from collections.abc import Mapping
from typing import Any

from sse_middleware.cursors import Cursor
from sse_middleware.wire import change_data

_ERROR = {
    "type": "server_error",
    "code": "internal_error",
    "message": "The stream ended because of an error on the server.",
}

_json = json.JSONEncoder(separators=(",", ":")).encode  # ASCII, and so one line

OPENAI_CHUNK = "chat.completion.chunk"


def control(
    name: str,
    fields: Mapping[str, object],
    *,
    cursor: Cursor | None = None,
    retry: int | None = None,
) -> bytes:
    """Return a named event of ours; `name` is one that the settings allow."""
    text = f"event: {name}\ndata: {_json(fields)}\n"
    if cursor is not None:
        text += f"id: {cursor}\n"
    if retry is not None:
        text += f"retry: {retry}\n"
    return f"{text}\n".encode()


def error(name: str, ids: Mapping[str, object]) -> bytes:
    """Return the `error` event; what an exception says may be a secret, so it does not say it."""
    return control(name, {"error": _ERROR, **ids})


def comment(line_end: bytes, *, as_block: bool) -> bytes:
    """Return the heartbeat of a client that wants no events but the app's."""
    return b": heartbeat" + line_end + (line_end if as_block else b"")


def openai_chunk(data: bytes) -> dict[str, Any] | None:
    """Return the chunk of a chat completion that the `data` of an event is, if it is one."""
    if OPENAI_CHUNK.encode() not in data:
        return None
    try:
        chunk = json.loads(data)
    except ValueError:
        return None
    if isinstance(chunk, dict) and chunk.get("object") == OPENAI_CHUNK:
        return chunk
    return None


def openai_error(line_end: bytes) -> bytes:
    """Return what makes the clients of OpenAI's API raise their `APIError`, and their end."""
    return _openai({"error": {**_ERROR, "param": None}}, line_end)


def openai_length(first: Mapping[str, Any], line_end: bytes) -> bytes:
    """Return the end of a completion that was cut short.

    Args:
        first: the first chunk of the stream, whose `id`, `model` and choices it goes on.
        line_end: the stream's.
    """
    kept = ("id", "object", "created", "model", "system_fingerprint")
    choices = first.get("choices")
    indexes = [
        choice.get("index", 0)
        for choice in (choices if isinstance(choices, list) else [])
        if isinstance(choice, dict)
    ]
    chunk: dict[str, Any] = {name: first[name] for name in kept if name in first}
    chunk["choices"] = [
        {"index": index, "delta": {}, "finish_reason": "length"} for index in indexes or [0]
    ]
    return _openai(chunk, line_end)


def _openai(payload: Mapping[str, Any], line_end: bytes) -> bytes:
    blank = line_end * 2
    data = _json(payload).encode()
    return b"data: " + data + blank + b"data: [DONE]" + blank


def with_trace_id(block: bytes, trace_id: str) -> bytes:
    """Return `block` with the trace id in its data, where that is a JSON object on one line."""

    def add(data: bytes) -> bytes:
        try:
            payload = json.loads(data)
        except ValueError:
            return data
        if not isinstance(payload, dict) or "trace_id" in payload:
            return data
        before, _, after = data.partition(b"{")
        comma = b"," if payload else b""
        return before + b'{"trace_id":"%b"' % trace_id.encode() + comma + after

    return change_data(block, add)
