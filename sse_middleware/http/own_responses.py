"""The complete responses that the middleware sends in place of the app's response."""

import json
import logging
import random
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware.config.options import Options
from sse_middleware.http.request import SSERequest, may_have_event_id
from sse_middleware.http.response_head import (
    OWN_HEADERS,
    RawHeaders,
    announcing_headers,
    stream_headers,
)
from sse_middleware.http.routes import UNMATCHED
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.control_events import start_or_reset
from sse_middleware.protocol.event_ids import EventId, new_secret, parse_event_id, stream_id
from sse_middleware.protocol.stream_terms import StreamTerms

logger = logging.getLogger("sse_middleware")

PROCESS: Final = "process"
CLIENT: Final = "client"
RATE: Final = "rate"
READERS: Final = "readers"
CONFLICT: Final = "conflict"
SHUTDOWN: Final = "shutdown"
"""Reasons for a rejection: no slot in the process or for the client, the rate, the readers of a
stream, an `Idempotency-Key` that the client has used for another request, or a drain."""

RETRY_SECONDS: Final = 5
"""The announced wait if there is no slot; it is not known when there will be one."""

_REJECTIONS: Final = {
    PROCESS: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        {
            "type": "server_error",
            "code": "server_full",
            "message": "The server has no room for another stream now.",
        },
    ),
    CLIENT: (
        HTTPStatus.TOO_MANY_REQUESTS,  # RFC 6585 4
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
    READERS: (
        HTTPStatus.TOO_MANY_REQUESTS,
        {
            "type": "rate_limit_error",
            "code": "too_many_readers",
            "message": "Too many clients read this stream.",
        },
    ),
    CONFLICT: (
        HTTPStatus.CONFLICT,
        {
            "type": "invalid_request_error",
            "code": "idempotency_key_reused",
            "message": "This Idempotency-Key was sent with another body; use a new key.",
        },
    ),
    SHUTDOWN: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        {"type": "server_error", "code": "shutdown", "message": "The server is shutting down."},
    ),
}

_SERVES_CLASSES: Final = (2, 3)
"""The classes of statuses with which an app serves a path, or redirects to where it does."""
_FORBIDS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_EXPOSITION_HEADERS: Final = (b"accept", b"accept-encoding")


async def send_rejection(
    send: Send, request: SSERequest, reason: str, retry_after: int | None
) -> None:
    """Send a 503, 429 or 409 with the reason as JSON.

    Args:
        send: the server's.
        request: the request.
        reason: one of the five reasons.
        retry_after: the seconds after which the client may try again, `None` for never.
    """
    status, error = _REJECTIONS[reason]
    response = Response(
        json.dumps({"error": error, "trace_id": request.trace_id}),
        status.value,
        {"x-trace-id": request.trace_id},
        media_type="application/json",
    )
    if retry_after is not None:
        response.headers["retry-after"] = str(retry_after)
    response.raw_headers += OWN_HEADERS
    await response(request.scope, _receive_nothing, send)


async def send_retry_later(
    send: Send,
    request: SSERequest,
    options: Options,
    held: str,
    retry_after: float | None = None,
) -> None:
    """Send an empty stream after which an `EventSource` reconnects with the id that it has.

    Args:
        send: the server's.
        request: the request.
        options: the settings.
        held: the id, `""` for none.
        retry_after: the longest wait in seconds, `None` for the `retry_ms` of the settings; the
            waits are spread over the second half of it, so that not all clients come at once.
    """
    sent = held or str(EventId(new_secret(), 0))
    event_id = parse_event_id(sent)
    name = stream_id(event_id.secret if event_id else sent)
    longest = options.retry_ms if retry_after is None else 1000 * retry_after
    retry = int(longest * (0.5 + random.random() / 2))  # noqa: S311 - no secret
    response = ended_stream(request, options, name, event_id=sent, reset="", retry_ms=retry)
    await response(request.scope, _receive_nothing, send)


async def send_empty(
    send: Send, request: SSERequest, status: HTTPStatus, headers: RawHeaders | None = None
) -> None:
    """Send a status without a body."""
    response = Response(status_code=status.value)
    response.raw_headers += [*OWN_HEADERS, *(headers or ())]
    await response(request.scope, _receive_nothing, send)


async def send_readiness(send: Send, scope: Scope, *, ready: bool) -> None:
    """Send 200, or 503 if the server drains."""
    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    await _send_text(send, scope, "ready\n" if ready else "draining\n", status)


