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

from sse_middleware.config.options import Options
from sse_middleware.observability.observer import Observer
from sse_middleware.protocol.connection_state import ConnectionInput
from sse_middleware.protocol.intake import Intake
from sse_middleware.protocol.producer_state import (
    PRODUCER_TABLE,
    ProducerAction,
    ProducerInput,
    ProducerMove,
    ProducerPhase,
)
from sse_middleware.protocol.stream_end import Reason, outcome_of
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stream.app_writer import AppWriter
from sse_middleware.stream.callbacks import NO_CALLBACKS, StreamCallbacks, discard
from sse_middleware.stream.cancellation import SHUTDOWN_GRACE_SECONDS
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.linger import Linger, LingerQueue
from sse_middleware.stream.producer_control import ProducerControl
from sse_middleware.stream.producer_log import ProducerLog
from sse_middleware.stream.report import Report
from sse_middleware.stream.timers import LoopTimers, StreamTimer

logger = logging.getLogger("sse_middleware.stream")


class Producer:
    """Process the messages of one app, and end its stream.

    Args:
        intake: processes the bytes of the app.
        options: the settings, including those of the mark.
        terms: the terms of the stream.
        timers: the timers of the running loop.
        send: the server's `send`.
        observers: are notified of the stream.
        callbacks: as the attribute.
        linger_queue: the streams that wait for a reader.

    Attributes:
        callbacks: those of the object that runs the app.
        connection: the connection of the client that has opened the stream.
        control: ends the stream for other objects.
        log: keeps the events.
        phase: its state.
        report: reports the stream.
        write: processes a message of the app.
        writer: processes the messages of the app.
    """

    __slots__ = (
        "_cap_at",
        "_clock",
        "_intake",
        "_linger",
        "_options",
        "_outcome",
        "_reason",
        "_record",
        "_terms",
        "_timer",
        "_timers",
        "callbacks",
        "connection",
        "control",
        "log",
        "phase",
        "report",
        "write",
        "writer",
    )

    connection: Connection

    def __init__(
        self,
        intake: Intake,
        options: Options,
        terms: StreamTerms,
        timers: LoopTimers,
        send: Send,
        *,
        observers: Sequence[Observer],
        callbacks: StreamCallbacks,
        linger_queue: LingerQueue,
    ) -> None:
        self._intake = intake
        self._record = intake.record
        self._options = options
        self._terms = terms
        self._timers = timers
        self._clock = timers.clock
        self.report = Report(intake.record, observers, timers.clock)
        self.callbacks = callbacks
        self.control = ProducerControl(self, timers, options.drain_seconds)
        self._linger = Linger(linger_queue, self.control, options.linger_seconds)
        self.phase = ProducerPhase.OPEN
        self._reason: Reason | None = None
        self._outcome = "aborted"
        self.log = ProducerLog(self, intake)
        self._timer = StreamTimer(timers, self.check_deadlines)
        self._cap_at = math.inf
        self.writer = AppWriter(self, intake, options, timers, send)
        self.write: Send = self.writer.write

    def attach(self, connection: Connection) -> None:
        """Set the connection of the client that has opened the stream."""
        self.connection = connection
        self.writer.attach(connection)
        connection.sender.app_may_cancel = not self.log.is_kept  # a reader would miss an event

    async def open(self, start: Message, preamble: bytes) -> None:
        """Send the response start at once; the preamble follows with the first event, or soon."""
        connection, now = self.connection, self._clock()
        if self._terms.max_seconds is not None and not self._terms.rotates:
            self._cap_at = self._record.opened_at + self._terms.max_seconds
        self.report.open(now)
        self._timers.drain.add(self.control)
        self._set_timer(now)
        await connection.open(start, preamble)
        if not connection.sender.is_idle:
            self._timers.flush_after_tick(self.writer)
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
        return round(max(0.0, at - self._clock()), 3) if at < math.inf else None

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
        self.writer.leave_fast_path()
        self.writer.process_queue()
        closed_by = connection.closed_by
        if closed_by in _BY_CLIENT and self._reason in (None, Reason.GONE):
            self._record.disconnects = 1
        if self._reason is not None:
            self.report.end(self._outcome)
        elif self.may_return():
            self.move(ProducerInput.CLIENT_MAY_RETURN)
        elif closed_by not in _LEFT:
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
            may = self.may_return()
            self.move(ProducerInput.CLIENT_MAY_RETURN if may else ProducerInput.LINGER_IS_OVER)

    def on_app_ids(self) -> None:
        """Handle that the app sets its own ids: no client can resume the stream by ours."""
        self.log.notify_change()
        if self.phase is ProducerPhase.DETACHED:
            self.move(ProducerInput.CLIENT_HAS_LEFT)

    def on_openai(self) -> None:
        """Apply the cap: a client of OpenAI's dialect can be notified of it."""
        if self._cap_at == math.inf and self._options.stream_max_seconds is not None:
            self._cap_at = self._record.opened_at + self._options.stream_max_seconds
            self._set_timer(self._clock())

    def on_raw(self, *, has_sent: bool) -> None:
        """Treat the stream as unmarked; `has_sent` is whether the app has sent bytes before."""
        self._cap_at = math.inf
        self.log.discard()
        self.connection.pass_on(has_sent=has_sent)
        self.callbacks.warn("raw")

    def may_return(self) -> bool:
        """Return whether a client follows the log, or can resume the stream later."""
        return self.log.is_recording and bool(self._options.linger_seconds or self.log.has_readers)

    def fall_behind(self) -> bool:
        """Have the connection read the log, because its client is slower than others."""
        name = self._record.stream_id
        if not self.log.follow(self.connection, name, self._clock, self._on_caught_up):
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
            self._end(move)
        elif move.action is ProducerAction.LINGER:
            self.start_lingering()
        elif move.action is ProducerAction.STOP_LINGERING:
            self._stop_lingering()
            self._set_timer(self._clock())
        elif move.action is ProducerAction.STOP:
            self.callbacks.on_end()
        return move.action

    def _end(self, move: ProducerMove) -> None:
        """End the stream: the only place that ends the log, and stops the app."""
        assert move.reason is not None
        self._reason = reason = move.reason
        is_lost = move.action is ProducerAction.LOSE
        self._outcome = outcome_of(reason, is_lost=is_lost)
        self.writer.leave_fast_path()
        if self._linger.is_active:
            self._stop_lingering()
        if self.connection.dialect.reads_control_events and reason is Reason.SHUTDOWN:
            self.connection.dialect.prepare_to_drain()
        self.writer.process_queue()  # may set a cap
        has_cap = move.phase is ProducerPhase.LEFT and not self._intake.is_raw
        self._cap_at = min(self._cap_at, self.connection.dialect.ends_at) if has_cap else math.inf
        end, in_log = self._intake.end(reason, self._record.age(self._clock()))
        self.log.end(
            in_log,
            is_lost=is_lost,
            can_resume=not (reason is Reason.DURATION_CAP and self._terms.rotates),
        )
        self.connection.on_stream_end(end, app_flushes=reason is Reason.FINISHED)
        self.connection.sender.release_app()
        if move.action is ProducerAction.STOP:
            self.callbacks.on_end()
        if self.connection.is_closed:
            self.report.end(self._outcome)
        # The timer stays: it is early enough for the deadline of a blocked write.

    def start_lingering(self) -> None:
        """Wait for a client, unless one follows the log."""
        now = self._clock()
        if self.log.has_readers:
            self._stop_lingering()
        else:
            if self.report.slot is not None:
                self.report.slot.set_lingering(lingers=True)
            is_expected = self.connection.closed_by not in _LEFT
            seconds = self.connection.dialect.retry_ms / 1000 if is_expected else 0
            self._linger.start(now, expected_until=now + seconds, is_draining=self.is_draining)
        self._set_timer(now)

    def _stop_lingering(self) -> None:
        self._linger.stop()
        if self.report.slot is not None and not self.is_ended:
            self.report.slot.set_lingering(lingers=False)

    def check_deadlines(self, now: float) -> None:
        """Perform the actions that are due, and set the timer for the next ones."""
        try:
            if now >= self.report.progress_at:
                self.report.progress(now)
            if now >= self._cap_at:
                self._on_cap()
            elif now >= self._linger.deadline:
                self.move(ProducerInput.LINGER_IS_OVER)
            else:
                if now >= self._linger.counts_at:
                    self._linger.count(now)
                if self.log.is_kept and not self.connection.is_closed:
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
        may_resume = self._terms.rotates and self.may_return()
        if self._terms.rotates:
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
        connection, linger = self.connection, self._linger
        deadline = min(self._cap_at, linger.deadline, linger.counts_at, connection.deadline(now))
        busy_deadline = connection.dialect.deadlines.busy_deadline()
        self.writer.busy_deadline = min(self._cap_at, busy_deadline)
        if self.phase is ProducerPhase.DETACHED or self.log.has_readers:
            deadline = min(deadline, self.report.progress_at)
        self._timer.set(deadline)

    async def aclose(self, grace_seconds: float) -> None:
        """Write the rest, report the outcome and release all references.

        An app that has not finished has `grace_seconds` for its last bytes.
        """
        draining, on = self.is_draining, ProducerInput  # the drain may be why the app returns
        self.move(on.APP_STOPS_FOR_DRAIN if draining else on.APP_RETURNS)
        self.connection.sender.flush_now()
        has_time = self._reason is Reason.FINISHED and not draining
        log = self.log
        try:
            if not self.connection.is_closed:
                async with asyncio.timeout(None if has_time else grace_seconds):
                    await self.connection.until_closed()
        except TimeoutError:
            logger.debug("stream %s ended with bytes unsent", self._record.stream_id)
        finally:
            self._release()
            await log.stop_reader()
        if draining:  # the server may exit after this request
            await log.finish(SHUTDOWN_GRACE_SECONDS)

    def _release(self) -> None:
        """Break the reference cycles: the objects are freed without the garbage collector."""
        self.connection.release()
        self.report.end(self._outcome)
        self._timer.set(math.inf)
        self._timers.drain.remove(self.control)
        self.phase = ProducerPhase.ENDED
        self.writer.busy_deadline = math.inf
        self.callbacks = NO_CALLBACKS
        self.write = discard
        del self.writer, self.control, self.log, self._linger, self._timer


_ENDED: Final = (ProducerPhase.COMPLETE, ProducerPhase.ENDED)
_LEFT: Final = (ConnectionInput.CLIENT_LEAVES, ConnectionInput.WRITE_FAILS)
_BY_CLIENT: Final = (*_LEFT, ConnectionInput.CLIENT_IS_BLOCKED)
