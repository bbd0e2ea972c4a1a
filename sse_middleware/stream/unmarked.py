"""A stream that is passed on as it is: its endpoint is not marked, or the rollout leaves it out.

Its messages are counted, and reach the server as the same objects, within the app's own calls of
`send`. There are no events, no timer and no task. Only the operator's limits and an explicit
`SSE_DRAIN_SECONDS` can end it: the app then receives a disconnect, and the response stays
incomplete, since no client knows an end event of ours.
"""

import asyncio
import logging
from collections.abc import Sequence

from starlette.types import Message, Send

from sse_middleware._once import OncePerProcess, call_in
from sse_middleware.http.response_head import BODY
from sse_middleware.observability.observer import Observer
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.stream_end import Reason
from sse_middleware.stream.callbacks import NO_CALLBACKS, StreamCallbacks
from sse_middleware.stream.report import Report
from sse_middleware.stream.shutdown import SHUTDOWN

logger = logging.getLogger("sse_middleware")

_WITH_BODY = (BODY, "http.response.zerocopysend")
_PATHSEND = "http.response.pathsend"
_DISCONNECTED = "disconnected"

_hinted_routes = OncePerProcess(list[str])


class UnmarkedStream:
    """Count one stream and pass its messages on.

    Args:
        record: the numbers of the stream; `chunks` are its body messages that are not empty.
        send: the server's `send`.
        observers: are notified of the stream.
        callbacks: are called if the stream is ended for its app.
        drain_seconds: how long it may continue when its server shuts down, `None` if a drain leaves
            it alone.

    Attributes:
        record: as the argument.
        drain_seconds: as the argument.
        report: reports the stream.
    """

    callbacks = NO_CALLBACKS  # for handlers: only its client ends the app
    __slots__ = (
        "_broken",
        "_callbacks",
        "_closed",
        "_drain",
        "_loop",
        "_send",
        "_writes",
        "drain_seconds",
        "record",
        "report",
    )

    def __init__(
        self,
        record: StreamRecord,
        send: Send,
        *,
        observers: Sequence[Observer],
        callbacks: StreamCallbacks,
        drain_seconds: float | None,
    ) -> None:
        self.record = record
        self._send = send
        self._loop = loop = asyncio.get_running_loop()
        self.report = Report(record, observers, loop.time)
        self._callbacks = callbacks
        self.drain_seconds = 0.0 if drain_seconds is None else drain_seconds
        self._broken = False  # the server has raised an exception in a write
        self._closed = False  # ended by something other than the app
        self._writes = 0  # that are in progress
        # Created for a stream that a drain ends only, since that installs the signal handler.
        self._drain = None if drain_seconds is None else SHUTDOWN.drain_for(self._loop)

    @property
    def can_be_ended(self) -> bool:
        """Whether anything but the app and the client can end the stream."""
        return self.report.slot is not None or self._drain is not None

    async def open(self, start: Message) -> None:
        """Report the opening, and send the response start."""
        now = self.record.opened_at = self._loop.time()
        self.report.open(now)
        if self._drain is not None:
            self._drain.add(self)
        await self.write(start)

    def on_failed_write(self) -> None:
        """Handle an exception of the server in a write: usually the client has disconnected."""
        self._broken = True

    async def write(self, message: Message) -> None:
        """Pass a message on and count it; discard it after the end of the stream."""
        if self._closed:
            await self._callbacks.on_write_after_end()
            return
        body = message.get("body")
        if body:
            if self.record.chunks:
                self.record.chunks += 1
            else:
                self.record.count_first_chunk(self._loop.time())
        self._writes += 1
        try:
            await self._send(message)
        except Exception:
            self.on_failed_write()
            raise
        finally:
            self._writes -= 1
        if body:
            self.record.sent_bytes += len(body)
        kind = message.get("type")
        if (kind in _WITH_BODY and not message.get("more_body", False)) or kind == _PATHSEND:
            self.end(Reason.FINISHED)

    def end(self, outcome: str) -> None:
        """Report the end and release the slot, once."""
        record = self.record
        if record.outcome is not None:
            return
        outcome = _DISCONNECTED if self._broken else outcome
        record.disconnects = int(outcome == _DISCONNECTED)
        if self._drain is not None:
            self._drain.remove(self)
        self.report.end(outcome)

    def evict(self) -> None:
        """End the stream because its slot is needed; may be called in any thread."""
        call_in(self._loop, self._close, Reason.EVICTED)

    def on_drain(self) -> None:
        """Handle the start of the drain: the stream continues until its time is over."""
        self.record.note("drain")

    def on_drain_over(self) -> bool:
        """End the stream, because the server waits for nothing else."""
        is_cut = self.record.outcome is None
        self._close(Reason.SHUTDOWN)
        return is_cut

    def _close(self, reason: Reason) -> None:
        if self.record.outcome is None:
            self._closed = True
            self.end(reason)
            self._callbacks.on_end()

    @property
    def is_draining(self) -> bool:
        """Whether the server shuts down and the stream will be ended."""
        return self._drain is not None and self._drain.is_draining

    def is_app_writing(self) -> bool:
        """Return whether a write of the app is in progress."""
        return self._writes > 0

    def blocked_at(self) -> int | None:
        """Return the position of a write that is pending, `None` if there is none."""
        return self.record.sent_bytes if self._writes else None

    def watch_for_disconnect(self) -> None:
        """Make sure that a disconnect of the client is received; may be called in any thread."""
        call_in(self._loop, self._callbacks.watch_for_disconnect)

    def remaining_seconds(self) -> float | None:
        """Return that there is no cap."""

    def on_tokens(self) -> None:
        """Do nothing: no other client follows the stream."""

    def set_name(self, name: str, *, is_claimed: bool = False) -> bool:  # noqa: ARG002
        """Return that the stream is not kept."""
        return False

    def on_app_raised(self) -> bool:
        """End the stream because the app has raised an exception; leave the log to others."""
        self.end(Reason.ERROR)
        return False

    def on_app_cancelled(self) -> None:
        """End the stream because the server has cancelled the task of the request."""
        self.end("aborted")

    def on_disconnect(self) -> bool:
        """End the stream because its client has disconnected; the app receives that."""
        self.end(_DISCONNECTED)
        return False

    async def wait_until_ended(self) -> None:
        """Return at once."""

    async def aclose(self, *, is_aborted: bool) -> None:  # noqa: ARG002
        """Report the end if nothing else has, and release the object that runs the app."""
        self.end(Reason.INCOMPLETE)
        self._callbacks = NO_CALLBACKS


def log_hint_once(route: str) -> None:
    """Log how a route is marked, for the first unmarked stream of the process."""
    routes = _hinted_routes()
    if routes:
        return
    routes.append(route)
    logger.info(
        "The event stream of route %s is not marked, so that it is counted and passed on unchanged."
        " A mark adds heartbeats, resuming and a clean end: @streaming on the endpoint,"
        ' SSEMiddleware(mark="/path/*"), or SSE_MARK=/path/*. This is logged once.',
        route,
    )
