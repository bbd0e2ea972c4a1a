"""The app's side of one stream: its states, its log, and its end.

Each input is looked up in `PRODUCER_TABLE`. A stream ends once, in `_end`: this ends the log and
stops the app. When its connection has closed too, `Report.end` reports the outcome and releases
the slot. All times at which something is due share one timer, which `_set_timer` sets.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Final

from starlette.types import Message, Send

from sse_middleware.observability.observer import Observer
from sse_middleware.protocol.connection_state import ConnectionInput, ConnectionPhase
from sse_middleware.protocol.intake import Intake
from sse_middleware.protocol.producer_state import (
    PRODUCER_TABLE,
    ProducerAction,
    ProducerInput,
    ProducerPhase,
)
from sse_middleware.protocol.stream_end import Reason, outcome_of
from sse_middleware.protocol.stream_profile import StreamProfile
from sse_middleware.stream.app_writer import AppWriter
from sse_middleware.stream.callbacks import NO_CALLBACKS, StreamCallbacks, discard
from sse_middleware.stream.cancellation import SHUTDOWN_GRACE_SECONDS, last_write_seconds
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.linger import Linger, LingerQueue
from sse_middleware.stream.producer_control import ProducerControl
from sse_middleware.stream.producer_log import ProducerLog
from sse_middleware.stream.report import Report
from sse_middleware.stream.timers import LoopTimers

logger = logging.getLogger("sse_middleware.stream")


class Producer:
    """Process the messages of one app, and end its stream.

    Args:
        profile, callbacks: as the attributes.
        intake: processes the bytes of the app.
        timers: the timers of the running loop.
        observers: are notified of the stream.
        linger_queue: the streams that wait for a reader.

    Attributes:
        callbacks: those of the object that runs the app.
        connection: the connection of the client that has opened the stream; set by `attach`.
        control: ends the stream for other objects.
        log: keeps the events.
        phase: its state.
        profile: the common part of streams like this one.
        report: reports the stream.
        write: processes a message of the app; set by `attach`.
        writer: processes the messages of the app; set by `attach`.
    """

    __slots__ = (
        "_cap_at",
        "_intake",
        "_linger",
        "_linger_queue",
        "_outcome",
        "_reason",
        "_timer_bucket",
        "_timers",
        "callbacks",
        "connection",
        "control",
        "log",
        "phase",
        "profile",
        "report",
        "write",
        "writer",
    )

    connection: Connection
    write: Send
    writer: AppWriter

    def __init__(
        self,
        profile: StreamProfile,
        intake: Intake,
        timers: LoopTimers,
        *,
        observers: Sequence[Observer],
        callbacks: StreamCallbacks,
        linger_queue: LingerQueue,
    ) -> None:
        self.profile = profile
        self._intake = intake
        self._timers = timers
        self.report = Report(intake.record, observers, timers.clock)
        self.callbacks = callbacks
        self.control = ProducerControl(self, timers)
        self._linger_queue = linger_queue
        self._linger: Linger | None = None  # while the stream lingers
        self.phase = ProducerPhase.OPEN
        self._reason: Reason | None = None
        self._outcome = "aborted"
        self.log = ProducerLog(self, intake)
        self._timer_bucket: int | None = None
        self._cap_at = math.inf

    def attach(self, connection: Connection) -> None:
        """Set the connection of the client that has opened the stream."""
        self.connection = connection
        self.writer = AppWriter(self, connection, self._intake, self._timers)
        self.write = self.writer.write
        connection.sender.app_may_cancel = not self.log.is_kept  # a reader would miss an event

    async def open(self, start: Message, preamble: bytes) -> None:
        """Send the response start; the preamble follows with an event in this turn, or after it."""
        connection, now, terms = self.connection, self._timers.clock(), self.profile.terms
        if terms.max_seconds is not None and not terms.rotates:
            self._cap_at = self._intake.record.opened_at + terms.max_seconds
        self.report.open(now)
        self._timers.drain.add(self.control)
        self._set_timer(now)
        await connection.open(start, preamble)
        if not connection.sender.is_idle:
            self._timers.call_soon(connection.sender.flush_soon)
        self.writer.resume_fast_path()

    @property
    def is_draining(self) -> bool:
        """Whether the server shuts down."""
        return self._timers.drain.is_draining

    def is_app_writing(self) -> bool:
        """Return that the app of an ended stream waits for no client."""
        return not self.is_ended

    @property
    def is_ended(self) -> bool:
        """Whether the stream has ended."""
        return self.phase in _ENDED

    def remaining_seconds(self) -> float | None:
        """Return the time until the cap ends the stream, `None` if it has none."""
        at = self._cap_at
        return round(max(0.0, at - self._timers.clock()), 3) if at < math.inf else None

    def on_tokens(self) -> None:
        """Store the tokens that the app has counted."""
        self.log.count_tokens()

    def set_name(self, name: str, *, is_claimed: bool = False) -> bool:
        """Make the stream available under a name, if its client has an identity."""
        self.log.set_name(name, is_claimed=is_claimed)
        self.connection.sender.app_may_cancel = not self.log.is_kept
        return self.log.is_recording

    async def wait_until_ended(self) -> None:
        """Wait until the stream has ended, or cannot be resumed any more."""
        while not self.is_ended and self.log.is_recording:
            await self.log.wait_for_change()

    def on_disconnect(self) -> bool:
        """Close the connection of a client that has left; return whether its app continues."""
        self.connection.on_disconnect()
        return self.phase in (ProducerPhase.OPEN, ProducerPhase.DETACHED)

    def on_connection_closed(self, connection: Connection) -> None:
        """Wait for a client that returns, or end the stream if none can."""
        if connection.closed_by in _BY_CLIENT and self._reason in (None, Reason.GONE):
            self._intake.record.note_disconnect()
        if self._reason is not None:
            self.report.end(self._outcome)
            return
        self.writer.leave_fast_path()
        self.writer.process_queue()
        if self.may_return():
            self.move(ProducerInput.CLIENT_MAY_RETURN)
        elif connection.closed_by not in _LEFT or self._intake.record.has_upstream:
            self.move(ProducerInput.CLIENT_IS_CUT)
        else:
            self.move(ProducerInput.CLIENT_HAS_LEFT)

    def on_readers_changed(self) -> None:
        """Linger after the last reader has left, and stop lingering for the first one."""
        self.connection.sender.app_may_wait = not self.log.has_readers
        self.connection.sender.release_app()
        if self.log.has_readers:
            self.move(ProducerInput.CONNECTION_FOLLOWS)
        elif self.phase is ProducerPhase.DETACHED:
            on = ProducerInput
            self.move(on.CLIENT_MAY_RETURN if self.may_return() else on.LINGER_IS_OVER)

    def on_app_ids(self) -> None:
        """Handle that the app sets its own ids: no client can resume the stream by ours."""
        self.log.notify_change()
        if self.phase is ProducerPhase.DETACHED:
            self.move(ProducerInput.CLIENT_HAS_LEFT)

    def on_openai(self) -> None:
        """Apply the cap: a client of OpenAI's dialect can be notified of it."""
        max_seconds = self.profile.options.stream_max_seconds
        if self._cap_at == math.inf and max_seconds is not None:
            self._cap_at = self._intake.record.opened_at + max_seconds
            self._set_timer(self._timers.clock())

    def on_raw(self, *, has_sent: bool) -> None:
        """Treat the stream as unmarked; `has_sent` is whether the app has sent bytes before."""
        self._cap_at = math.inf
        self.log.discard()
        self.connection.pass_on(has_sent=has_sent)
        self.callbacks.warn("raw")

    def may_return(self) -> bool:
        """Return whether a client follows the log, or can resume the stream later."""
        log = self.log
        return log.is_recording and bool(self.profile.options.linger_seconds or log.has_readers)

    def fall_behind(self) -> bool:
        """Have the connection read the log, because its client is slower than others."""
        if not self.log.follow(self.connection, self._timers.clock, self._on_caught_up):
            return False
        self.writer.leave_fast_path()
        self.writer.unread_bytes = 0
        return True

    def _on_caught_up(self) -> None:
        self.writer.unread_bytes = 0
        self.log.notify_change()
        self.writer.resume_fast_path()

    def on_app_raised(self) -> bool:
        """End the stream because the app has raised an exception; return whether it was open."""
        return self.move(ProducerInput.APP_RAISES) is ProducerAction.FINISH

    def on_app_cancelled(self) -> None:
        """End the stream because the server has cancelled the task of the request."""
        is_read, on = not self.connection.sender.is_writing, ProducerInput
        given = on.APP_STOPS_FOR_DRAIN if self.is_draining else on.APP_IS_CANCELLED
        self.move(given if is_read else on.APP_IS_LOST)

    def move(self, given: ProducerInput) -> ProducerAction:
        """Perform the action of `PRODUCER_TABLE` for an input, and return it."""
        move = PRODUCER_TABLE[self.phase, given]
        self.phase = move.phase
        if move.reason is not None:
            self._end(move.action, move.reason)
        elif move.action is ProducerAction.LINGER:
            self.start_lingering()
        elif move.action is ProducerAction.STOP_LINGERING:
            self._stop_lingering()
            self._set_timer(self._timers.clock())
        elif move.action is ProducerAction.STOP:
            self.callbacks.on_end()
        return move.action

    def _end(self, action: ProducerAction, reason: Reason) -> None:
        """End the stream: the only place that ends the log, and stops the app."""
        connection, dialect = self.connection, self.connection.dialect
        self._reason, is_lost = reason, action is ProducerAction.LOSE
        self._outcome = outcome_of(reason, is_lost=is_lost)
        self.writer.leave_fast_path()
        if self._linger is not None:
            self._stop_lingering()
        if reason is Reason.SHUTDOWN and dialect.reads_control_events:
            dialect.prepare_to_drain()
        if self.writer.queue:
            self.writer.process_queue()  # may set a cap
        has_cap = self.phase is ProducerPhase.LEFT and not self._intake.is_raw
        self._cap_at = min(self._cap_at, dialect.ends_at) if has_cap else math.inf
        end, in_log = self._intake.end(reason, self._intake.record.age(self._timers.clock()))
        self.log.end(
            in_log,
            is_lost=is_lost,
            can_resume=not (reason is Reason.DURATION_CAP and self.profile.terms.rotates),
        )
        connection.on_stream_end(end, app_flushes=reason is Reason.FINISHED)
        connection.sender.release_app()
        if action is ProducerAction.STOP:
            self.callbacks.on_end()
        if connection.phase is ConnectionPhase.CLOSED:
            self.report.end(self._outcome)
        # The timer stays: it is early enough for the deadline of a blocked write.

    def start_lingering(self) -> None:
        """Wait for a client, unless one follows the log."""
        now = self._timers.clock()
        if self.log.has_readers:
            self._stop_lingering()
        else:
            self.report.set_lingering(lingers=True)
            is_expected = self.connection.closed_by not in _LEFT
            until = now + (self.connection.dialect.retry_ms / 1000 if is_expected else 0)
            seconds = math.inf if self.is_draining else self.profile.options.linger_seconds
            self._linger = Linger(self._linger_queue, self.control)
            self._linger.start(now, seconds, expected_until=until)
        self._set_timer(now)

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.stop()
            self._linger = None
        if not self.is_ended:
            self.report.set_lingering(lingers=False)

    def on_timer(self, now: float) -> None:
        """Perform the actions that are due, and set the timer for the next ones."""
        if self._timer_bucket is None:  # it has been cancelled meanwhile
            return
        try:
            if now >= self.report.progress_at:
                self.report.progress(now)
            if now >= self._cap_at:
                self._on_cap()
            elif self._linger is not None and now >= self._linger.deadline:
                self.move(ProducerInput.LINGER_IS_OVER)
            else:
                if self._linger is not None:
                    self._linger.count(now)
                if not self.connection.is_closed:
                    self.callbacks.watch_for_disconnect()
            if self.connection.on_deadline(now):
                self._on_connection_cap(now)
        finally:
            self._set_timer(now)

    def _on_cap(self) -> None:
        """End the stream, or stop an app that has not noticed that its client has left."""
        self._cap_at = math.inf
        if self._reason is None:
            self.callbacks.warn("cap")
        self.move(ProducerInput.CAP)

    def _on_connection_cap(self, now: float) -> None:
        """End a connection whose time is over, and the stream if it cannot be resumed."""
        if self._reason is None:
            self.callbacks.warn("cap")
        may_resume = (rotates := self.profile.terms.rotates) and self.may_return()
        if rotates:
            self.rotate(now)
        elif self._reason is not None:  # the connection still reads the log
            self.connection.cut(now)
        if not may_resume:
            self.move(ProducerInput.CAP)

    def rotate(self, now: float) -> None:
        """End the connection; its client resumes the stream."""
        self.writer.leave_fast_path()
        self.connection.rotate(now)

    def _set_timer(self, now: float) -> None:
        deadline, linger = min(self._cap_at, self.connection.deadline(now)), self._linger
        if linger is not None:
            deadline = min(deadline, linger.deadline, linger.counts_at)
        deadlines = self.connection.dialect.deadlines
        self.writer.busy_deadline = min(self._cap_at, deadlines.busy_deadline())
        if self.phase is ProducerPhase.DETACHED or self.log.has_readers:
            deadline = min(deadline, self.report.progress_at)
        self._timer_bucket = self._timers.move(self, self._timer_bucket, deadline)

    async def aclose(self, *, is_aborted: bool) -> None:
        """Write the rest, in a short time if the server `is_aborted`, and release references."""
        on, log, draining = ProducerInput, self.log, self._timers.drain.is_draining
        if self._reason is None:
            self.move(on.APP_STOPS_FOR_DRAIN if draining else on.APP_RETURNS)
        try:
            if self.connection.phase is not ConnectionPhase.CLOSED:
                has_time = self._reason is Reason.FINISHED and not draining
                grace = last_write_seconds(is_urgent=is_aborted or draining)
                self.connection.sender.flush_now()
                async with asyncio.timeout(None if has_time else grace):
                    await self.connection.until_closed()
        except TimeoutError:
            logger.debug("stream %s ended with bytes unsent", self._intake.record.stream_id)
        finally:
            self._release()
            if log.reader is not None:
                await log.reader.aclose()
        if draining:  # the server may exit after this request
            await log.finish(SHUTDOWN_GRACE_SECONDS)

    def _release(self) -> None:
        """Break the reference cycles: the objects are freed without the garbage collector."""
        self.connection.release()
        self._timer_bucket = self._timers.move(self, self._timer_bucket, math.inf)
        self._timers.drain.remove(self.control)
        self.phase = ProducerPhase.ENDED
        self.writer.busy_deadline = math.inf
        self.callbacks = NO_CALLBACKS
        self.write = discard
        del self.writer, self.control, self.log


_ENDED: Final = (ProducerPhase.COMPLETE, ProducerPhase.ENDED)
_LEFT: Final = (ConnectionInput.CLIENT_LEAVES, ConnectionInput.WRITE_FAILS)
_BY_CLIENT: Final = (*_LEFT, ConnectionInput.CLIENT_IS_BLOCKED)
