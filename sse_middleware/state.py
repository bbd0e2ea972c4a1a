"""One stream as a state machine: it decides what is written, and never writes.

A stream is open, then ended, once and for one reason; a call behind the end is a mistake of the
caller's and answers nothing. Time is an argument: `now` in seconds of any monotonic clock. Bytes
come back to be written at once and in order. `deadline()` says when `due` is to be asked.
"""

import enum
import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from sse_middleware.cursors import Cursor, new_secret, stream_id
from sse_middleware.families import Family
from sse_middleware.options import Options
from sse_middleware.wire import (
    Kind,
    Splitter,
    add_line,
    event_name,
    format_sse_event,
    has_data,
    has_id,
    line_end,
)


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
        options: the settings.
        family: what kind of client reads.
        trace_id: the request's.
        comment_is_block: for a plain client, whether a heartbeat comment has a blank line.

    Attributes:
        stream_id: the public name.
        max_seconds: the cap of this stream, `None` for none.
        reason: why it has ended, `None` while it is open.
        chunks: the events that the app has sent so far.
        heartbeats: the heartbeats that we have sent so far.
    """

    __slots__ = (
        "_app_completed",
        "_app_owns_ids",
        "_beat_at",
        "_cap_at",
        "_comment_is_block",
        "_id_prefix",
        "_interval",
        "_line_end",
        "_opened_at",
        "_opened_on",
        "_options",
        "_secret",
        "_splitter",
        "_wrote",
        "chunks",
        "family",
        "heartbeats",
        "max_seconds",
        "reason",
        "stream_id",
        "trace_id",
    )

    def __init__(
        self, options: Options, *, family: Family, trace_id: str, comment_is_block: bool
    ) -> None:
        self.family = family
        self.trace_id = trace_id
        self.chunks = 0
        self.heartbeats = 0
        self.reason: Reason | None = None
        self.max_seconds = options.stream_max_seconds
        if family is Family.PLAIN and "stream_max_seconds" not in options.explicit:
            self.max_seconds = None
        self._options = options
        self._interval = math.inf
        if options.heartbeat_interval is not None:
            self._interval = options.heartbeat_interval
        self._secret = new_secret()
        self.stream_id = stream_id(self._secret)
        self._id_prefix = f"id: {self._secret}-".encode()
        self._splitter = Splitter(options.max_event_bytes)
        self._comment_is_block = comment_is_block
        self._line_end = b"\n"
        self._wrote = False
        self._app_owns_ids = False
        self._app_completed = False

    def open(self, now: float, timestamp: datetime) -> bytes:
        """Begin the life of the stream and return its first bytes.

        Args:
            now: the monotonic time of the response start.
            timestamp: the same moment as people tell it, in UTC.
        """
        self._opened_at = now
        self._opened_on = timestamp
        self._cap_at = math.inf if self.max_seconds is None else now + self.max_seconds
        self._beat_at = now + self._interval
        if self.family is Family.PLAIN:
            return b""
        self._wrote = True
        fields = {
            "stream_id": self.stream_id,
            "trace_id": self.trace_id,
            "max_duration": self.max_seconds,
            "heartbeat_interval": self._options.heartbeat_interval,
            "silence_threshold": self._options.silence_threshold,
            "resumed": False,
        }
        return _control(
            "start", fields, cursor=Cursor(self._secret, 0), retry=self._options.retry_ms
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
        return Due.HEARTBEAT if now >= self._beat_at else Due.NOTHING

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Take bytes of the app, cut anywhere, and return those that can be sent now."""
        parts: list[bytes] = []
        for kind, data in self._splitter.feed(chunk):
            if kind is Kind.BLOCK:
                parts.append(self._pass_block(data))
            elif kind is Kind.LAST_PART:
                self.chunks += 1  # counted, but without an id: it goes as it came
                parts.append(data)
            elif kind is not Kind.BOM or not self._wrote:
                parts.append(data)
        if parts:
            self._wrote = True
            if self.family is Family.PLAIN:
                self._beat_at = now + self._interval
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def heartbeat(self, now: float) -> bytes:
        """Return a heartbeat, or nothing where the app's bytes have stopped inside a block."""
        if not self._splitter.between_blocks:
            return b""
        self.heartbeats += 1
        self._wrote = True
        lf = self._splitter.take_owed_lf()
        if self.family is Family.PLAIN:
            blank = self._line_end if self._comment_is_block else b""
            return lf + b": heartbeat" + self._line_end + blank
        uptime = now - self._opened_at
        timestamp = self._opened_on + timedelta(seconds=uptime)
        fields = {
            "stream_id": self.stream_id,
            "timestamp": timestamp.isoformat(timespec="milliseconds"),
            "uptime_seconds": round(uptime, 3),
            "total_chunks": self.chunks,
            "total_tokens": 0,
            "heartbeat_count": self.heartbeats,
            "remaining_seconds": None
            if self.max_seconds is None
            else round(max(0.0, self._cap_at - now), 3),
            "max_duration": self.max_seconds,
            "trace_id": self.trace_id,
        }
        return lf + _control("heartbeat", fields)

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

    def _pass_block(self, block: bytes) -> bytes:
        if not block.endswith(b"\n\n"):
            self._line_end = line_end(block[: -len(line_end(block))])
        if has_id(block):
            self._app_owns_ids = True
            self._comment_is_block = False
        if not has_data(block):
            return block
        self.chunks += 1
        if self.family is Family.PLAIN:
            return block
        if b"complete" in block and event_name(block) == b"complete":
            self._app_completed = True
        if self._app_owns_ids:
            return block
        return add_line(block, self._id_prefix + b"%d" % self.chunks)

    def _end(self, reason: Reason, now: float) -> End:
        if self.reason is not None:
            return End(b"", clean=False)
        self.reason = reason
        self._beat_at = math.inf
        clean = reason is Reason.FINISHED or self.family is not Family.PLAIN
        if self.family is Family.PLAIN:
            return End(self._splitter.flush() if clean else b"", clean)
        if not self._splitter.between_blocks:
            # Ours would complete a half-sent block of the app's to a false event.
            return End(self._splitter.flush(), clean=reason is Reason.FINISHED)
        if self._app_completed:
            return End(self._splitter.flush() if reason is Reason.FINISHED else b"", clean)
        return End(self._splitter.take_owed_lf() + self._last_event(reason, now), clean)

    def _last_event(self, reason: Reason, now: float) -> bytes:
        ids = {"trace_id": self.trace_id, "stream_id": self.stream_id}
        if reason is Reason.ERROR:
            # What the exception says may be anybody's secret, so the client never sees it.
            error = {
                "type": "server_error",
                "code": "internal_error",
                "message": "The stream ended because of an error on the server.",
            }
            return _control("error", {"error": error, **ids})
        fields = {
            "reason": reason,
            "duration": round(now - self._opened_at, 3),
            "total_chunks": self.chunks,
            "total_tokens": 0,
            **ids,
        }
        final = reason is Reason.FINISHED and not self._app_owns_ids
        cursor = Cursor(self._secret, self.chunks, ended=True) if final else None
        return _control("complete", fields, cursor=cursor)


def _control(
    name: str,
    fields: Mapping[str, object],
    *,
    cursor: Cursor | None = None,
    retry: int | None = None,
) -> bytes:
    return format_sse_event(
        json.dumps(fields, separators=(",", ":")),
        event=name,
        id=None if cursor is None else str(cursor),
        retry=retry,
    )
