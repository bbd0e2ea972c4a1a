"""One request between server and app: the `send` and the `receive` that the app gets.

Theory of operation. `send` passes messages on until the response start. There the responder decides
whether the response is a marked stream. If it is, a producer gets all further messages; if not,
they pass as the same objects, and those of an unmarked stream are counted. The app stays in its own
task, and each way in which it can end (return, exception, cancellation, cap) leads to one
`finally`: `aclose`.

`send` and `receive` are coroutine functions that do nothing until they are awaited: adapters of
other interfaces call them in one thread and await them in another.

`receive` is more difficult, because two sides need the disconnect of the client: the stream, and
the app, which may call `receive()` in several tasks or never.

- A `receive()` of the app waits in the task that calls it. The task is in `_listeners`. If the
  stream ends on our side, `AppCancellation` cancels the listeners. `receive` catches
  this cancellation, undoes it and returns `http.disconnect`. If the task has been cancelled by
  other code too, which `task.uncancel()` shows, the exception is raised.
- If the app does not receive, and the stream needs to notice a disconnect (it is marked, or its
  slot is needed), `watch_for_disconnect` starts a `receive()` of its own, the `Prefetch`, which
  stores a message for the next call of the app.
- For a marked stream a disconnect is stored, because some servers send it only once.
- If the stream is kept, `receive()` returns no disconnect to the app before the stream has ended.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from sse_middleware.http.request import app_path
from sse_middleware.http.response_head import is_not_event_stream
from sse_middleware.http.routes import Mark, route_name
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.stream.cancellation import (
    NO_DISCONNECT,
    AppCancellation,
    Disconnect,
)
from sse_middleware.stream.context import Context
from sse_middleware.stream.current import CurrentStream, StreamCell, current_in
from sse_middleware.stream.discarded_response import DiscardedResponse
from sse_middleware.stream.held_start import HeldStart
from sse_middleware.stream.opener import (
    StreamAdmission,
    is_handled_inside,
    match_stream,
    open_marked,
    open_unmarked,
    warn_once,
    with_headers,
)
from sse_middleware.stream.prefetch import Prefetch
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.unmarked import UnmarkedStream

if TYPE_CHECKING:
    from sse_middleware.http.body_digest import BodyDigest
    from sse_middleware.observability.stream_record import StreamRecord

Stream = Producer | UnmarkedStream | DiscardedResponse

logger = logging.getLogger("sse_middleware")


class Responder:
    """The state of one request.

    Args:
        context, cell, scope, admission: as the attributes.
        receive, send, task: those of the server; the app runs in the task.

    Attributes:
        context: the objects that all requests of one middleware share.
        cell: the handler's view of the stream, or what it is created from.
        current: that view, from the response start on.
        scope: the scope of the request; the app adds to it when it has routed it.
        server_send: the server's `send`.
        body: the digest of the received part of the request body, if it identifies the stream.
        admission: the admission check of the request, `None` without limits.
        held: the response start while its limits are being checked.
        producer: writes the response, `None` unless it is a stream.
    """

    __slots__ = (
        "_app_context",
        "_cancel_count",
        "_cancellation",
        "_counted",
        "_disconnect",
        "_is_aborted",
        "_listeners",
        "_path",
        "_prefetch",
        "_receive",
        "_task",
        "_write",
        "admission",
        "body",
        "cell",
        "context",
        "current",
        "held",
        "producer",
        "scope",
        "server_send",
    )

    current: CurrentStream

    def __init__(  # noqa: PLR0917 - ordered as in an ASGI call
        self,
        context: Context,
        cell: StreamCell,
        scope: Scope,
        receive: Receive,
        send: Send,
        task: asyncio.Task[object],
        admission: StreamAdmission | None = None,
    ) -> None:
        self.context = context
        self.admission = admission
        self.cell = cell
        self.scope = scope
        self._path = app_path(scope) if context.path_marks else ""
        self._receive = receive
        self.server_send = send
        self._task = task
        self._write: Send | None = None  # passes all messages on, once that is decided
        self.held: HeldStart | None = None
        self.body: BodyDigest | None = None
        self._app_context: contextvars.Context | None = None
        self._prefetch: Prefetch | None = None
        self._is_aborted = False
        self._disconnect = NO_DISCONNECT
        self.producer: Stream | None = None
        self._counted: StreamRecord | None = None
        self._listeners: tuple[asyncio.Task[object], ...] = ()
        self._cancellation: AppCancellation | None = None

    def suppresses(self, exc: BaseException) -> bool:
        """Handle the exception that the app has raised; return whether we have caused it."""
        if self.held is not None and (self.producer is None or isinstance(exc, Exception)):
            self.held.app_exception = exc
        if self.producer is None:
            return False
        if isinstance(exc, asyncio.CancelledError):
            if self._cancellation is not None and self._cancellation.uncancel():
                return True
            if self._task.cancelling() > self._cancel_count:
                self._is_aborted = True
                self.producer.on_app_cancelled()
                return False
        self.current.on_app_raised(exc)
        if isinstance(exc, Exception | asyncio.CancelledError) and self.producer.on_app_raised():
            text = "the app raised %s and its stream has ended, trace id %s"
            logger.warning(text, type(exc).__name__, self.current.trace_id)
        return False

    async def aclose(self) -> None:
        """End the stream, if there is one, and release its resources."""
        held, self.held = self.held, None
        try:
            if held is not None:
                await held.aclose(is_aborted=self._is_aborted)
                if held.app_exception is not None:
                    self.suppresses(held.app_exception)
        finally:
            if self.producer is not None:
                await self._close_stream(self.producer)

    async def _close_stream(self, producer: Stream) -> None:
        try:
            if self._cancellation is not None:
                await self._cancellation.aclose()
        finally:
            self.current.close()
            self._counted, self._write = None, producer.write
            self._disconnect = Disconnect.RECEIVED  # for tasks that receive later
            try:
                await producer.aclose(is_aborted=self._is_aborted)
            finally:
                self._write = producer.write  # discards all, if the stream was marked
                if self._prefetch is not None:
                    await self._prefetch.aclose()

    async def send(self, message: Message) -> None:  # noqa: C901 - few calls
        """Pass a message of the app on, through the producer if the stream is marked."""
        record, send = self._counted, self.server_send
        if record is not None and message.get("more_body"):
            # `UnmarkedStream.write`, inlined for the usual message: a call costs more than this.
            body = message.get("body")
            if body and record.chunks:
                record.chunks += 1
            elif body:
                record.count_first_chunk(asyncio.get_running_loop().time())
            try:
                await send(message)
            except Exception:
                assert isinstance(self.producer, UnmarkedStream)
                self.producer.on_failed_write()
                raise
            if body:
                record.sent_bytes += len(body)
        elif (write := self._write) is not None:
            await write(message)
        elif self.held is not None or message.get("type") != "http.response.start":
            await self._send_undecided(message)
        elif not is_not_event_stream(message):
            write_start = self._decide(message)
            if write_start is not None:
                await write_start
        else:
            self._write, self.body = self.server_send, None
            if self.context.other_responses.unchecked and (self._path or "endpoint" in self.scope):
                self.context.other_responses.check(self.context, self.scope, self._path, message)
            if self.admission is not None:
                self.admission.release()
                self.admission = None
            await send(message)

    async def _send_undecided(self, message: Message) -> None:
        """Pass on a message before the response start, or after one that is held."""
        if self.held is None:
            await self.server_send(message)
            return
        await self.held.wait()
        self.held = None
        if self.producer is None:
            self._write = self.server_send
        await self.send(message)

    def _decide(self, start: Message) -> Awaitable[None] | None:
        """Open a stream, or pass the response start on if the response is not to be one.

        Returns:
            The write of the response start, `None` if it is held.
        """
        self._cancel_count = self._task.cancelling()
        self.current = current_in(self.cell)
        is_stream, mark = match_stream(self, self._path, start)
        if not is_stream:
            self._write, self.body = self.server_send, None
            if self.admission is not None:
                self.admission.release()
            return self.server_send(start)
        if self.admission is None or self.admission.is_admitted_at_once(mark):
            return self._open(start, mark)
        self.held = HeldStart(start, self.server_send)
        self.held.begin(self._check(self.held, self.admission, mark))
        return None

    async def receive(self) -> Message:  # noqa: C901, PLR0912 - few calls
        """Return the server's next message, or a disconnect after the stream has ended."""
        if self._write is self.server_send:
            return await self._receive()
        if self._cancellation is None:
            task = asyncio.current_task()
            if task is None:  # a coroutine that other code than a task runs
                return await self._receive()
            cancel_count = task.cancelling()
            self._listeners += (task,)
            try:
                message = None
                if self._prefetch is not None:
                    message = await self._prefetch.take()
                if message is None and self._is_gone():
                    message = {"type": "http.disconnect"}
                if message is None:
                    message = await self._receive()
                if message["type"] == "http.disconnect":
                    await self._on_disconnect()
                elif self.producer is None:
                    self._hash_body(message)
            except asyncio.CancelledError:
                if not self._was_interrupted(task) or task.uncancel() > cancel_count:
                    raise
            else:
                if self._cancellation is not None and self._was_interrupted(task):
                    task.uncancel()
                return message
            finally:
                if len(self._listeners) == 1:  # this one
                    self._listeners = ()
                else:  # a task waits in one `receive()` at a time, so at most one is removed
                    self._listeners = tuple([one for one in self._listeners if one is not task])
        assert self._cancellation is not None
        self._cancellation.disconnect_delivered = True
        return {"type": "http.disconnect"}

    def _is_gone(self) -> bool:
        """Return whether the app gets the disconnect that has been received already."""
        is_read = self._prefetch is not None or isinstance(self.producer, Producer)
        return is_read and self._disconnect is not NO_DISCONNECT

    def _was_interrupted(self, task: asyncio.Task[object]) -> bool:
        return self._cancellation is not None and task in self._cancellation.interrupted

    async def _on_disconnect(self) -> None:
        """Handle that the app receives the disconnect of its client."""
        self._disconnect = self._disconnect or Disconnect.RECEIVED
        if self.held is not None:
            self.held.on_disconnect()
        if self.producer is not None and self.producer.on_disconnect():
            await self.producer.wait_until_ended()
        self._disconnect = Disconnect.DELIVERED

    def watch_for_disconnect(self) -> None:
        """Receive the client's disconnect if the app does not receive."""
        if not (self._listeners or self._disconnect):
            if self._prefetch is None:
                context = self._app_context or contextvars.copy_context()
                self._prefetch = Prefetch(self._receive, context, self._on_app_missed)
            self._prefetch.start()

    def _on_app_missed(self) -> None:
        """Handle a disconnect that the app has not received."""
        assert self.producer is not None
        if not self._disconnect:
            self._disconnect = Disconnect.RECEIVED
            self.producer.on_disconnect()
            if isinstance(self.producer, Producer) and not self._listeners:
                self.producer.control.stop_if_left()

    def _open(self, start: Message, mark: Mark | None) -> Awaitable[None]:
        """Turn the response into a stream, and return the write of its start."""
        kind = ClientKind.UNMARKED
        if mark is not None or self.context.rollout.is_partial:
            request = self.current.request_in(self.scope)
            kind = self.context.client_kind(request, mark)
        if mark is None or kind is ClientKind.OFF or is_handled_inside(self, start, mark, kind):
            kind = kind if kind is ClientKind.OFF else ClientKind.UNMARKED
            self.producer = stream = open_unmarked(self, start, mark, kind)
            if self.admission is not None:
                stream.report.slot = self.admission.attach(stream)
            self._write, self.body = stream.write, None
            if stream.can_be_ended:
                self._app_context = contextvars.copy_context()
            else:
                self._counted = stream.record
            return stream.open(with_headers(self, stream.record, start))
        self.producer, opening = open_marked(self, request, start, mark, kind)
        self._write, self.body = self.producer.write, None
        self._app_context = contextvars.copy_context()
        if self.admission is not None:
            self.producer.report.slot = self.admission.attach(self.producer.control)
        return opening

    async def _check(self, held: HeldStart, admission: StreamAdmission, mark: Mark | None) -> None:
        """Open the stream if it is admitted, else send a rejection in its place."""
        is_admitted = await admission.check_before_body(route_name(self.scope, mark))
        start = held.take()
        if is_admitted:
            await self._open(start, mark)
            return
        self.producer = discarded = DiscardedResponse(self)
        self._write = discarded.write
        await admission.send_rejection(self.server_send)
        self.on_end()

    def _hash_body(self, part: Message) -> None:
        """Add a part of the body of a POST to the digest that identifies a kept stream."""
        if part["type"] == "http.request" and self.scope.get("method") == "POST":
            body = self.body = self.body or self.context.new_body_digest(self.scope, self._path)
            body.add(part)
            if body.is_complete and self.context.linger_queue.paths:
                self.context.end_repeated(current_in(self.cell).request_in(self.scope), body)

    def warn(self, warning: str) -> None:
        """Log a warning about the stream, once per route."""
        warn_once(self.context, warning, self.current.record)

    def on_end(self) -> None:
        """Disconnect the app, and cancel it after a grace period."""
        assert self.producer is not None
        self._cancellation = AppCancellation(
            self._task,
            cancel_count=self._cancel_count,
            listeners=self._listeners,
            is_app_writing=self.producer.is_app_writing,
            disconnect_delivered=self._disconnect is Disconnect.DELIVERED,
            is_urgent=self.producer.is_draining,
        )

    async def on_write_after_end(self) -> None:
        """Discard a message that the app writes after the end."""
        if self._cancellation is not None:
            await self._cancellation.discard_write()
        else:
            await asyncio.sleep(0)  # the app may never wait for anything else
