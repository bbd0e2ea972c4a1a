"""The responder: all state of one request, between the server and the app.

It decides at the response start whether the response is a stream of ours. If not, every message
passes as the very same object. If so, the app goes on in its own task, and every way out of it
(return, exception, cancellation, cap) ends in the one `finally` of `run`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from re import Pattern

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware.current import CurrentStream
from sse_middleware.families import Family, comment_form, family_of, in_rollout
from sse_middleware.headers import request_headers, stream_headers, trace_id, why_untouched
from sse_middleware.observers import Observer
from sse_middleware.options import Options
from sse_middleware.outbox import Outbox
from sse_middleware.routes import Mark, mark_on, route_name
from sse_middleware.state import StreamState

logger = logging.getLogger("sse_middleware")

GRACE_SECONDS = 1.0
"""How long an app may take to leave behind the cap, and a last write to get through."""

_CAPPED_ROUTES = 1000


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all requests of one middleware share.

    Attributes:
        app: the app that is wrapped.
        options: the settings.
        marks: the marks that lie on paths, the first that matches counts.
        observers: who is told of streams.
        capped_routes: the routes whose first cap has been told of; it grows, up to a bound.
    """

    app: ASGIApp
    options: Options
    marks: Mapping[Pattern[str], Mark] = field(default_factory=dict)
    observers: Sequence[Observer] = ()
    capped_routes: set[str] = field(default_factory=set)

    def mark_of(self, scope: Scope) -> Mark | None:
        """Return the mark that lies on the endpoint of `scope`, else on its path."""
        mark = mark_on(scope.get("endpoint"), scope.get("method", ""))
        if mark is None:
            path = scope.get("path", "")
            mark = next((mark for glob, mark in self.marks.items() if glob.match(path)), None)
        return mark


class Responder:
    """Look after one request; `send` and `receive` are those that the app gets.

    Args:
        setup: what all requests share.
        scope: the request's, as the server gave it.
        receive: the server's.
        send: the server's.
        task: the one that runs the request, and so the app.

    Attributes:
        current: the stream as the handler sees it.
    """

    __slots__ = (
        "_app_heard",
        "_cancels_before",
        "_capped",
        "_decided",
        "_grace",
        "_grace_is_over",
        "_headers",
        "_listening",
        "_outbox",
        "_receive",
        "_scope",
        "_send",
        "_setup",
        "_task",
        "_we_cancelled",
        "current",
    )

    def __init__(
        self,
        setup: Setup,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        task: asyncio.Task[object],
    ) -> None:
        self._setup = setup
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = request_headers(scope.get("headers") or ())
        self.current = CurrentStream(trace_id(self._headers))
        self._decided = False
        self._outbox: Outbox | None = None
        self._task = task
        self._cancels_before = task.cancelling()
        self._listening: set[asyncio.Timeout] = set()
        self._capped = False  # the cap has ended the stream while the app was at it
        self._app_heard = False  # ... and the app was told so by a disconnect
        self._grace: asyncio.TimerHandle | None = None
        self._grace_is_over = False
        self._we_cancelled = False

    async def run(self) -> None:
        """Run the app in this task and leave nothing behind."""
        patience, outcome = GRACE_SECONDS, "incomplete"
        try:
            await self._setup.app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._take_cancel_back():
                patience, outcome = 0.0, "cancelled"
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
                await self._outbox.settle(patience, outcome)

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the app's on, through the outbox once the response is a stream."""
        if self._outbox is not None:
            return self._outbox.write(message)
        if not self._decided and message["type"] == "http.response.start":
            self._decided = True
            why = why_untouched(
                self._scope.get("method", ""), message["status"], message.get("headers") or ()
            )
            mark = self._setup.mark_of(self._scope) if why is None else None
            if mark is None and why is None and self._setup.options.only_marked:
                why = "its endpoint is not marked"
            elif mark is not None and mark.overrides.get("enabled") is False:
                why = "its endpoint is marked so"
            if why is None:
                return self._open(message, mark)
            logger.debug("response left alone: %s, trace id %s", why, self.current.trace_id)
        return self._send(message)

    async def receive(self) -> Message:
        """Pass the server's next message on; behind the cap, the client is gone for the app."""
        if not self._capped:
            try:
                async with asyncio.timeout(None) as listening:
                    self._listening.add(listening)
                    try:
                        message = await self._receive()
                    finally:
                        self._listening.discard(listening)
                if message["type"] == "http.disconnect" and self._outbox is not None:
                    self._outbox.client_left()
                return message  # noqa: TRY300 - a time-out can come from the block above only
            except TimeoutError:
                if not listening.expired():
                    raise
        self._app_heard = True
        return {"type": "http.disconnect"}

    async def _open(self, start: Message, mark: Mark | None) -> None:
        """Turn the response into a stream of ours and send its start at once."""
        options = self._setup.options
        if mark is not None:
            options = options.with_overrides(mark.overrides)
        record = self.current.record
        record.family = family = self._family(mark)
        record.route = route_name(self._scope, mark)
        state = StreamState(
            options,
            family=family,
            record=record,
            secret=self.current.secret,
            marked=mark is not None,
            comment=comment_form(self._headers, options.comment_style),
        )
        loop = asyncio.get_running_loop()
        opening = state.open(loop.time(), datetime.now(UTC))
        self.current.open(lambda: state.remaining_seconds(loop.time()))
        self._outbox = Outbox(
            state,
            self._send,
            pause=options.chunk_delay_ms / 1000,
            observers=self._setup.observers,
            on_cap=self._on_cap,
            on_late_write=self._on_late_write,
        )
        if family is not Family.OFF:
            headers = stream_headers(
                start.get("headers") or (),
                http_version=self._scope.get("http_version", ""),
                trace_id=record.trace_id,
                stream_id=record.stream_id,
                max_seconds=state.max_seconds,
                heartbeat_interval=options.heartbeat_interval,
                silence_threshold=options.silence_threshold,
                keep_cache_control=family is not Family.EVENTSOURCE,
            )
            start = {**start, "headers": headers}
        await self._outbox.write_first(start, opening)

    def _family(self, mark: Mark | None) -> Family:
        address = str((self._scope.get("client") or ("",))[0])
        if not in_rollout(self._setup.options.rollout_percent, self._headers, address):
            return Family.OFF
        if mark is not None and mark.family is not None:
            return mark.family
        method, query = self._scope.get("method", ""), self._scope.get("query_string", b"")
        return family_of(method, self._headers, query)

    def _fail(self, exc: Exception) -> None:
        if self._outbox is not None and self._outbox.fail():
            logger.error(
                "stream ended by %s of the app, trace id %s",
                type(exc).__name__,
                self.current.trace_id,
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
        route, told = self.current.record.route, self._setup.capped_routes
        if route in told or len(told) >= _CAPPED_ROUTES:
            return
        told.add(route)
        logger.warning(
            "a stream of route %s was ended at its cap, trace id %s; this is told once a route; "
            "SSE_STREAM_MAX_SECONDS sets the cap",
            route,
            self.current.trace_id,
        )
