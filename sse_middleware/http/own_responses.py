"""Refusing: what a client gets whose stream is not let in.

A status that says so, and when to come again; an `EventSource`, which any such status would stop
for good, gets an empty stream that tells it when.
"""

import json
import logging
import random
import time
from http import HTTPStatus

from starlette.types import Scope, Send

from sse_middleware.config.options import Options
from sse_middleware.http.response_head import (
    OWN_HEADERS,
    RawHeaders,
    body_message,
    request_headers,
    stream_headers,
    trace_id,
)
from sse_middleware.http.routes import UNMATCHED
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.event_ids import EventId, new_secret, parse_event_id, stream_id
from sse_middleware.protocol.stream_state import StreamState

logger = logging.getLogger("sse_middleware")

PROCESS, CLIENT, RATE, SHUTDOWN = "process", "client", "rate", "shutdown"
"""What has no room for a stream, or no time."""

_ANSWERS = {
    PROCESS: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        {
            "type": "server_error",
            "code": "server_full",
            "message": "The server has no room for another stream now.",
        },
    ),
    CLIENT: (
        HTTPStatus.TOO_MANY_REQUESTS,
        {
            "type": "rate_limit_error",
            "code": "too_many_streams",
            "message": "Too many streams are open; end one to open another.",
        },
    ),
    RATE: (
        HTTPStatus.TOO_MANY_REQUESTS,
        {
            "type": "rate_limit_error",
            "code": "open_rate_exceeded",
            "message": "Streams are opened too often; wait a while.",
        },
    ),
    SHUTDOWN: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        {"type": "server_error", "code": "shutdown", "message": "The server is shutting down."},
    ),
}


async def refuse(send: Send, scope: Scope, reason: str, retry_after: int) -> None:
    """Answer with 503 or 429 (RFC 6585 4).

    Args:
        send: the server's.
        scope: the request's.
        reason: what has no room.
        retry_after: when there may be, in seconds.
    """
    status, error = _ANSWERS[reason]
    trace = trace_id(request_headers(scope.get("headers") or ()))
    data = json.dumps({"error": error, "trace_id": trace}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(data)),
        (b"retry-after", b"%d" % retry_after),
        (b"x-trace-id", trace.encode()),
        *OWN_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send(body_message(data, more_body=False))


async def put_off(
    send: Send, scope: Scope, options: Options, held: str, retry_after: float | None = None
) -> None:
    """Let an `EventSource` come again later, with the id that it has.

    Args:
        send: the server's.
        scope: the request's.
        options: the settings.
        held: the id, `""` for none.
        retry_after: when to come, in seconds, `None` for as the settings say; some come sooner,
            after half of it, so that not all come at once.
    """
    told = held or str(EventId(new_secret(), 0))
    cursor = parse_event_id(told)
    name = stream_id(cursor.secret if cursor else told)
    longest = options.retry_ms if retry_after is None else 1000 * retry_after
    retry = int(longest * (0.5 + random.random() / 2))  # noqa: S311 - no secret
    headers, data = ended_stream(scope, options, name, event_id=told, reset="", retry_ms=retry)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(body_message(data, more_body=False))


def ended_stream(
    scope: Scope,
    options: Options,
    name: str,
    *,
    event_id: str,
    reset: str,
    retry_ms: int | None = None,
) -> tuple[RawHeaders, bytes]:
    """Return the headers and the one event of a stream of ours that ends at once.

    Args:
        scope: the request's.
        options: the settings.
        name: the stream's id.
        event_id: what the client is to hold.
        reset: why it cannot go on where it was, `""` where it can.
        retry_ms: when it is to come again, `None` for as the settings say.
    """
    trace = trace_id(request_headers(scope.get("headers") or ()))
    state = StreamState(
        options,
        family=ClientKind.EVENTSOURCE,
        record=StreamRecord(name, trace, UNMATCHED, ClientKind.EVENTSOURCE),
        secret="",
        marked=False,
        comment=CommentForm.BLOCK,
    )
    if retry_ms is not None:
        state.retry_ms = retry_ms
    headers = stream_headers(
        [(b"content-type", b"text/event-stream; charset=utf-8"), *OWN_HEADERS],
        http_version=scope.get("http_version", ""),
        trace_id=trace,
        stream_id=name,
        max_seconds=state.max_seconds,
        heartbeat_interval=options.heartbeat_interval,
        silence_threshold=options.silence_threshold,
        keep_cache_control=False,
    )
    return headers, state.open(0.0, time.time(), reset=reset, event_id=event_id)
