"""The responder: all state of one request, between the server and the app.

It decides at the response start whether the response is a stream of ours. If not, every message
passes as the very same object. If so, the app goes on in its own task, and every way out of it
(return, exception, cancellation, cap) ends in the one `finally` of the middleware.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from re import Pattern

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware.current import CurrentStream
from sse_middleware.families import ALL, Family, comment_form, family_of, in_rollout
from sse_middleware.farewell import GRACE_SECONDS, Farewell
from sse_middleware.headers import request_headers, stream_headers, why_untouched
from sse_middleware.observers import Observer
from sse_middleware.options import Options
from sse_middleware.outbox import Outbox
from sse_middleware.process import OncePerKey
from sse_middleware.routes import Mark, mark_on, route_name
from sse_middleware.state import StreamState
from sse_middleware.ticker import ticker_of

logger = logging.getLogger("sse_middleware")

_CAPPED_ROUTES = 1000


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all requests of one middleware share.

    Attributes:
        app: the app that is wrapped.
        options: the settings.
        options_of: the settings of a mark.
        marks: the marks that lie on paths, the first that matches counts.
        observers: who is told of streams.
        capped_routes: the routes whose first cap has been told of; it grows, up to a bound.
    """

    app: ASGIApp
    options: Options
    options_of: OncePerKey[Mark, Options]
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
        current: the stream as the handler sees it.
        scope: the request's, as the server gave it.
        receive: the server's.
        send: the server's.
        task: the one that runs the request, and so the app.
    """

    __slots__ = (
        "_cancels",
        "_current",
        "_decided",
        "_farewell",
        "_listeners",
        "_outbox",
        "_outcome",
        "_receive",
        "_scope",
        "_send",
        "_setup",
        "_task",
    )

    def __init__(  # noqa: PLR0917 - in the order of an ASGI call, around which they stand
        self,
        setup: Setup,
        current: CurrentStream,
        scope: Scope,
        receive: Receive,
        send: Send,
        task: asyncio.Task[object],
    ) -> None:
        self._setup = setup
        self._current = current
        self._scope = scope
        self._receive = receive
        self._send = send
        self._task = task
        self._decided = False
        self._outbox: Outbox | None = None
        self._listeners: list[asyncio.Task[object]] | None = None
        self._farewell: Farewell | None = None

    @property
    def opened(self) -> bool:
        """Whether the response has become a stream."""
        return self._outbox is not None

    def forgives(self, exc: BaseException) -> bool:
        """Take note of the exception by which the app has left; tell whether it was our doing."""
        if self._outbox is None:
            return False
        if isinstance(exc, asyncio.CancelledError):
            if self._farewell is not None and self._farewell.take_back():
                return True
            self._outcome = "cancelled"
        elif isinstance(exc, Exception) and self._outbox.fail():
            logger.error(
                "stream ended by %s of the app, trace id %s",
                type(exc).__name__,
                self._current.trace_id,
            )
        return False

    async def end(self) -> None:
        """Leave nothing of an opened stream behind."""
        assert self._outbox is not None
        cancelled = self._outcome == "cancelled"
        try:
            if self._farewell is not None:
                await self._farewell.end()
        finally:
            self._current.close()
            await self._outbox.settle(0.0 if cancelled else GRACE_SECONDS, self._outcome)

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
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("response left alone: %s, trace id %s", why, self._current.trace_id)
        return self._send(message)

    def receive(self) -> Awaitable[Message]:
        """Pass the server's next message on; behind the cap, the client is gone for the app."""
        if self._decided and self._outbox is None:
            return self._receive()
        return self._listen()

    async def _listen(self) -> Message:
        """Wait for the server's next message, in a way that a farewell can interrupt."""
        if self._farewell is None:
            task = asyncio.current_task()
            assert task is not None
            cancels = task.cancelling()
            if self._listeners is None:
                self._listeners = []
            self._listeners.append(task)
            try:
                message = await self._receive()
            except asyncio.CancelledError:
                if self._farewell is None or task.uncancel() > cancels:
                    raise
            else:
                if self._farewell is not None:
                    task.uncancel()
                if message["type"] == "http.disconnect" and self._outbox is not None:
                    self._outbox.client_left()
                return message
            finally:
                self._listeners.remove(task)
        self._farewell.heard = True
        return {"type": "http.disconnect"}

    def _open(self, start: Message, mark: Mark | None) -> Awaitable[None]:
        """Turn the response into a stream of ours and send its start at once."""
        setup, scope, current = self._setup, self._scope, self._current
        record = current.record
        options = setup.options if mark is None else setup.options_of(mark)
        headers = request_headers(scope.get("headers") or ())
        record.family = family = self._family(mark, headers)
        record.route = route_name(scope, mark)
        state = StreamState(
            options,
            family=family,
            record=record,
            secret=current.secret,
            marked=mark is not None,
            comment=comment_form(headers, options.comment_style),
        )
        ticker = ticker_of(asyncio.get_running_loop())
        opening = state.open(ticker.clock(), datetime.now(UTC))
        current.open(state, ticker.clock)
        self._cancels = self._task.cancelling()
        self._outcome = "incomplete"  # unless something ends it
        self._outbox = Outbox(
            state,
            self._send,
            ticker,
            batch=options.batch,
            pause=options.chunk_delay_ms / 1000,
            observers=setup.observers,
            owner=self,
        )
        if family is not Family.OFF:
            added = stream_headers(
                start.get("headers") or (),
                http_version=scope.get("http_version", ""),
                trace_id=record.trace_id,
                stream_id=record.stream_id,
                max_seconds=state.max_seconds,
                heartbeat_interval=options.heartbeat_interval,
                silence_threshold=options.silence_threshold,
                keep_cache_control=family is not Family.EVENTSOURCE,
            )
            start = {**start, "headers": added}
        return self._outbox.open(start, opening)

    def _family(self, mark: Mark | None, headers: dict[bytes, bytes]) -> Family:
        percent = self._setup.options.rollout_percent
        if percent < ALL:
            address = str((self._scope.get("client") or ("",))[0])
            if not in_rollout(percent, headers, address):
                return Family.OFF
        if mark is not None and mark.family is not None:
            return mark.family
        method, query = self._scope.get("method", ""), self._scope.get("query_string", b"")
        return family_of(method, headers, query)

    def on_cap(self) -> None:
        """Let the app hear that its client is gone, and give it some time to leave."""
        assert self._outbox is not None
        self._farewell = Farewell(
            self._task,
            cancels=self._cancels,
            listeners=self._listeners or [],
            app_waits=self._outbox.app_waits,
        )
        self._warn_of_cap()

    async def on_late_write(self) -> None:
        """Drop what the app writes behind its end."""
        if self._farewell is not None:
            await self._farewell.late_write()

    def _warn_of_cap(self) -> None:
        route, told = self._current.record.route, self._setup.capped_routes
        if route in told or len(told) >= _CAPPED_ROUTES:
            return
        told.add(route)
        logger.warning(
            "a stream of route %s was ended at its cap, trace id %s; this is told once a route; "
            "SSE_STREAM_MAX_SECONDS sets the cap",
            route,
            self._current.trace_id,
        )
