"""Streams in an event loop without asyncio's tasks (trio): they get our headers only."""

import logging

from starlette.types import Message, Scope, Send

from sse_middleware.http.request import SSERequest, app_path
from sse_middleware.http.response_head import passthrough_reason, unmarked_headers
from sse_middleware.protocol.event_ids import new_secret, stream_id
from sse_middleware.stream.context import Context

logger = logging.getLogger("sse_middleware")


def with_headers_only(context: Context, scope: Scope, send: Send) -> Send:
    """Return a `send` that adds headers to the start of an event stream."""
    path = app_path(scope)

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers") or ()
            method = scope.get("method", "")
            if passthrough_reason(method, message["status"], headers) is None:
                if context.get_mark(scope, path) is not None:
                    _warn_of_loop(context)
                added = unmarked_headers(
                    headers,
                    trace_id=SSERequest(scope).trace_id,
                    stream_id=stream_id(new_secret()),
                )
                message = {**message, "headers": [*headers, *added]}
        await send(message)

    return with_headers


def _warn_of_loop(context: Context) -> None:
    if context.is_first_warning("loop", ""):
        logger.warning(
            "Marked streams get headers only, neither heartbeats nor a cap. They need asyncio, "
            "but this server runs the app in another event loop. Use an asyncio worker."
        )
