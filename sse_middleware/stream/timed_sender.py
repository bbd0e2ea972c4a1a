"""The actions of one stream that time causes: heartbeats, its cap, a client that blocks, the drain.

Their bytes are written in the background.
"""

import logging
import math
import random
from collections.abc import Sequence
from typing import Protocol

from starlette.types import Send

from sse_middleware.observability.observer import Observer
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.deadlines import Due, Reason
from sse_middleware.protocol.stream_state import End, StreamState
from sse_middleware.stream.callbacks import NO_CALLBACKS, StreamCallbacks
from sse_middleware.stream.sender import Sender, joined
from sse_middleware.stream.timers import LoopTimers

logger = logging.getLogger("sse_middleware.stream")

_PROGRESS_INTERVAL_SECONDS = 10.0
"""The shortest interval of `progressed` for one stream; a scrape comes every 15 s or so."""


class StreamSlot(Protocol):
    """The slot that a stream occupies if the number of streams is limited."""

    def set_lingering(self, *, lingers: bool) -> None:
        """Release the slot while the stream lingers, or occupy it again."""

    def release(self) -> None:
        """Release the slot; further calls have no effect."""


class TimedSender(Sender):
    """Write heartbeats and the end of the stream when they are due.

    Args:
        state: the state machine of the stream.
        send: the server's `send`.
        timers: the timers of the running loop.
        observers: are notified of the stream.
        callbacks: are called when time has ended the stream.

    Attributes:
        slot: released at the end, `None` if the number of streams is not limited.
    """

    __slots__ = (
        "_busy_deadline",
        "_callbacks",
        "_closed",
        "_fast_path",
        "_is_detached",
        "_pending_end",
        "_progress_at",
        "_state",
        "_timer",
        "slot",
    )

    def __init__(
        self,
        state: StreamState,
        send: Send,
        timers: LoopTimers,
        *,
        observers: Sequence[Observer],
        callbacks: StreamCallbacks,
    ) -> None:
        super().__init__(send, timers, state.record, observers)
        self._state = state
        self._callbacks = callbacks
        self._fast_path = False
        self._is_detached = False  # whether it continues without this client
        self._closed = False  # ended by something other than the app
        self._pending_end: End | None = None  # until it is written
        self._timer: int | None = None
        self._progress_at = self._clock() + _PROGRESS_INTERVAL_SECONDS
        self.slot: StreamSlot | None = None
        self._set_timer()
        for observer in observers:
            observer.opened(self._record)
        timers.drain.add(self)

    @property
    def is_draining(self) -> bool:
        """Whether the server shuts down."""
        return self._timers.drain.is_draining

    def remaining_seconds(self) -> float | None:
        """Return the time until the cap ends the stream, `None` if it has none."""
        return None if self._state.terms.rotates else self._state.remaining_seconds(self._clock())

    @property
    def drain_seconds(self) -> float:
        """How long the stream may continue when its server shuts down."""
        return self._state.options.drain_seconds

    def abort(self) -> None:
        """Write the end for a shutdown, if the app has returned because of it without an end."""
        is_over = self._is_ended() or self._active_writer or (self.broken and not self._is_detached)
        if self._state.reports_end and not is_over:
            self._close(self._state.shut_down(self._clock(), random.random()))  # noqa: S311

    def on_drain(self) -> None:
        """Handle the start of the drain: the stream continues until its time is over."""

    def on_drain_over(self) -> None:
        """End the stream, because the server waits for nothing else."""
        if not (self._is_ended() or self._state.client_kind is ClientKind.OFF):
            self._close(self._state.shut_down(self._clock(), random.random()))  # noqa: S311
            self._callbacks.on_end()

    def fail(self) -> bool:
        """End the stream because the app has raised an exception; return whether it was open."""
        if self._is_ended() or (self.broken and not self._is_detached):
            return False
        self._close(self._state.fail(self._clock()))
        return True

    def on_disconnect(self) -> bool:
        """Detach the client; the cap still applies to the app.

        Returns:
            Whether the app continues and does not receive the disconnect yet.
        """
        if not self._is_ended() and self._on_client_lost():
            return True
        self._report_end("disconnected")
        return False

    def evict(self) -> None:
        """End the stream because its slot is needed."""
        if not self._is_ended():
            self._close(self._state.evict(self._clock()))
            self._callbacks.on_end()

    def watch_for_disconnect(self) -> None:
        """Make sure that a disconnect of the client is received."""
        self._callbacks.watch_for_disconnect()

    async def aclose(self, grace_seconds: float, outcome: str) -> None:
        """Write the rest, report the end and release all references.

        Args:
            grace_seconds: how long to wait for pending bytes to be written.
            outcome: the outcome to report if nothing else has ended the stream.
        """
        self._stop_timer()
        outcome = "disconnected" if self.broken else outcome
        try:
            await self._finish_writes(grace_seconds)
        finally:
            self._timers.drain.remove(self)
            self._report_end(outcome)
            # Break the reference cycles: the objects are freed without the garbage collector.
            self._callbacks = NO_CALLBACKS
            self.slot = None
            self.app_context = self._timers.empty_context

    def on_timer(self, now: float) -> None:
        """Perform the actions that are due."""
        if self._timer is None:
            return
        if now >= self._progress_at:
            self._progress_at = now + _PROGRESS_INTERVAL_SECONDS
            if self._record.outcome is None:
                for observer in self._observers:
                    observer.progressed(self._record)
        self._on_deadline(now)

    def _on_deadline(self, now: float) -> None:
        if self._active_writer and now >= self._write_started + self._write_timeout():
            self._on_client_blocked()
            if self._closed:
                return
        due = self._state.due(now)
        if due is Due.CAP:
            self._callbacks.on_cap()
            self._reach_cap(now)
            return
        if due is Due.HEARTBEAT:
            self._state.plan_heartbeat(now)
            if not self._active_writer and not self.broken:  # nothing follows a blocked write
                heartbeat = self._state.heartbeat(now)
                if heartbeat:
                    self._append(heartbeat)
                    self._timers.background_writer.write_soon(self)
                logger.debug("heartbeat of stream %s", self._record.stream_id)
        self._set_timer()

    def _reach_cap(self, now: float) -> None:
        if self._state.terms.rotates:
            self._end_connection(now, Reason.DURATION_CAP)
        else:
            self._close(self._state.reach_cap(now))
            self._callbacks.on_end()

    def _end_connection(self, now: float, reason: Reason) -> None:
        """End the connection of a client that is to reconnect, and this stream with it."""
        end = self._state.rotate(now, random.random())  # noqa: S311 - no secret
        self._state.end_from_log(reason)
        self._close(end)
        self._callbacks.on_end()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._stop_timer()
        self._busy_deadline = self._state.busy_deadline()
        deadline = self._next_deadline()
        if deadline < math.inf:
            self._timer = self._timers.call_at(self, deadline)

    def _next_deadline(self) -> float:
        """Return the next time of a check, early enough for a write that may start meanwhile."""
        started = self._write_started if self._active_writer else self._clock()
        return min(self._state.deadline(), started + self._write_timeout())

    def _write_timeout(self) -> float:
        """Return how long a client may block a write, in seconds."""
        if self._is_detached or self.broken:
            return math.inf
        timeout = self._state.options.send_timeout
        return math.inf if timeout is None or self._state.client_kind is ClientKind.OFF else timeout

    def _on_client_blocked(self) -> None:
        """Disconnect a client that does not read; the server keeps the unfinished write."""
        self._abandon_writes()
        self._closed = True
        self._stop_timer()
        self._report_end("disconnected")
        self._callbacks.on_end()

    def _leave_fast_path(self) -> None:
        """Check each message separately from now on."""
        self._fast_path = False
        self._coalesce_until = 0.0

    def _is_ended(self) -> bool:
        return self._closed or self._state.reason is not None

    def _stop_timer(self) -> None:
        self._busy_deadline = math.inf
        if self._timer is not None:
            self._timers.cancel(self, self._timer)
            self._timer = None

    def _close(self, end: End) -> None:
        self._closed = True
        self._leave_fast_path()
        self._stop_timer()
        if self.broken or self._is_detached:  # the connection has ended, or ends now
            self._report_end("disconnected")
        else:
            if end.before:
                self._append(end.before)
            self._pending_end = end
            self._write_in_background()

    def _abandon_writes(self) -> None:
        super()._abandon_writes()
        self._leave_fast_path()
        self._pending_end = None

    def _has_pending(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._pending or self._state.pending) or self._pending_end is not None

    def _collect_events(self) -> None:
        """Make the events that the state buffers pending, as the state has edited them."""
        if not self._state.pending:
            return
        if data := self._state.take_pending():
            self._append(data)
        self._pending_bytes = sum(map(len, self._pending))

    def _take_output(self) -> tuple[bytes, bool]:
        end, self._pending_end = self._pending_end, None
        pending = self._take_pending()
        if end is None or not end.clean or self.broken:
            return joined(pending), True
        return joined([*pending, end.data]), False

    def _on_write_done(self, started: float) -> None:
        super()._on_write_done(started)
        if self._closed and not self._has_pending():
            self._report_end("disconnected")

    def _report_end(self, outcome: str) -> None:
        record = self._record
        if record.outcome is None:
            record.outcome = self._state.reason or outcome
            if record.outcome == "disconnected":
                record.disconnects = 1
            record.duration_seconds = self._state.duration_seconds(self._clock())
            if self.slot is not None:
                self.slot.release()
            for observer in self._observers:
                observer.ended(record)
