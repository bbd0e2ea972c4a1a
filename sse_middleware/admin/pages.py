"""The live page: its files, its event streams, and the cancellation of a stream.

The files contain no data and are sent to anyone. Everything else needs the token, in the header
`Authorization`, so that no other page can send it. The streams are event streams of the
middleware, which do not count against the limits: an operator needs them most when these are
reached.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sse_middleware._once import running_loop
from sse_middleware.admin.live_streams import LiveStreams
from sse_middleware.errors import StoreError
from sse_middleware.http.request import SSERequest, app_path
from sse_middleware.http.routes import streaming
from sse_middleware.protocol.event_ids import is_stream_id
from sse_middleware.protocol.wire import format_sse_event
from sse_middleware.stream.context import Context
from sse_middleware.stream.current import (
    CURRENT,
    IN_SCOPE,
    CurrentStream,
    RequestServices,
    StreamCell,
)
from sse_middleware.stream.responder import Responder

_SNAPSHOT_SECONDS: Final = 1.0
_SHOWN_FRAME_CHARACTERS: Final = 10_000
_FOLDER: Final = Path(__file__).parent
_CLIENT: Final = _FOLDER.parent / "client" / "sse-client.js"
_FILES: Final = {
    "": (_FOLDER / "page.html", "text/html"),
    "/page.css": (_FOLDER / "page.css", "text/css"),
    "/page.js": (_FOLDER / "page.js", "text/javascript"),
    "/sse-client.js": (_CLIENT, "text/javascript"),
}
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
Events = Callable[[CurrentStream], AsyncIterator[bytes]]
"""Returns the events of a stream."""
_EVENTS, _FRAMES, _CANCEL = "/events", "/frames", "/cancel"


@streaming(name="sse-admin", keep=False, stream_max_seconds=None)
async def _endpoint() -> None:
    """Mark the streams of the page."""


class AdminPages:
    """Respond to requests for the live page.

    Args:
        context: the objects that all requests of the middleware share.
        live: the streams.
        follow: follows a stream by name, as for the streams of the app.

    Attributes:
        paths: the paths of the page.
    """

    def __init__(self, context: Context, live: LiveStreams, services: RequestServices) -> None:
        options = context.options
        self._context = context
        self._live = live
        self._services = services
        self._path = options.admin_path
        self._token = options.admin_token.encode()
        self._shows_payloads = options.admin_payloads
        self.paths = tuple(f"{self._path}{name}" for name in (*_FILES, _EVENTS, _FRAMES, _CANCEL))

    def serves(self, scope: Scope) -> bool:
        """Return whether a request is for the live page."""
        return app_path(scope) in self.paths and running_loop() is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond."""
        request = SSERequest(scope)
        name = app_path(scope).removeprefix(self._path)
        is_write = name == _CANCEL
        if request.method not in (("POST",) if is_write else ("GET", "HEAD")):
            await _answer(scope, receive, send, HTTPStatus.METHOD_NOT_ALLOWED)
        elif name in _FILES:
            path, media_type = _FILES[name]
            text = path.read_text("utf-8")
            if not name:  # relative to the page, whatever the `root_path` is
                text = text.replace("{name}", self._path.rpartition("/")[2])
            response = Response(text, headers=_HEADERS, media_type=media_type)
            await response(scope, receive, send)
        elif not self._is_permitted(request):
            await _answer(scope, receive, send, HTTPStatus.UNAUTHORIZED)
        elif name == _EVENTS:
            await self._stream(scope, receive, send, self._snapshots)
        elif name == _FRAMES and not self._shows_payloads:
            await _answer(scope, receive, send, HTTPStatus.FORBIDDEN)
        elif not is_stream_id(stream := dict(request.query).get("stream", "")):
            await _answer(scope, receive, send, HTTPStatus.BAD_REQUEST)
        elif name == _FRAMES:
            await self._stream(scope, receive, send, partial(self._frames, stream))
        else:
            await self._cancel(scope, receive, send, stream)

    def _is_permitted(self, request: SSERequest) -> bool:
        scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)

    async def _cancel(self, scope: Scope, receive: Receive, send: Send, stream: str) -> None:
        try:
            is_known = await self._context.store.cancel(stream)
        except StoreError:
            await _answer(scope, receive, send, HTTPStatus.SERVICE_UNAVAILABLE)
            return
        await _answer(scope, receive, send, HTTPStatus.OK if is_known else HTTPStatus.NOT_FOUND)

    async def _snapshots(self, current: CurrentStream) -> AsyncIterator[bytes]:
        while not current.draining:
            data = self._live.snapshot() | {"payloads": self._shows_payloads}
            yield format_sse_event(json.dumps(data, separators=(",", ":")), event="snapshot")
            await asyncio.sleep(_SNAPSHOT_SECONDS)

    async def _frames(self, stream: str, current: CurrentStream) -> AsyncIterator[bytes]:
        try:
            async with aclosing(self._context.store.follow(stream, 0)) as log:
                async for batch in log:
                    text = batch.frames.decode("utf-8", "replace")[:_SHOWN_FRAME_CHARACTERS]
                    data = {"state": batch.state, "last": batch.last, "frames": text}
                    yield format_sse_event(json.dumps(data), event="frames")
                    if current.draining:
                        return
        except StoreError:
            yield format_sse_event("{}", event="unavailable")

    async def _stream(self, scope: Scope, receive: Receive, send: Send, events: Events) -> None:
        """Send events as a marked stream, without an admission check."""
        task = asyncio.current_task()
        assert task is not None
        current = CurrentStream(scope.get("headers") or (), self._services)
        cell: StreamCell = {"current": current}
        responder = Responder(self._context, cell, scope, receive, send, task)
        scope[IN_SCOPE], scope["endpoint"] = cell, _endpoint
        token = CURRENT.set(cell)
        response = StreamingResponse(
            events(current), headers=_HEADERS, media_type="text/event-stream"
        )
        try:
            await response(scope, responder.receive, responder.send)
        except BaseException as exc:
            if not responder.suppresses(exc):
                raise
        finally:
            try:
                await responder.aclose()
            finally:
                CURRENT.reset(token)
                scope.pop(IN_SCOPE, None)
                current.request = None


async def _answer(scope: Scope, receive: Receive, send: Send, status: HTTPStatus) -> None:
    headers = dict(_HEADERS)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    response: Any = JSONResponse({"status": status.phrase}, status.value, headers)
    await response(scope, receive, send)
