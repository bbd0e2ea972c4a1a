"""The responder: all state of one request, between the server and the app.

It decides at the response start whether the response is a stream of ours. If not, every message
passes as the very same object. If so, the app goes on in its own task, and every way out of it
(return, exception, cancellation, cap) ends in the one `finally` of the middleware.
"""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from sse_middleware.http.request import RequestBody
from sse_middleware.http.response_head import is_something_else, why_untouched
from sse_middleware.http.routes import Mark, route_name
from sse_middleware.stream.cancellation import GRACE_SECONDS, HURRIED_SECONDS, AppCancellation
from sse_middleware.stream.context import Context
from sse_middleware.stream.current import CurrentStream
from sse_middleware.stream.discarded_response import DiscardedResponse
from sse_middleware.stream.opening import Opening
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.timed_sender import StreamSlot

logger = logging.getLogger("sse_middleware")

_CAPPED_ROUTES = 1000


class StreamAdmission(Protocol):
    """The check whether the stream of one request is admitted."""

    async def ask(self, mark: Mark | None, route: str) -> bool:
        """Return whether the stream may open; called at the response start."""

    def let_in(self, stream: Producer, /) -> StreamSlot | None:
        """Give the stream its slot, and return it."""

    def leave(self) -> None:
        """Release the slot, because the response is no stream."""

    async def answer(self, send: Send) -> None:
        """Send the rejection in place of the app's response."""