async def send_drained(send: Send, scope: Scope) -> None:
    """Send 200 after the drain."""
    await _send_text(send, scope, "drained\n", HTTPStatus.OK)


async def _send_text(send: Send, scope: Scope, text: str, status: HTTPStatus) -> None:
    response = PlainTextResponse(text, status.value, {"cache-control": "no-store"})
    await response(scope, _receive_nothing, send)


def ended_stream(
    request: SSERequest,
    options: Options,
    name: str,
    *,
    event_id: str,
    reset: str,
    retry_ms: int | None = None,
) -> Response:
    """Return a stream of one event of ours that ends at once.

    Args:
        request: the request.
        options: the settings.
        name: the stream's public id.
        event_id: the last event id that the client then has.
        reset: the reason why the client cannot continue its stream, `""` if it can.
        retry_ms: the wait before the client reconnects, `None` for that of the settings.
    """
    terms = StreamTerms.from_options(options, ClientKind.EVENTSOURCE)
    event = start_or_reset(
        StreamRecord(name, request.trace_id, UNMATCHED, ClientKind.EVENTSOURCE),
        terms,
        reset=reset,
        resumed=False,
        event_id=event_id,
        retry_ms=terms.retry_ms if retry_ms is None else retry_ms,
    )
    response = Response(event)
    response.raw_headers = stream_headers(
        [(b"content-type", b"text/event-stream; charset=utf-8"), *OWN_HEADERS],
        announcing_headers(terms),
        trace_id=request.trace_id,
        stream_id=name,
    )
    return response


class ReplacedResponse:
    """Pass on the response of an app, or send another one in its place.

    Args:
        scope: the request's.
        send: the server's.
        replacement: returns, for the status of the app's response, the ASGI app that sends the
            other response, `None` to pass on the app's. It is called once.
    """

    __slots__ = ("_is_decided", "_is_replaced", "_replacement", "_scope", "_send")

    def __init__(
        self, scope: Scope, send: Send, replacement: Callable[[int], ASGIApp | None]
    ) -> None:
        self._scope = scope
        self._send = send
        self._replacement = replacement
        self._is_decided = False
        self._is_replaced = False

    async def send(self, message: Message) -> None:
        """Pass on a message of the app, or discard it after the other response."""
        if not self._is_decided and message["type"] == "http.response.start":
            self._is_decided = True
            other = self._replacement(message["status"])
            if other is not None:
                # If this raises, the app may still send another response.
                await other(self._scope, _receive_nothing, self._send)
                self._is_replaced = True
        if not self._is_replaced:
            await self._send(message)


class MetricsEndpoint:
    """Serve the metrics at a path.

    Args:
        exposition: the ASGI app that sends the metrics.
        path: the path, below the `root_path`.
        first: whether the metrics are sent in any case, else if the app does not serve the path.

    Attributes:
        path: as the argument.
    """

    def __init__(self, exposition: ASGIApp, path: str, *, first: bool) -> None:
        self._exposition = exposition
        self.path = path
        self._first = first
        self._has_logged = False

    async def handle(self, scope: Scope, send: Send) -> Send | None:
        """Send the metrics and return `None`, or return the `send` for a response of the app."""
        if self._first:
            await self._expose(scope, _receive_nothing, send)
            return None
        return ReplacedResponse(scope, send, partial(self._replacement, scope)).send

    def _replacement(self, scope: Scope, status: int) -> ASGIApp | None:
        if status // 100 not in _SERVES_CLASSES and status not in _FORBIDS:
            return self._expose
        # A 204 to a request with an event id may be ours.
        if not self._has_logged and not may_have_event_id(scope):
            self._has_logged = True
            logger.info(
                "The app responds at %s with %d, so that the metrics are not served. Set "
                "SSE_METRICS_PATH to serve them there in any case, or at another path.",
                self.path,
                status,
            )
        return None

    async def _expose(self, scope: Scope, receive: Receive, send: Send) -> None:
        # prometheus_client decodes all names of headers, their values and the query as UTF-8.
        headers = [pair for pair in scope.get("headers") or () if pair[0] in _EXPOSITION_HEADERS]
        readable = [(name, value.decode("utf-8", "replace").encode()) for name, value in headers]
        query = scope.get("query_string") or b""
        query = query.decode("utf-8", "replace").encode()
        await self._exposition({**scope, "headers": readable, "query_string": query}, receive, send)


async def _receive_nothing() -> Message:
    """Return an empty body, since the app may have received the request's own body."""
    return {"type": "http.request", "body": b"", "more_body": False}
