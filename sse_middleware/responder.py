"""The responder: all state of one request, between the server and the app.

It decides at the response start whether the response is a stream of ours. If not, every message
passes as the very same object. If so, the app goes on in its own task, and every way out of it
(return, exception, cancellation, cap) ends in the one `finally` of `run`.
"""

import asyncio
import logging
from collections.abc import Awaitable
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware.families import family_of, splits_at_blank_lines
from sse_middleware.headers import request_headers, stream_headers, trace_id, why_untouched
from sse_middleware.options import Options
from sse_middleware.outbox import Outbox
from sse_middleware.routes import route_name
from sse_middleware.state import StreamState

logger = logging.getLogger("sse_middleware")

GRACE_SECONDS = 1.0
"""How long an app may take to leave behind the cap, and a last write to get through."""

_CAPPED_ROUTES = 1000


class Responder:
    """Look after one request; `send` and `receive` are those that the app gets.

    Args:
        options: the settings.
        capped_routes: the routes whose first cap has been told of, shared by all requests.
        scope: the request's, as the server gave it.
        receive: the server's.
        send: the server's.

    Attributes:
        trace_id: the request's.
    """

    __slots__ = (
        "_app_heard",
        "_cancels_before",
        "_capped",
        "_capped_routes",
        "_decided",
        "_grace",
        "_grace_is_over",
        "_headers",
        "_listening",
        "_options",
        "_outbox",
        "_receive",
        "_scope",
        "_send",
        "_task",
        "_we_cancelled",
        "trace_id",
    )

    def __init__(
        self,
        options: Options,
        capped_routes: set[str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._headers = request_headers(scope.get("headers") or ())
        self.trace_id = trace_id(self._headers)
        self._options = options
        self._capped_routes = capped_routes
        self._scope = scope
        self._receive = receive
        self._send = send
        self._decided = False
        self._outbox: Outbox | None = None
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[object] = task
        self._cancels_before = task.cancelling()
        self._listening: set[asyncio.Timeout] = set()
        self._capped = False  # the cap has ended the stream while the app was at it
        self._app_heard = False  # ... and the app was told so by a disconnect
        self._grace: asyncio.TimerHandle | None = None
        self._grace_is_over = False
        self._we_cancelled = False

    async def run(self, app: ASGIApp) -> None:
        """Run the app in this task and leave nothing behind."""
        patience = GRACE_SECONDS
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._take_cancel_back():
                patience = 0.0
                raise
        except Exception as exc:
            self._fail(exc)
            raise
        finally:
            if self._grace is not None:
                self._grace.cancel()
            if self._we_cancelled:
                await self._absorb_cancel()
            if self._outbox is not None:
                await self._outbox.settle(patience)

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the app's on, through the outbox once the response is a stream."""
        if self._outbox is not None:
            return self._outbox.write(message)
        if not self._decided and message["type"] == "http.response.start":
            self._decided = True
            why = why_untouched(
                self._scope.get("method", ""), message["status"], message.get("headers") or ()
            )
            if why is None:
                return self._open(message)
            logger.debug("response left alone: %s, trace id %s", why, self.trace_id)
        return self._send(message)

    async def receive(self) -> Message:
        """Pass the server's next message on; behind the cap, the client is gone for the app."""
        if not self._capped:
            try:
                async with asyncio.timeout(None) as listening:
                    self._listening.add(listening)
                    try:
                        return await self._receive()
                    finally:
                        self._listening.discard(listening)
            except TimeoutError:
                if not listening.expired():
                    raise
        self._app_heard = True
        return {"type": "http.disconnect"}

    async def _open(self, start: Message) -> None:
        """Turn the response into a stream of ours and send its start at once."""
        state = StreamState(
            self._options,
            family=family_of(
                self._scope.get("method", ""), self._headers, self._scope.get("query_string", b"")
            ),
            trace_id=self.trace_id,
            comment_is_block=splits_at_blank_lines(self._headers),
        )
        opening = state.open(asyncio.get_running_loop().time(), datetime.now(UTC))
        self._outbox = Outbox(
            state, self._send, on_cap=self._on_cap, on_late_write=self._on_late_write
        )
        await self._outbox.write_first(
            {
                **start,
                "headers": stream_headers(
                    start.get("headers") or (),
                    http_version=self._scope.get("http_version", ""),
                    trace_id=self.trace_id,
                    stream_id=state.stream_id,
                    max_seconds=state.max_seconds,
                    heartbeat_interval=self._options.heartbeat_interval,
                    silence_threshold=self._options.silence_threshold,
                ),
            },
            opening,
        )

    def _fail(self, exc: Exception) -> None:
        if self._outbox is not None and self._outbox.fail():
            logger.error(
                "stream ended by %s of the app, trace id %s", type(exc).__name__, self.trace_id
            )

    def _on_cap(self) -> None:
        """Let the app hear that its client is gone, and give it some time to leave."""
        self._capped = True
        self._warn_of_cap()
        loop = asyncio.get_running_loop()
        for listening in self._listening:
            listening.reschedule(loop.time())
        self._grace = loop.call_later(GRACE_SECONDS, self._on_grace_over)

    def _on_grace_over(self) -> None:
        # An app that has heard of its end and writes no more is cleaning up, or runs a
        # background task, as it would behind any disconnect.
        assert self._outbox is not None
        self._grace_is_over = True
        if not self._app_heard or self._outbox.app_writes:
            self._cancel_app()

    def _on_late_write(self) -> None:
        if self._grace_is_over:
            self._cancel_app()

    def _cancel_app(self) -> None:
        if not self._we_cancelled:
            self._we_cancelled = True
            self._task.cancel()

    def _take_cancel_back(self) -> bool:
        """Undo our cancellation of the app; tell whether there was no other one."""
        if not self._we_cancelled:
            return False
        self._we_cancelled = False
        return self._task.uncancel() <= self._cancels_before

    async def _absorb_cancel(self) -> None:
        """Undo our cancellation where the app has left before it was delivered."""
        only_ours = self._take_cancel_back()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not only_ours:
                raise

    def _warn_of_cap(self) -> None:
        route = route_name(self._scope)
        if route in self._capped_routes or len(self._capped_routes) >= _CAPPED_ROUTES:
            return
        self._capped_routes.add(route)
        logger.warning(
            "a stream of route %s was ended at its cap of %s s, trace id %s; this is told once a "
            "route; SSE_STREAM_MAX_SECONDS sets the cap",
            route,
            self._options.stream_max_seconds,
            self.trace_id,
        )
