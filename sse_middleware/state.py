"""One stream as a state machine: it decides what is written, and never writes.

A stream is open, then ended, once and for one reason; an end behind the end answers nothing. Time
is an argument: `now` in seconds of any monotonic clock. Bytes come back to be written at once and
in order. `deadline()` says when `due` is to be asked.
"""

import enum
import math
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sse_middleware import controls
from sse_middleware.cursors import Cursor
from sse_middleware.families import CommentForm, Family
from sse_middleware.options import Options
from sse_middleware.record import StreamRecord
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


class Reason(enum.StrEnum):
    """Why a stream has ended."""

    FINISHED = "finished"
    DURATION_CAP = "duration_cap"
    ERROR = "error"


class Due(enum.Enum):
    """What time has made due."""

    NOTHING = enum.auto()
    HEARTBEAT = enum.auto()
    CAP = enum.auto()


class End(NamedTuple):
    """The last bytes of a stream, and whether its response may end as if it were complete."""

    data: bytes
    clean: bool


class StreamState:
    """Decide what the client of one stream is sent, and when.

    Args:
        options: the settings, those of a mark included.
        family: what kind of client reads.
        record: where the numbers go.
        secret: what opens the stream; the ids are made of it.
        marked: whether the endpoint is.
        comment: how a heartbeat of a plain client is written.

    Attributes:
        family: as above, but `OPENAI` once the first event of a plain stream says so.
        max_seconds: the cap of this stream, `None` for none.
        reason: why it has ended, `None` while it is open.
        record: as above.
    """

    __slots__ = (
        "_app_completed",
        "_app_owns_ids",
        "_beat_at",
        "_cap_at",
        "_comment",
        "_first_chunk",
        "_id_prefix",
        "_interval",
        "_line_end",
        "_only_adds_ids",
        "_opened_on",
        "_options",
        "_passes_all",
        "_secret",
        "_splitter",
        "_written_at",
        "_wrote",
        "family",
        "max_seconds",
        "reason",
        "record",
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
    ) -> None:
        self.family = family
        self.record = record
        self.reason: Reason | None = None
        self.max_seconds = options.stream_max_seconds
        uncapped = not (marked or "stream_max_seconds" in options.explicit)
        if family is Family.OFF or (family is not Family.EVENTSOURCE and uncapped):
            self.max_seconds = None
        self._options = options
        self._interval = math.inf
        if options.heartbeat_interval is not None and family is not Family.OFF:
            self._interval = options.heartbeat_interval
        self._secret = secret
        self._id_prefix = f"\nid: {secret}-".encode()
        self._splitter = Splitter(options.max_event_bytes)
        self._comment = comment
        self._line_end = b"\n"
        self._wrote = False
        self._written_at = 0.0  # what is no single event, such as a comment of the app's
        self._first_chunk: dict[str, Any] | None = None
        self._app_owns_ids = False
        self._app_completed = False
        self._only_adds_ids = family is Family.EVENTSOURCE and not options.trace_in_data
        self._passes_all = family is Family.OFF

    @property
    def tells_end(self) -> bool:
        """Whether the client is told by us how the stream has ended."""
        return self.family in (Family.EVENTSOURCE, Family.OPENAI)

    def open(self, now: float, timestamp: datetime) -> bytes:
        """Begin the life of the stream and return its first bytes.

        Args:
            now: the monotonic time of the response start.
            timestamp: the same moment as people tell it, in UTC.
        """
        self.record.opened_at = now
        self._opened_on = timestamp
        self._cap_at = math.inf if self.max_seconds is None else now + self.max_seconds
        self._beat_at = now + self._interval
        if self.family is not Family.EVENTSOURCE:
            return b""
        self._wrote = True
        fields = {
            "stream_id": self.record.stream_id,
            "trace_id": self.record.trace_id,
            "max_duration": self.max_seconds,
            "heartbeat_interval": self._options.heartbeat_interval,
            "silence_threshold": self._options.silence_threshold,
            "resumed": False,
        }
        cursor = Cursor(self._secret, 0)
        return controls.control(
            self._name("start"), fields, cursor=cursor, retry=self._options.retry_ms
        )

    def deadline(self) -> float:
        """Return the time at which `due` is to be asked next, infinite for never."""
        return min(self._cap_at, self._beat_at)

    def busy_deadline(self) -> float:
        """Return the time at which `due` is to be asked even while the app keeps sending."""
        return self.deadline() if self.family is Family.EVENTSOURCE else self._cap_at

    def due(self, now: float) -> Due:
        """Tell what time has made due; a stream that has ended can still reach its cap."""
        if now >= self._cap_at:
            return Due.CAP
        if now < self._beat_at:
            return Due.NOTHING
        if self.family is not Family.EVENTSOURCE and self.reason is None:
            idle_since = max(self.record.last_event_at, self._written_at)
            self._beat_at = max(self._beat_at, idle_since + self._interval)
        return Due.HEARTBEAT if now >= self._beat_at else Due.NOTHING

    def remaining_seconds(self, now: float) -> float | None:
        """Return the time until the cap, `None` where there is none."""
        return None if self.max_seconds is None else round(max(0.0, self._cap_at - now), 3)

    def duration_seconds(self, now: float) -> float:
        """Return the age of the stream."""
        return round(now - self.record.opened_at, 3)

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Take bytes of the app, cut anywhere, and return those that can be sent now."""
        if type(chunk) is bytes and (line := self._splitter.only_line(chunk)):
            number = self.record.count_event(now)
            if self._passes_all:
                return chunk
            if self._only_adds_ids:
                end = _ENDS[number] if number < _MANY else b"%d\n\n" % number
                return line + self._id_prefix + end
            return self._change_event(chunk)
        parts = self.feed_parts(chunk, now)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def feed_parts(self, chunk: bytes, now: float) -> list[bytes]:
        """Do as `feed` does, and return each event on its own."""
        parts: list[bytes] = []
        for kind, data in self._splitter.feed(bytes(chunk)):
            if kind is Kind.BLOCK:
                parts.append(self._pass_block(data, now))
            elif kind is Kind.LAST_PART:
                self.record.count_event(now)  # without an id: it goes as it came
                parts.append(data)
            elif kind is not Kind.BOM or not self._wrote:
                parts.append(data)
        if parts:
            self._wrote = True
            self._written_at = now
        return parts

    def heartbeat(self, now: float) -> bytes:
        """Return a heartbeat, or nothing where the app's bytes have stopped inside a block."""
        if not self._splitter.between_blocks:
            return b""
        self.record.heartbeats += 1
        self._wrote = True
        lf = self._splitter.take_owed_lf()
        if self.family is not Family.EVENTSOURCE:
            as_block = self._comment is not CommentForm.LINE
            return lf + controls.comment(self._line_end, as_block=as_block)
        timestamp = self._opened_on + timedelta(seconds=now - self.record.opened_at)
        fields = {
            "stream_id": self.record.stream_id,
            "timestamp": timestamp.isoformat(timespec="milliseconds"),
            "uptime_seconds": self.duration_seconds(now),
            "total_chunks": self.record.chunks,
            "total_tokens": self.record.tokens,
            "heartbeat_count": self.record.heartbeats,
            "remaining_seconds": self.remaining_seconds(now),
            "max_duration": self.max_seconds,
            "trace_id": self.record.trace_id,
        }
        return lf + controls.control(self._name("heartbeat"), fields)

    def plan_heartbeat(self, now: float) -> None:
        """Set the time of the next heartbeat, one interval behind the one that is due."""
        planned = self._beat_at + self._interval
        # A loop that was blocked for long owes one heartbeat, not all that it has missed.
        self._beat_at = planned if planned > now else now + self._interval

    def finish(self, now: float) -> End:
        """End the stream because the app has ended its response."""
        return self._end(Reason.FINISHED, now)

    def reach_cap(self, now: float) -> End:
        """End the stream because its time is over."""
        return self._end(Reason.DURATION_CAP, now)

    def fail(self, now: float) -> End:
        """End the stream because the app has raised an exception."""
        return self._end(Reason.ERROR, now)

    def _name(self, event: str) -> str:
        return self._options.event_prefix + event

    def _pass_block(self, block: bytes, now: float) -> bytes:
        if not block.endswith(b"\n\n"):
            self._line_end = line_end(block[: -len(line_end(block))])
        if has_id(block):
            self._app_owns_ids = True
            self._only_adds_ids = False
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
        if self._options.trace_in_data:
            block = controls.with_trace_id(block, self.record.trace_id)
        if self.family is not Family.EVENTSOURCE:
            self._look_for_openai(block)
        elif not self._app_owns_ids:
            return add_line(block, b"%b%d" % (self._id_prefix[1:], self.record.chunks))
        return block

    def _look_for_openai(self, block: bytes) -> None:
        """See at its first event whether a plain stream is one of OpenAI's, and where it ends."""
        if self._first_chunk is None and (self.family is Family.OPENAI or self.record.chunks == 1):
            self._first_chunk = controls.openai_chunk(event_data(block))
            if self._first_chunk is not None:
                self.family = Family.OPENAI
                self.record.family = Family.OPENAI
        if self.family is Family.PLAIN:
            self._passes_all = not self._options.trace_in_data
        elif block.find(b"[DONE]") >= 0 and event_data(block) == b"[DONE]":
            self._app_completed = True

    def _end(self, reason: Reason, now: float) -> End:
        if self.reason is not None:
            return End(b"", clean=False)
        self.reason = reason
        self._beat_at = math.inf
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
        return End(self._splitter.take_owed_lf() + self._last_words(reason, now), clean=True)

    def _last_words(self, reason: Reason, now: float) -> bytes:
        if self.family is Family.OPENAI:
            if reason is Reason.ERROR:
                return controls.openai_error(self._line_end)
            return controls.openai_length(self._first_chunk or {}, self._line_end)
        ids = {"trace_id": self.record.trace_id, "stream_id": self.record.stream_id}
        if reason is Reason.ERROR:
            return controls.error(self._name("error"), ids)
        fields = {
            "reason": reason,
            "duration": self.duration_seconds(now),
            "total_chunks": self.record.chunks,
            "total_tokens": self.record.tokens,
            **ids,
        }
        final = reason is Reason.FINISHED and not self._app_owns_ids
        cursor = Cursor(self._secret, self.record.chunks, ended=True) if final else None
        return controls.control(self._name("complete"), fields, cursor=cursor)
