"""Control events: the events that the middleware adds to a stream, and the heartbeat comment.

Pure functions from numbers to bytes. `data` is never empty, `retry` is never alone in a block, and
the text of an exception is never sent.
"""

import functools
import json
from collections.abc import Mapping
from datetime import UTC, datetime

from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.stream_end import StreamEnd
from sse_middleware.protocol.stream_terms import StreamTerms

SERVER_ERROR = {
    "type": "server_error",
    "code": "internal_error",
    "message": "The stream ended because of an error on the server.",
}
SHUTDOWN_ERROR = {
    "type": "server_error",
    "code": "shutdown",
    "message": "The server is shutting down.",
}
_PRODUCER_LOST = {
    "type": "server_error",
    "code": "producer_lost",
    "message": "The server that wrote this stream is gone.",
}

encode_json = json.JSONEncoder(separators=(",", ":")).encode  # ASCII, therefore one line


def start_or_reset(
    record: StreamRecord,
    terms: StreamTerms,
    *,
    reset: str,
    resumed: bool,
    event_id: str | None,
    retry_ms: int,
) -> bytes:
    """Return `start`, or `reset` if the client cannot resume at its event id.

    Args:
        record: the record of the stream.
        terms: the terms of the stream.
        reset: the reason of the `reset`, `""` for a `start`.
        resumed: whether the connection resumes a stream.
        event_id: the id of the event, if it has one.
        retry_ms: the reconnection time.
    """
    name = terms.event_prefix + ("reset" if reset else "start")
    reason = f'"reason":"{reset}",' if reset else ""
    data = (
        f'{{{reason}"stream_id":"{record.stream_id}","trace_id":"{record.trace_id}",'
        f'"max_duration":{_number(terms.max_seconds)},'
        f'"heartbeat_interval":{_number(terms.heartbeat_interval)},'
        f'"silence_threshold":{_number(terms.silence_threshold)},'
        f'"resumed":{"true" if resumed else "false"}}}'
    )
    return _event(name, data, event_id=event_id, retry_ms=retry_ms)


def heartbeat(
    record: StreamRecord,
    terms: StreamTerms,
    *,
    unix_time: float,
    uptime: float,
    remaining: float | None,
    retry_ms: int | None,
) -> bytes:
    """Return `heartbeat`; the last one of a connection has a `retry_ms`."""
    data = (
        f'{{"stream_id":"{record.stream_id}",'
        f'"timestamp":"{_timestamp(int(unix_time * 1000))}","uptime_seconds":{uptime!r},'
        f'"total_chunks":{record.chunks},"total_tokens":{record.tokens},'
        f'"heartbeat_count":{record.heartbeats},"remaining_seconds":{_number(remaining)},'
        f'"max_duration":{_number(terms.max_seconds)},"trace_id":"{record.trace_id}"}}'
    )
    return _event(terms.event_prefix + "heartbeat", data, retry_ms=retry_ms)


def heartbeat_comment(line_end: bytes, *, as_block: bool) -> bytes:
    """Return the heartbeat of a client that accepts no control events."""
    return b": heartbeat" + line_end + (line_end if as_block else b"")


def complete(
    record: StreamRecord,
    terms: StreamTerms,
    end: StreamEnd,
    event_id: str | None,
    retry_ms: int | None,
) -> bytes:
    """Return `complete`, the last event of a stream that has not failed."""
    data = (
        f'{{"reason":"{end.reason}","duration":{end.duration!r},'
        f'"total_chunks":{end.chunks},"total_tokens":{end.tokens},'
        f'"trace_id":"{end.trace_id}","stream_id":"{record.stream_id}"}}'
    )
    return _event(terms.event_prefix + "complete", data, event_id=event_id, retry_ms=retry_ms)


def error(record: StreamRecord, terms: StreamTerms, end: StreamEnd, event_id: str | None) -> bytes:
    """Return `error`; its content is generic, because the text of an exception may be a secret."""
    return _error(record, terms, SERVER_ERROR, end.trace_id, event_id=event_id)


def producer_lost(record: StreamRecord, terms: StreamTerms, retry_ms: int) -> bytes:
    """Return the `error` of a stream that has lost its producer; the client may reconnect."""
    return _error(record, terms, _PRODUCER_LOST, record.trace_id, retry_ms=retry_ms)


def _error(
    record: StreamRecord,
    terms: StreamTerms,
    fields: Mapping[str, str],
    trace_id: str,
    *,
    event_id: str | None = None,
    retry_ms: int | None = None,
) -> bytes:
    data = encode_json({"error": fields, "trace_id": trace_id, "stream_id": record.stream_id})
    return _event(terms.event_prefix + "error", data, event_id=event_id, retry_ms=retry_ms)


def _event(
    name: str, data: str, *, event_id: str | None = None, retry_ms: int | None = None
) -> bytes:
    """Return an event whose data is one line.

    The events that are sent often format their data themselves, which is faster than a JSON
    encoder: all their values are numbers or words of a safe alphabet.
    """
    text = f"event: {name}\ndata: {data}\n"
    if event_id is not None:
        text += f"id: {event_id}\n"
    if retry_ms is not None:
        text += f"retry: {retry_ms}\n"
    return f"{text}\n".encode()


def _number(value: float | None) -> str:
    return "null" if value is None else repr(value)


@functools.lru_cache(maxsize=8)  # heartbeats of many streams that are sent together share one
def _timestamp(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds")
