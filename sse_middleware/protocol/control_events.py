"""The words of ours: what we add to a stream, in the language of each family.

Pure functions from numbers to bytes. `data` is never empty, `retry` never stands alone, and nothing
here knows what an exception said.
"""

import functools
import json
from collections.abc import Mapping
from datetime import UTC, datetime

from sse_middleware.config.options import Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.event_ids import EventId

SERVER_ERROR = {
    "type": "server_error",
    "code": "internal_error",
    "message": "The stream ended because of an error on the server.",
}
_PRODUCER_LOST = {
    "type": "server_error",
    "code": "producer_lost",
    "message": "The server that wrote this stream is gone.",
}

SHUTDOWN_ERROR = {
    "type": "server_error",
    "code": "shutdown",
    "message": "The server is shutting down.",
}

encode_json = json.JSONEncoder(separators=(",", ":")).encode  # ASCII, therefore one line


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
    return _written(name, encode_json(fields), cursor=cursor, retry=retry)


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
    return control(name, {"error": SERVER_ERROR, **_ids(record)}, cursor=cursor)


def lost(name: str, record: StreamRecord, retry: int) -> bytes:
    """Return the `error` event of a stream whose producer is gone, to be asked for again."""
    return control(name, {"error": _PRODUCER_LOST, **_ids(record)}, retry=retry)


def _ids(record: StreamRecord) -> dict[str, str]:
    return {"trace_id": record.trace_id, "stream_id": record.stream_id}


def comment(line_end: bytes, *, as_block: bool) -> bytes:
    """Return the heartbeat of a client that wants no events but the app's."""
    return b": heartbeat" + line_end + (line_end if as_block else b"")
