"""The words of ours: what we add to a stream, in the language of each family.

Pure functions from numbers to bytes. `data` is never empty, `retry` never stands alone, and nothing
here knows what an exception said.
"""

import functools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sse_middleware.config.options import Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.event_ids import EventId
from sse_middleware.protocol.wire import change_data

_ERROR = {
    "type": "server_error",
    "code": "internal_error",
    "message": "The stream ended because of an error on the server.",
}
_LOST = {
    "type": "server_error",
    "code": "producer_lost",
    "message": "The server that wrote this stream is gone.",
}

_SHUTDOWN = {
    "type": "server_error",
    "code": "shutdown",
    "message": "The server is shutting down.",
}

_json = json.JSONEncoder(separators=(",", ":")).encode  # ASCII, and so one line

OPENAI_CHUNK = b"chat.completion.chunk"


def control(
    name: str,
    fields: Mapping[str, object],
    *,
    cursor: EventId | str | None = None,
    retry: int | None = None,
) -> bytes:
    """Return a named event of ours; `name` is one that the settings allow.

    Args:
        name: the event's type.
        fields: its data, a JSON object.
        cursor: its id, if it has one; a client's own is one that it could send in a header.
        retry: its reconnection time in milliseconds, if it has one.
    """
    return _written(name, _json(fields), cursor=cursor, retry=retry)


def _written(
    name: str, data: str, *, cursor: EventId | str | None = None, retry: int | None = None
) -> bytes:
    """Return an event whose data is one line.

    Those that come often write it themselves and not by a JSON encoder, for all in them is a
    number, or a word of a safe alphabet.
    """
    text = f"event: {name}\ndata: {data}\n"
    if cursor is not None:
        text += f"id: {cursor}\n"
    if retry is not None:
        text += f"retry: {retry}\n"
    return f"{text}\n".encode()


def opening(
    name: str,
    record: StreamRecord,
    options: Options,
    *,
    max_seconds: float | None,
    reset: str,
    resumed: bool,
    cursor: EventId | str | None,
    retry: int,
) -> bytes:
    """Return `start`, or `reset` where the client cannot go on where it was."""
    reason = f'"reason":"{reset}",' if reset else ""
    data = (
        f'{{{reason}"stream_id":"{record.stream_id}","trace_id":"{record.trace_id}",'
        f'"max_duration":{_number(max_seconds)},'
        f'"heartbeat_interval":{_number(options.heartbeat_interval)},'
        f'"silence_threshold":{_number(options.silence_threshold)},'
        f'"resumed":{"true" if resumed else "false"}}}'
    )
    return _written(name, data, cursor=cursor, retry=retry)


def heartbeat(
    name: str,
    record: StreamRecord,
    *,
    unix_time: float,
    uptime: float,
    remaining: float | None,
    max_seconds: float | None,
    retry: int | None,
) -> bytes:
    """Return `heartbeat`, with a `retry` where it is the last word of a connection."""
    data = (
        f'{{"stream_id":"{record.stream_id}",'
        f'"timestamp":"{_timestamp(int(unix_time * 1000))}","uptime_seconds":{uptime!r},'
        f'"total_chunks":{record.chunks},"total_tokens":{record.tokens},'
        f'"heartbeat_count":{record.heartbeats},"remaining_seconds":{_number(remaining)},'
        f'"max_duration":{_number(max_seconds)},"trace_id":"{record.trace_id}"}}'
    )
    return _written(name, data, retry=retry)


def _number(value: float | None) -> str:
    return "null" if value is None else repr(value)


@functools.lru_cache(maxsize=8)  # streams that beat together tell one time
def _timestamp(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds")


def complete(  # noqa: PLR0917 - as they stand in the event
    name: str,
    record: StreamRecord,
    reason: str,
    duration: float,
    cursor: EventId | None,
    retry: int | None,
) -> bytes:
    """Return `complete`, the last event of a stream that has not failed."""
    data = (
        f'{{"reason":"{reason}","duration":{duration!r},'
        f'"total_chunks":{record.chunks},"total_tokens":{record.tokens},'
        f'"trace_id":"{record.trace_id}","stream_id":"{record.stream_id}"}}'
    )
    return _written(name, data, cursor=cursor, retry=retry)


def error(name: str, record: StreamRecord, cursor: EventId | None) -> bytes:
    """Return the `error` event; what an exception says may be a secret, so it does not say it."""
    return control(name, {"error": _ERROR, **_ids(record)}, cursor=cursor)


def lost(name: str, record: StreamRecord, retry: int) -> bytes:
    """Return the `error` event of a stream whose producer is gone, to be asked for again."""
    return control(name, {"error": _LOST, **_ids(record)}, retry=retry)


def _ids(record: StreamRecord) -> dict[str, str]:
    return {"trace_id": record.trace_id, "stream_id": record.stream_id}


def comment(line_end: bytes, *, as_block: bool) -> bytes:
    """Return the heartbeat of a client that wants no events but the app's."""
    return b": heartbeat" + line_end + (line_end if as_block else b"")


def openai_chunk(data: bytes) -> dict[str, Any] | None:
    """Return the chunk of a chat completion that the `data` of an event is, if it is one."""
    if OPENAI_CHUNK not in data:
        return None
    try:
        chunk = json.loads(data)
    except ValueError:
        return None
    if isinstance(chunk, dict) and chunk.get("object") == OPENAI_CHUNK.decode():
        return chunk
    return None


def openai_error(line_end: bytes, *, shutdown: bool = False) -> bytes:
    """Return what makes the clients of OpenAI's API raise their `APIError`, and their end."""
    return _openai({"error": {**(_SHUTDOWN if shutdown else _ERROR), "param": None}}, line_end)


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
