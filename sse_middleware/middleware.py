"""The door: one line around any ASGI app.

    app.add_middleware(SSEMiddleware)   # Starlette, FastAPI
    app = SSEMiddleware(app)            # any ASGI 3 app

The object that lives as long as the app holds options only; all state of a request is in its
`Responder`.
"""

import asyncio
import logging
import os
from typing import Unpack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware.cursors import new_secret, stream_id
from sse_middleware.errors import ConfigurationError
from sse_middleware.headers import request_headers, stream_headers, trace_id, why_untouched
from sse_middleware.options import OptionArguments, Options
from sse_middleware.responder import Responder
from sse_middleware.tracing import TRACE_ID

logger = logging.getLogger("sse_middleware")

IN_SCOPE = "sse_middleware"
"""The scope's key while a request is ours: `{"trace_id": ...}`; a second layer stands back."""


class SSEMiddleware:
    """Make the event streams of `app` survive the real world, and leave all else as it is.

    Args:
        app: any ASGI 3 app.
        **options: fields of `Options`; each goes before its `SSE_*` variable.

    Raises:
        ConfigurationError: an argument is out of its bounds. A bad variable is told when the
            server starts the app up, so that it stops the start-up.
        TypeError: there is no such option.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[OptionArguments]) -> None:
        self.app = app
        self._misconfigured: ConfigurationError | None = None
        self._options = Options.from_environ({}, **options)
        try:
            self._options = Options.from_environ(os.environ, **options)
        except ConfigurationError as exc:
            self._misconfigured = exc
        self._capped_routes: set[str] = set()
        self._warned_of_loop = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection as ASGI 3 says."""
        if self._misconfigured is not None:
            await self._refuse_start(self._misconfigured, scope, receive, send)
        elif scope["type"] != "http" or not self._options.enabled or IN_SCOPE in scope:
            await self.app(scope, receive, send)
        else:
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _in_asyncio_task():
            await self.app(scope, receive, self._with_headers_only(scope, send))
            return
        responder = Responder(self._options, self._capped_routes, scope, receive, send)
        scope[IN_SCOPE] = {"trace_id": responder.trace_id}
        token = TRACE_ID.set(responder.trace_id)
        try:
            await responder.run(self.app)
        finally:
            TRACE_ID.reset(token)
            scope.pop(IN_SCOPE, None)

    def _with_headers_only(self, scope: Scope, send: Send) -> Send:
        """Return a `send` for event loops that have no asyncio task, such as trio's."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers") or ()
                method = scope.get("method", "")
                if why_untouched(method, message["status"], headers) is None:
                    self._warn_of_loop()
                    added = stream_headers(
                        headers,
                        http_version=scope.get("http_version", ""),
                        trace_id=trace_id(request_headers(scope.get("headers") or ())),
                        stream_id=stream_id(new_secret()),
                        max_seconds=None,
                        heartbeat_interval=None,
                        silence_threshold=None,
                    )
                    message = {**message, "headers": added}
            await send(message)

        return with_headers

    def _warn_of_loop(self) -> None:
        if not self._warned_of_loop:
            self._warned_of_loop = True
            logger.warning(
                "event streams get headers only, neither heartbeats nor a cap: "
                "they need asyncio, and this server runs the app in something else"
            )

    @staticmethod
    async def _refuse_start(
        exc: ConfigurationError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] != "lifespan":
            raise exc
        await receive()
        await send({"type": "lifespan.startup.failed", "message": str(exc)})


def _in_asyncio_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no loop of asyncio's is running
        return False
