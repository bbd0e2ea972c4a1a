"""One stream as a state machine: it decides what is written, and never writes.

A stream is open, then ended, once and for one reason; an end behind the end answers nothing. Time
is an argument: `now` in seconds of any monotonic clock. Bytes come back to be written at once and
in order. `deadline()` says when `due` is to be asked.
"""

from typing import Any, NamedTuple, Protocol

from sse_middleware import controls
from sse_middleware.cursors import Cursor, Ending
from sse_middleware.families import CommentForm, Family
from sse_middleware.options import Options
from sse_middleware.record import StreamRecord
from sse_middleware.timing import Reason, Timing
from sse_middleware.wire import (
    Kind,
    Splitter,
    add_line,
    event_data,
    event_name,
    has_data,
    has_id,
    line_end,
)

_MANY = 1000
_ENDS = [b"%d\n\n" % number for number in range(_MANY)]  # of id lines: to format one costs more


class End(NamedTuple):
    """How a stream ends on the wire.

    Attributes:
        data: its last bytes.
        clean: whether its response may end as if it were complete.
        frame: what of the bytes is an event that tells the end, for those who come back.
    """

    data: bytes
    clean: bool
    frame: bytes = b""


class Recording(Protocol):
    """What keeps the numbered events."""

    def append(self, seq: int, frame: bytes) -> None:
        """Keep the frame of the event `seq`."""

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept."""

    def disown(self) -> None:
        """Keep nothing, since the app numbers its events itself."""


class StreamState(Timing):
    """Decide what the client of one stream is sent, and when.

    Args:
        options: the settings, those of a mark included.
        family: what kind of client reads.
        record: where the numbers go.
        secret: what opens the stream; the ids are made of it.
        marked: whether the endpoint is.
        comment: how a heartbeat of a plain client is written.
        app_ids: whether the app numbers its events, and they are kept all the same.

    Attributes:
        app_owns_ids: whether an id of the app's has been seen.
        options: the settings.
        recording: where numbered events are kept, `None` for nowhere.
        retry_ms: when a client that was cut is to come back.
    """

    __slots__ = (
        "_app_completed",
        "_app_ids",
        "_comment",
        "_epoch",
        "_first_chunk",
        "_id_prefix",
        "_line_end",
        "_marked",
        "_only_adds_ids",
        "_passes_all",
        "_splitter",
        "_wrote",
        "app_owns_ids",
        "options",
        "recording",
        "retry_ms",
    )

    def __init__(
        self,
        options: Options,
        *,
        family: Family,
        record: StreamRecord,
        secret: str,
        marked: bool,
        comment: CommentForm,
        app_ids: bool = False,
    ) -> None:
        super().__init__(options, family=family, record=record, marked=marked)
        self.recording: Recording | None = None
        self.options = options
        self.retry_ms = options.retry_ms
        if options.linger_seconds:  # who waits longer finds nothing
            self.retry_ms = min(self.retry_ms, int(options.linger_seconds * 1000))
        self._marked = marked
        self._id_prefix = f"\nid: {secret}-".encode() if secret else b""
        self._splitter = Splitter(options.max_event_bytes)
        self._comment = comment
        self._line_end = b"\n"
        self._wrote = False
        self._first_chunk: dict[str, Any] | None = None
        self._app_ids = app_ids
        self.app_owns_ids = False
        self._app_completed = False
        self._only_adds_ids = family is Family.EVENTSOURCE and not (
            options.trace_in_data or app_ids
        )
        self._passes_all = family is Family.OFF

    @property
    def _secret(self) -> str:
        return self._id_prefix[len("\nid: ") : -1].decode()

    @property
    def tells_end(self) -> bool:
        """Whether the client is told by us how the stream has ended."""
        return self.family in (Family.EVENTSOURCE, Family.OPENAI)

    def open(
        self,
        now: float,
        unix_time: float,
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
            unix_time: the same moment, in seconds since 1970.
            reset: why the client cannot go on where it was; it tells its `reset` from a `start`.
            resumed: whether a reader of a stream opens that somebody else has opened.
            event_id: the id that the client holds already, and keeps.
            age: how old a resumed stream is.
            ends_in: the time after which the client may read no more, whatever the settings say.
        """
        self._epoch = unix_time - now
        self.begin(now, age=age, ends_in=ends_in, is_reader=resumed)
        if self.family is not Family.EVENTSOURCE:
            return b""
        self._wrote = True
        fresh = not resumed and event_id is None
        cursor = Cursor(self._secret, 0) if fresh else event_id
        return self._open_words(reset, cursor, resumed=resumed)

    def truncate(self, last: int) -> bytes:
        """Tell a reader that it has missed what stands before the event behind `last`."""
        cursor = Cursor(self._secret, last) if self._secret else None
        return self._open_words("truncated", cursor, resumed=True)

    def lost(self) -> bytes:
        """Tell a reader that the producer is gone."""
        return controls.lost(self._name("error"), self.record, self.retry_ms)

    def _open_words(self, reset: str, cursor: Cursor | str | None, *, resumed: bool) -> bytes:
        return controls.opening(
            self._name("reset" if reset else "start"),
            self.record,
            self.options,
            max_seconds=self.max_seconds,
            reset=reset,
            resumed=resumed,
            cursor=cursor,
            retry=self.retry_ms,
        )

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Take bytes of the app, cut anywhere, and return those that can be sent now."""
        if type(chunk) is bytes and (line := self._splitter.only_line(chunk)):
            number = self.record.count_event(now)
            if self._passes_all:
                return chunk
            if not self._only_adds_ids:
                return self._change_event(chunk)
            end = _ENDS[number] if number < _MANY else b"%d\n\n" % number
            frame = line + self._id_prefix + end
            if self.recording is not None:
                self.recording.append(number, frame)
            return frame
        parts = self.feed_parts(chunk, now)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def feed_parts(self, chunk: bytes, now: float) -> list[bytes]:
        """Do as `feed` does, and return each event on its own."""
        parts: list[bytes] = []
        for kind, data in self._splitter.feed(bytes(chunk)):
            if kind is Kind.BLOCK:
                parts.append(self._pass_block(data, now))
            elif kind is Kind.LAST_PART:
                number = self.record.count_event(now)  # without an id: it goes as it came
                if self.recording is not None:
                    self.recording.skip(number)
                parts.append(data)
            elif kind is not Kind.BOM or not self._wrote:
                parts.append(data)
        if parts:
            self._wrote = True
            self._written_at = now
        return parts

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
        if not self._splitter.between_blocks:
            return b""
        self.record.heartbeats += 1
        self._wrote = True
        lf = self._splitter.take_owed_lf()
        if self.family is not Family.EVENTSOURCE:
            as_block = self._comment is not CommentForm.LINE
            return lf + controls.comment(self._line_end, as_block=as_block)
        return lf + controls.heartbeat(
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

    def _name(self, event: str) -> str:
        return self.options.event_prefix + event

    def _pass_block(self, block: bytes, now: float) -> bytes:
        if not block.endswith(b"\n\n"):
            self._line_end = line_end(block[: -len(line_end(block))])
        if has_id(block):
            self.app_owns_ids = True
            if not self._app_ids:
                self._only_adds_ids = False
                if self.recording is not None:
                    self.recording.disown()
                    self.recording = None
            if self._comment is CommentForm.BLOCK_UNTIL_ID:
                self._comment = CommentForm.LINE
        if not has_data(block):
            return block
        if self.family is Family.EVENTSOURCE and block.find(b"complete") >= 0:
            name = event_name(block).decode("latin-1")
            self._app_completed = self._app_completed or name == self._name("complete")
        self.record.count_event(now)
        return block if self._passes_all else self._change_event(block)

    def _change_event(self, block: bytes) -> bytes:
        if self.options.trace_in_data:
            block = controls.with_trace_id(block, self.record.trace_id)
        if self.family is not Family.EVENTSOURCE:
            self._look_for_openai(block)
            return block
        if not (self.app_owns_ids or self._app_ids):
            block = add_line(block, b"%b%d" % (self._id_prefix[1:], self.record.chunks))
        if self.recording is not None:
            self.recording.append(self.record.chunks, block)
        return block

    def _look_for_openai(self, block: bytes) -> None:
        """See at its first event whether a plain stream is one of OpenAI's, and where it ends."""
        if (
            self._first_chunk is None
            and (self.family is Family.OPENAI or self.record.chunks == 1)
            and block.find(controls.OPENAI_CHUNK) >= 0
        ):
            self._first_chunk = controls.openai_chunk(event_data(block))
            if self._first_chunk is not None:
                self.family = Family.OPENAI
                self.record.family = Family.OPENAI
        if self.family is Family.PLAIN:
            self._passes_all = not self.options.trace_in_data
        elif block.find(b"[DONE]") >= 0 and event_data(block) == b"[DONE]":
            self._app_completed = True

    def _end(self, reason: Reason, now: float, *, retry: int | None = None) -> End:
        if self.reason is not None:
            return End(b"", clean=False)
        self.stop(reason)
        finished = reason is Reason.FINISHED
        if not self._splitter.between_blocks or (
            self.family is not Family.EVENTSOURCE and finished
        ):
            # Nothing of ours follows: in a half-sent block it would make a false event of it.
            return End(self._splitter.flush(), clean=finished)
        if self.family in (Family.PLAIN, Family.OFF):
            return End(b"", clean=False)
        if self._app_completed:
            return End(self._splitter.flush() if finished else b"", clean=True)
        frame = self._last_words(reason, now, retry)
        return End(self._splitter.take_owed_lf() + frame, clean=True, frame=frame)

    def _last_words(self, reason: Reason, now: float, retry: int | None) -> bytes:
        if self.family is Family.OPENAI:
            if reason in (Reason.ERROR, Reason.SHUTDOWN):
                return controls.openai_error(self._line_end, shutdown=reason is Reason.SHUTDOWN)
            return controls.openai_length(self._first_chunk or {}, self._line_end)
        cursor = self._cursor_behind(reason)
        if reason is Reason.ERROR:
            return controls.error(self._name("error"), self.record, cursor)
        duration = self.duration_seconds(now)
        name = self._name("complete")
        return controls.complete(name, self.record, reason, duration, cursor, retry)

    def _cursor_behind(self, reason: Reason) -> Cursor | None:
        """Return what a client holds behind the end, `None` where it keeps the app's id."""
        if reason is Reason.EVICTED and self._secret:
            # Whoever came back would push out the one that has pushed it out.
            return Cursor(self._secret, self.record.chunks, Ending.FINAL)
        if not self._secret or (self.app_owns_ids and not self._app_ids):
            return None
        ending = Ending.CUT
        if reason in (Reason.FINISHED, Reason.CANCELLED):
            ending = Ending.FINAL if self._marked else Ending.AGAIN
        return Cursor(self._secret, self.record.chunks, ending)