class Responder:
    """Look after one request; `send` and `receive` are those that the app gets.

    Args:
        setup: what all requests share.
        current: as its attribute.
        scope: the request's, as the server gave it.
        receive: the server's.
        send: the server's.
        task: the one that runs the request, and so the app.
        entry: as its attribute, `None` where all are let in.

    Attributes:
        current: the stream as the handler sees it.
        entry: what has let it in, or may have to.
        outbox: what writes the response, `None` as long as it is no stream.
    """

    __slots__ = (
        "_ahead",
        "_body",
        "_cancels",
        "_decided",
        "_farewell",
        "_is_gone",
        "_listeners",
        "_outcome",
        "_receive",
        "_scope",
        "_send",
        "_setup",
        "_task",
        "_unread",
        "current",
        "entry",
        "outbox",
    )

    def __init__(  # noqa: PLR0917 - in the order of an ASGI call, around which they stand
        self,
        setup: Context,
        current: CurrentStream,
        scope: Scope,
        receive: Receive,
        send: Send,
        task: asyncio.Task[object],
        entry: StreamAdmission | None = None,
    ) -> None:
        self._setup = setup
        self.entry = entry
        self.current = current
        self._scope = scope
        self._receive = receive
        self._send = send
        self._task = task
        self._decided = False
        self._body: RequestBody | None = None
        self._ahead: asyncio.Future[Message] | None = None
        self._unread: Message | None = None
        self._is_gone = False
        self.outbox: Producer | DiscardedResponse | None = None
        self._listeners: tuple[asyncio.Task[object], ...] = ()
        self._farewell: AppCancellation | None = None

    def forgives(self, exc: BaseException) -> bool:
        """Take note of the exception by which the app has left; tell whether it was our doing."""
        if self.outbox is None:
            return False
        if isinstance(exc, asyncio.CancelledError):
            if self._farewell is not None and self._farewell.take_back():
                return True
            self._outcome = "aborted"
        elif isinstance(exc, Exception) and self.outbox.fail():
            logger.error(
                "stream ended by %s of the app, trace id %s",
                type(exc).__name__,
                self.current.trace_id,
            )
        return False

    async def end(self) -> None:
        """Leave nothing of an opened stream behind."""
        assert self.outbox is not None
        hurried = self._outcome == "aborted" or self.outbox.drains
        if hurried:  # an app may look for its server's end by itself
            self.outbox.abort()
        patience = HURRIED_SECONDS if hurried else GRACE_SECONDS
        try:
            if self._farewell is not None:
                await self._farewell.end()
        finally:
            self.current.close()
            self._is_gone = True  # for whoever asks still
            try:
                await self.outbox.settle(patience, self._outcome)
            finally:
                if self._ahead is not None:
                    self._ahead.cancel()
                    await asyncio.wait((self._ahead,))

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the app's on, through the outbox once the response is a stream."""
        if self._decided:
            return (self._send if self.outbox is None else self.outbox.write)(message)
        if message["type"] != "http.response.start":
            return self._send(message)
        self._decided = True
        if not is_something_else(message):
            return self._decide(message)
        if self.entry is not None:
            self.entry.leave()
        self._body = None
        return self._send(message)

    def _decide(self, start: Message) -> Awaitable[None]:
        """Open a stream, or pass on what is none after all."""
        method = self._scope.get("method", "")
        why = why_untouched(method, start["status"], start.get("headers") or ())
        if why is None and self.current.is_answered:
            why = "it is of ours already"
        mark = self._setup.mark_of(self._scope) if why is None else None
        if mark is None and why is None and self._setup.options.only_marked:
            why = "its endpoint is not marked"
        elif mark is not None and mark.overrides.get("enabled") is False:
            why = "its endpoint is marked so"
        if why is None:
            if self.entry is not None:
                return self._open_if_let_in(self.entry, start, mark)
            return self._open(start, mark)
        if self.entry is not None:
            self.entry.leave()
        self._body = None
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("response left alone: %s, trace id %s", why, self.current.trace_id)
        return self._send(start)

    def receive(self) -> Awaitable[Message]:
        """Pass the server's next message on; behind the cap, the client is gone for the app."""
        if self._decided and self.outbox is None:
            return self._receive()
        return self._listen()

    async def _listen(self) -> Message:
        """Wait for the server's next message, in a way that a farewell can interrupt."""
        if self._farewell is None:
            task = asyncio.current_task()
            assert task is not None
            cancels = task.cancelling()
            self._listeners += (task,)
            try:
                message = None
                if self._ahead or self._unread or self._is_gone:
                    message = await self._came_ahead()
                if message is None:
                    message = await self._receive()
                    # Some servers tell it once, and the app may not have heard yet.
                    self._is_gone = message["type"] == "http.disconnect"
                if message["type"] == "http.request":
                    self._keep(message)
                elif self.outbox is not None and self.outbox.client_left():
                    await self.outbox.until_over()
            except asyncio.CancelledError:
                if self._farewell is None or task.uncancel() > cancels:
                    raise
            else:
                if self._farewell is not None:
                    task.uncancel()
                return message
            finally:
                self._forget_listener(task)
        self._farewell.heard = True
        return {"type": "http.disconnect"}

    async def _came_ahead(self) -> Message | None:
        """Return the message that has come ahead of the app's asking, if there is one."""
        while (ahead := self._ahead) is not None and self._unread is None:
            await asyncio.shield(ahead)
            self._on_ahead(ahead)
        if self._unread is not None:
            message, self._unread = self._unread, None
            return message
        return {"type": "http.disconnect"} if self._is_gone else None

    def _forget_listener(self, task: asyncio.Task[object]) -> None:
        # A task listens once at a time, so that one of its entries is as good as another.
        if len(self._listeners) == 1:
            self._listeners = ()
        else:
            self._listeners = tuple(other for other in self._listeners if other is not task)

    def on_silence(self) -> None:
        """Listen where the app does not, so that somebody hears when the client leaves."""
        if not (self._listeners or self._ahead or self._unread or self._is_gone):
            self._listen_ahead()

    def _listen_ahead(self) -> None:
        self._ahead = asyncio.ensure_future(self._receive_ahead())
        self._ahead.add_done_callback(self._on_ahead)

    async def _receive_ahead(self) -> Message:
        return await self._receive()

    def _on_ahead(self, ahead: asyncio.Future[Message]) -> None:
        if ahead is not self._ahead:
            return  # taken already
        self._ahead = None
        if ahead.cancelled() or ahead.exception() is not None or self._is_gone:
            return
        assert self.outbox is not None
        message = ahead.result()
        if message["type"] == "http.disconnect":
            self._is_gone = True
            self.outbox.client_left()
            return
        # For the app, should it ask; behind the last part of a body only a disconnect can come.
        self._unread = message
        if not message.get("more_body", False):
            self._listen_ahead()

    def _open(self, start: Message, mark: Mark | None) -> Awaitable[None]:
        """Turn the response into a stream of ours and send its start at once."""
        opening = Opening(self._setup, self.current, self._scope, mark, self._body)
        self._cancels = self._task.cancelling()
        self._outcome = "incomplete"  # unless something ends it
        self.outbox = outbox = opening.outbox(self._send, start, owner=self)
        self._body = None
        if self.entry is not None:
            outbox.place = self.entry.let_in(outbox)
        return outbox.open(opening.start(start), opening.words)

    async def _open_if_let_in(
        self, entry: StreamAdmission, start: Message, mark: Mark | None
    ) -> None:
        """Open the stream where there is room for it, else answer in its place."""
        self._decided = False  # what comes meanwhile is listened to as before
        try:
            let_in = await entry.ask(mark, route_name(self._scope, mark))
        finally:
            self._decided = True
        if let_in:
            await self._open(start, mark)
            return
        self._cancels = self._task.cancelling()
        self._outcome = "rejected"
        self.outbox = DiscardedResponse(self)
        await entry.answer(self._send)
        self.on_end()

    def _keep(self, message: Message) -> None:
        """Keep the body of a POST until it is known whether a stream comes of it."""
        if self._scope.get("method") == "POST" and self.outbox is None:
            if self._body is None:
                self._body = RequestBody()
            self._body.add(message)

    def on_cap(self) -> None:
        """Tell the operator, once a route."""
        self._warn_of_cap()

    def on_end(self) -> None:
        """Let the app hear that its client is gone, and give it some time to leave."""
        assert self.outbox is not None
        self._farewell = AppCancellation(
            self._task,
            cancels=self._cancels,
            listeners=self._listeners,
            app_waits=self.outbox.app_waits,
            grace_seconds=HURRIED_SECONDS if self.outbox.drains else GRACE_SECONDS,
        )

    async def on_late_write(self) -> None:
        """Drop what the app writes behind its end."""
        if self._farewell is not None:
            await self._farewell.late_write()

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
