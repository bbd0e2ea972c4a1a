"""Send a client that does not accept event streams the events of the app as one JSON document.

The object is the `send` of the stream's connection, in place of the server's: limits, cap, metrics
and log are those of any other stream. It keeps the events until the stream has ended, and responds
by the reason of the end. As the response has not started before, any failure has a status.
"""

import inspect
import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Send

from sse_middleware.http.response_head import BODY, body_message
from sse_middleware.http.routes import Mark
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.stream_end import Reason
from sse_middleware.stream.end_callback import CollectedEvents

logger = logging.getLogger("sse_middleware")

_DROPPED: Final = (
    b"content-type",
    b"content-length",
    b"x-accel-buffering",
    b"x-stream-max-seconds",
    b"x-heartbeat-interval",
    b"x-silence-threshold",
)
"""The headers of the app's start that are those of an event stream."""
_RETRY_SECONDS: Final = "5"
_ENDS: Final = {
    Reason.DURATION_CAP: (HTTPStatus.GATEWAY_TIMEOUT, "The answer has taken too long."),
    Reason.SHUTDOWN: (HTTPStatus.SERVICE_UNAVAILABLE, "The server is shutting down."),
    Reason.EVICTED: (HTTPStatus.SERVICE_UNAVAILABLE, "Another stream has taken the place."),
    Reason.CANCELLED: (HTTPStatus.SERVICE_UNAVAILABLE, "The answer was stopped."),
}
_FAILURE: Final = (HTTPStatus.INTERNAL_SERVER_ERROR, "The answer has failed.")


class CollectedResponse:
    """The response to one client that gets a JSON document.

    Args:
        send: the server's `send`.
        mark: has the function that makes the document.
        dialect: that of the connection, which has the reason of the end before the last message.
    """

    def __init__(self, send: Send, mark: Mark, dialect: Dialect) -> None:
        options = dialect.profile.options
        self._send = send
        self._mark = mark
        self._dialect = dialect
        self._record = dialect.record
        self._events = CollectedEvents(options.replay_max_events, options.replay_max_bytes)
        self._start: Message = {}

    async def send(self, message: Message) -> None:
        """Keep a message of the stream; respond at the last one."""
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == BODY:
            if not self._events.is_truncated:
                self._events.append(message.get("body", b""), 1)
            if not message.get("more_body"):
                await self._respond()

    async def _respond(self) -> None:
        reason = self._dialect.outcome
        if reason is not Reason.FINISHED:
            status, text = _ENDS.get(reason or Reason.ERROR, _FAILURE)
            await self._send_error(status, str(reason), text)
            return
        if self._events.is_truncated:
            logger.error(
                "the answer of route %s exceeds SSE_REPLAY_MAX_BYTES and cannot be collected, "
                "trace id %s",
                self._record.route,
                self._record.trace_id,
            )
            await self._send_error(_FAILURE[0], "too_long", "The answer is too long.")
            return
        assert self._mark.rules is not None
        assert self._mark.rules.collect is not None
        try:
            document = self._mark.rules.collect(await self._events.parse())
            if inspect.isawaitable(document):
                document = await document
            body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        except HTTPException as exc:
            detail = json.dumps({"detail": exc.detail}).encode()
            await self._send_json(exc.status_code, detail, exc.headers or {})
        except Exception:
            logger.exception(
                "collect of route %s has failed, trace id %s",
                self._record.route,
                self._record.trace_id,
            )
            await self._send_error(_FAILURE[0], "error", _FAILURE[1])
        else:
            await self._send_json(self._start["status"], body, {})

    async def _send_error(self, status: HTTPStatus, code: str, text: str) -> None:
        error = {"type": "server_error", "code": code, "message": text}
        body = json.dumps({"error": error, "trace_id": self._record.trace_id}).encode()
        may_retry = status is HTTPStatus.SERVICE_UNAVAILABLE
        await self._send_json(status, body, {"retry-after": _RETRY_SECONDS} if may_retry else {})

    async def _send_json(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        response = Response(body, status, headers, media_type="application/json")
        kept = [pair for pair in self._start["headers"] if pair[0].lower() not in _DROPPED]
        start = {**self._start, "status": int(status), "headers": [*kept, *response.raw_headers]}
        await self._send(start)
        await self._send(body_message(body, more_body=False))
