"""The state machine of one stream: it decides which bytes are sent, and performs no I/O.

A stream is open, then ended, once and for one reason; a second end returns no bytes. Time is an
argument: `now` in seconds of any monotonic clock. Returned bytes are to be sent at once and in
order. The caller calls `due` again at `deadline()`.
"""

from typing import NamedTuple

from sse_middleware.protocol import control_events, openai
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.deadlines import Reason
from sse_middleware.protocol.event_ids import Ending, EventId
from sse_middleware.protocol.intake import Intake


class End(NamedTuple):
    """The end of a stream on the wire.

    Attributes:
        data: its last bytes.
        clean: whether the response may end as if it were complete.
        frame: the part of `data` that is an end event, which the log keeps.
        before: pending bytes of the app, to be sent before `data`.
    """

    data: bytes
    clean: bool
    frame: bytes = b""
    before: bytes = b""


class StreamState(Intake):
    """Decide which bytes the client of one stream receives, and when.

    The arguments and the other attributes are those of the two halves, `Intake` and `Deadlines`.
    """

    __slots__ = ("_epoch",)

    @property
    def _secret(self) -> str:
        return self._id_prefix[len("\nid: ") : -1].decode()

    @property
    def reports_end(self) -> bool:
        """Whether the middleware reports to the client how the stream has ended."""
        return self.client_kind in (ClientKind.EVENTSOURCE, ClientKind.OPENAI)

    def open(
        self,
        now: float,
        epoch: float,
        *,
        reset: str = "",
        resumed: bool = False,
        event_id: str | None = None,
        age: float = 0.0,
        ends_in: float | None = None,
    ) -> bytes:
        """Open the stream, or a connection that resumes it, and return the first bytes.

        Args:
            now: the monotonic time of the response start.
            epoch: the Unix time at which the monotonic clock was 0.
            reset: why the client cannot resume at its event id; it receives `reset`, not `start`.
            resumed: whether the connection resumes a stream of another request.
            event_id: the event id that the client holds and keeps.
            age: the age of a resumed stream.
            ends_in: the time after which the client may no longer read, whatever the terms are.
        """
        self._epoch = epoch
        self.start(now, age=age, ends_in=ends_in, ends_with_log=resumed)
        if self.client_kind is not ClientKind.EVENTSOURCE:
            return b""
        is_new = not resumed and event_id is None
        first_id = EventId(self._secret, 0) if is_new else event_id
        return self._start_or_reset(reset, first_id, resumed=resumed)

    def reset_truncated(self, last: int) -> bytes:
        """Return the `reset` of a client that has missed events up to the event `last`."""
        event_id = EventId(self._secret, last) if self._secret else None
        return self._start_or_reset("truncated", event_id, resumed=True)

    def producer_lost(self) -> bytes:
        """Return the `error` of a connection that has lost its producer."""
        return control_events.producer_lost(self.record, self.terms, self.retry_ms)

    def _start_or_reset(
        self, reset: str, event_id: EventId | str | None, *, resumed: bool
    ) -> bytes:
        return control_events.start_or_reset(
            self.record,
            self.terms,
            reset=reset,
            resumed=resumed,
            event_id=event_id,
            retry_ms=self.retry_ms,
        )

    def advance_to(self, last: int, now: float) -> None:
        """Count the recorded frames up to the event `last` as sent to this client."""
        self.record.chunks = last
        self._written_at = now

    def heartbeat(self, now: float, *, retry_ms: int | None = None) -> bytes:
        """Return a heartbeat, or nothing if the app has stopped inside a block.

        Args:
            now: the time.
            retry_ms: when the client is to reconnect, if the connection ends with this heartbeat.
        """
        before = self.take_pending() if self.pending else b""
        if not self._splitter.between_blocks:
            return before
        self.record.heartbeats += 1
        before += self._splitter.complete_line_end()
        if self.client_kind is not ClientKind.EVENTSOURCE:
            as_block = self._comment is not CommentForm.LINE
            return before + control_events.heartbeat_comment(self._line_end, as_block=as_block)
        return before + control_events.heartbeat(
            self.record,
            self.terms,
            unix_time=self._epoch + now,
            uptime=self.duration_seconds(now),
            remaining=self.remaining_seconds(now),
            retry_ms=retry_ms,
        )

    def finish(self, now: float) -> End:
        """End the stream because the app has ended its response."""
        return self._end(Reason.FINISHED, now)

    def reach_cap(self, now: float) -> End:
        """End the stream because it has reached its cap."""
        return self._end(Reason.DURATION_CAP, now)

    def rotate(self, now: float, jitter: float) -> End:
        """End the connection because it has reached its cap; the client resumes.

        Args:
            now: the time.
            jitter: from 0 to 1, to spread the times at which clients reconnect.
        """
        data = self.heartbeat(now, retry_ms=self.spread_retry(jitter))
        self.on_disconnect()
        return End(data, clean=True)

    def shut_down(self, now: float, jitter: float) -> End:
        """End the stream because the server shuts down; `jitter` as for `rotate`."""
        self.prepare_to_drain()
        return self._end(Reason.SHUTDOWN, now, retry_ms=self.spread_retry(jitter))

    def prepare_to_drain(self) -> None:
        """Shorten the retry, so that the client reconnects while the stream continues."""
        longest = int(self.options.drain_seconds * 1000)
        self.retry_ms = min(self.retry_ms, longest) if longest else self.retry_ms

    def spread_retry(self, jitter: float) -> int:
        """Return a part of the usual retry, from half (`jitter` 0) to all of it (`jitter` 1)."""
        return int(self.retry_ms * (0.5 + 0.5 * jitter))

    def cancel(self, now: float) -> End:
        """End the stream because a client has cancelled it."""
        return self._end(Reason.CANCELLED, now)

    def evict(self, now: float) -> End:
        """End the stream because its slot is needed; its client must not reconnect."""
        return self._end(Reason.EVICTED, now)

    def end_from_log(self, reason: Reason) -> None:
        """End because the log has ended, with or without a frame of its own."""
        self.set_ended(reason)

    def fail(self, now: float) -> End:
        """End the stream because the app has raised an exception."""
        return self._end(Reason.ERROR, now)

    def _end(self, reason: Reason, now: float, *, retry_ms: int | None = None) -> End:
        before = self.take_pending()
        if self.reason is not None:
            return End(b"", clean=False, before=before)
        self.set_ended(reason)
        end = self._last_bytes(reason, now, retry_ms)
        return end._replace(before=before) if before else end

    def _last_bytes(self, reason: Reason, now: float, retry_ms: int | None) -> End:
        finished = reason is Reason.FINISHED
        if not self._splitter.between_blocks or (
            self.client_kind is not ClientKind.EVENTSOURCE and finished
        ):
            # An end event inside an incomplete block would become part of a false event.
            return End(self._splitter.flush(), clean=finished)
        if self.client_kind in (ClientKind.PLAIN, ClientKind.OFF):
            return End(b"", clean=False)
        if self._app_completed:
            return End(self._splitter.flush() if finished else b"", clean=True)
        frame = self._end_event(reason, now, retry_ms)
        return End(self._splitter.complete_line_end() + frame, clean=True, frame=frame)

    def _end_event(self, reason: Reason, now: float, retry_ms: int | None) -> bytes:
        if self.client_kind is ClientKind.OPENAI:
            if reason in (Reason.ERROR, Reason.SHUTDOWN):
                return openai.error_end(self._line_end, shutdown=reason is Reason.SHUTDOWN)
            return openai.length_end(self._first_chunk or {}, self._line_end)
        event_id = self._last_event_id(reason)
        if reason is Reason.ERROR:
            return control_events.error(self.record, self.terms, event_id)
        return control_events.complete(
            self.record,
            self.terms,
            reason=reason,
            duration=self.duration_seconds(now),
            event_id=event_id,
            retry_ms=retry_ms,
        )

    def _last_event_id(self, reason: Reason) -> EventId | None:
        """Return the id of the end event, `None` if the client keeps an id of the app."""
        if reason is Reason.EVICTED and self._secret:
            # A client that reconnected would evict the stream that has evicted this one.
            return EventId(self._secret, self.record.chunks, Ending.FINAL)
        if not self._id_prefix or (self.app_owns_ids and not self._app_ids):
            return None
        ending = Ending.CUT
        if reason in (Reason.FINISHED, Reason.CANCELLED):
            ending = Ending.FINAL if self._marked else Ending.AGAIN
        return EventId(self._secret, self.record.chunks, ending)
