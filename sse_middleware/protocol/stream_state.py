"""One stream as a state machine: it decides what is written, and never writes.

A stream is open, then ended, once and for one reason; an end behind the end answers nothing. Time
is an argument: `now` in seconds of any monotonic clock. Bytes come back to be written at once and
in order. `deadline()` says when `due` is to be asked.
"""

from typing import NamedTuple

from sse_middleware.protocol import control_events, openai
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.deadlines import Reason
from sse_middleware.protocol.event_ids import Ending, EventId
from sse_middleware.protocol.intake import Intake


class End(NamedTuple):
    """How a stream ends on the wire.

    Attributes:
        data: its last bytes.
        clean: whether its response may end as if it were complete.
        frame: what of the bytes is an event that tells the end, for those who come back.
        before: what the app has put in and nobody has taken yet.
    """

    data: bytes
    clean: bool
    frame: bytes = b""
    before: bytes = b""


class StreamState(Intake):
    """Decide what the client of one stream is sent, and when.

    Its arguments and other attributes are those of its two halves, the `Intake` and its `Timing`.
    """

    __slots__ = ("_epoch",)

    @property
    def _secret(self) -> str:
        return self._id_prefix[len("\nid: ") : -1].decode()

    @property
    def tells_end(self) -> bool:
        """Whether the client is told by us how the stream has ended."""
        return self.family in (ClientKind.EVENTSOURCE, ClientKind.OPENAI)

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
        """Begin the life of the stream, or that of a reader, and return its first bytes.

        Args:
            now: the monotonic time of the response start.
            epoch: the seconds since 1970 at which that clock stood at 0.
            reset: why the client cannot go on where it was; it tells its `reset` from a `start`.
            resumed: whether a reader of a stream opens that somebody else has opened.
            event_id: the id that the client holds already, and keeps.
            age: how old a resumed stream is.
            ends_in: the time after which the client may read no more, whatever the settings say.
        """
        self._epoch = epoch
        self.begin(now, age=age, ends_in=ends_in, is_reader=resumed)
        if self.family is not ClientKind.EVENTSOURCE:
            return b""
        fresh = not resumed and event_id is None
        cursor = EventId(self._secret, 0) if fresh else event_id
        return self._open_words(reset, cursor, resumed=resumed)

    def truncate(self, last: int) -> bytes:
        """Tell a reader that it has missed what stands before the event behind `last`."""
        cursor = EventId(self._secret, last) if self._secret else None
        return self._open_words("truncated", cursor, resumed=True)

    def lost(self) -> bytes:
        """Tell a reader that the producer is gone."""
        return control_events.lost(self._name("error"), self.record, self.retry_ms)

    def _open_words(self, reset: str, cursor: EventId | str | None, *, resumed: bool) -> bytes:
        return control_events.opening(
            self._name("reset" if reset else "start"),
            self.record,
            self.options,
            max_seconds=self.max_seconds,
            reset=reset,
            resumed=resumed,
            cursor=cursor,
            retry=self.retry_ms,
        )

    def relay(self, last: int, now: float) -> None:
        """Take note that frames up to the event `last` are passed on to a reader."""
        self.record.chunks = last
        self._written_at = now

    def heartbeat(self, now: float, *, retry: int | None = None) -> bytes:
        """Return a heartbeat, or nothing where the app's bytes have stopped inside a block.

        Args:
            now: the time.
            retry: when the client is to come back, in milliseconds, if it has to.
        """
        fresh = self.take() if self.fresh else b""
        if not self._splitter.between_blocks:
            return fresh
        self.record.heartbeats += 1
        before = fresh + self._splitter.take_owed_lf()
        if self.family is not ClientKind.EVENTSOURCE:
            as_block = self._comment is not CommentForm.LINE
            return before + control_events.comment(self._line_end, as_block=as_block)
        return before + control_events.heartbeat(
            self._name("heartbeat"),
            self.record,
            unix_time=self._epoch + now,
            uptime=self.duration_seconds(now),
            remaining=self.remaining_seconds(now),
            max_seconds=self.max_seconds,
            retry=retry,
        )

    def finish(self, now: float) -> End:
        """End the stream because the app has ended its response."""
        return self._end(Reason.FINISHED, now)

    def reach_cap(self, now: float) -> End:
        """End the stream because its time is over."""
        return self._end(Reason.DURATION_CAP, now)

    def rotate(self, now: float, jitter: float) -> End:
        """End the connection because its time is over, and let the client come back for the rest.

        Args:
            now: the time.
            jitter: from 0 to 1, so that not all come back at once.
        """
        words = self.heartbeat(now, retry=self.spread_retry(jitter))
        self.go_on_unread()
        return End(words, clean=True)

    def shut_down(self, now: float, jitter: float) -> End:
        """End the stream because the server ends; `jitter` is that of `rotate`."""
        self.prepare_to_drain()
        return self._end(Reason.SHUTDOWN, now, retry=self.spread_retry(jitter))

    def prepare_to_drain(self) -> None:
        """Let the client come back while the stream goes on."""
        longest = int(self.options.drain_seconds * 1000)
        self.retry_ms = min(self.retry_ms, longest) if longest else self.retry_ms

    def spread_retry(self, jitter: float) -> int:
        """Return half to all of the usual `retry`, as `jitter` from 0 to 1 says."""
        return int(self.retry_ms * (0.5 + 0.5 * jitter))

    def cancel(self, now: float) -> End:
        """End the stream because its reader has asked for that."""
        return self._end(Reason.CANCELLED, now)

    def evict(self, now: float) -> End:
        """End the stream because its place is needed, and let its client come back no more."""
        return self._end(Reason.EVICTED, now)

    def end_as_told(self, reason: Reason) -> None:
        """End because a log has told the end, with a frame of its own or without."""
        self.stop(reason)

    def fail(self, now: float) -> End:
        """End the stream because the app has raised an exception."""
        return self._end(Reason.ERROR, now)

    def _end(self, reason: Reason, now: float, *, retry: int | None = None) -> End:
        before = self.take()
        if self.reason is not None:
            return End(b"", clean=False, before=before)
        self.stop(reason)
        end = self._last_bytes(reason, now, retry)
        return end._replace(before=before) if before else end

    def _last_bytes(self, reason: Reason, now: float, retry: int | None) -> End:
        finished = reason is Reason.FINISHED
        if not self._splitter.between_blocks or (
            self.family is not ClientKind.EVENTSOURCE and finished
        ):
            # Nothing of ours follows: in a half-sent block it would make a false event of it.
            return End(self._splitter.flush(), clean=finished)
        if self.family in (ClientKind.PLAIN, ClientKind.OFF):
            return End(b"", clean=False)
        if self._app_completed:
            return End(self._splitter.flush() if finished else b"", clean=True)
        frame = self._last_words(reason, now, retry)
        return End(self._splitter.take_owed_lf() + frame, clean=True, frame=frame)

    def _last_words(self, reason: Reason, now: float, retry: int | None) -> bytes:
        if self.family is ClientKind.OPENAI:
            if reason in (Reason.ERROR, Reason.SHUTDOWN):
                return openai.error_end(self._line_end, shutdown=reason is Reason.SHUTDOWN)
            return openai.length_end(self._first_chunk or {}, self._line_end)
        cursor = self._cursor_behind(reason)
        if reason is Reason.ERROR:
            return control_events.error(self._name("error"), self.record, cursor)
        duration = self.duration_seconds(now)
        name = self._name("complete")
        return control_events.complete(name, self.record, reason, duration, cursor, retry)

    def _cursor_behind(self, reason: Reason) -> EventId | None:
        """Return what a client holds behind the end, `None` where it keeps the app's id."""
        if reason is Reason.EVICTED and self._secret:
            # Whoever came back would push out the one that has pushed it out.
            return EventId(self._secret, self.record.chunks, Ending.FINAL)
        if not self._id_prefix or (self.app_owns_ids and not self._app_ids):
            return None
        ending = Ending.CUT
        if reason in (Reason.FINISHED, Reason.CANCELLED):
            ending = Ending.FINAL if self._marked else Ending.AGAIN
        return EventId(self._secret, self.record.chunks, ending)
