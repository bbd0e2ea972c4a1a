"""The bytes of one client: the stream in the form of its client kind.

Ids, control events and heartbeats are added between two events, and no byte of the app is changed.
"""

import math
from typing import Final

from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol import control_events, openai
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.deadlines import Deadlines
from sse_middleware.protocol.event_ids import Ending, format_event_id
from sse_middleware.protocol.intake import INSIDE_EVENT
from sse_middleware.protocol.stream_end import Reason, StreamEnd
from sse_middleware.protocol.stream_profile import StreamProfile
from sse_middleware.protocol.wire import BOM, Kind, Splitter, add_line, has_data, line_end

_MANY: Final = 1000
_ID_ENDS: Final = [b"%d\n\n" % number for number in range(_MANY)]  # formatting each costs more


class Dialect:
    """Write the stream for one client.

    Args:
        profile: the common part of streams like this one.
        record: the numbers of the stream.
        secret: the secret of the stream, which its event ids contain; `""` for no ids.

    Attributes:
        deadlines: the deadlines of the connection; set by `open`.
        ends_at: the time of the cap, of the stream or of this connection; infinite for none; set
            by `open`.
        is_inside_event: whether a part of an event has been sent that is not complete.
        outcome: the reason with which the stream has ended for this client, `None` before.
        profile: as the argument.
        reads_control_events: whether the client is an `EventSource`, which receives control events.
        record: as the argument.
        retry_ms: the delay before a client that is disconnected reconnects.
        terms: as the argument.
    """

    __slots__ = (
        "_comment",
        "_epoch",
        "_has_end_id",
        "_id_prefix",
        "_lacks_lf",
        "_line_end",
        "_secret",
        "_wrote_lf",
        "deadlines",
        "ends_at",
        "is_inside_event",
        "outcome",
        "profile",
        "reads_control_events",
        "record",
        "retry_ms",
        "terms",
    )

    deadlines: Deadlines
    _ends_at: float
    _epoch: float

    def __init__(self, profile: StreamProfile, record: StreamRecord, secret: str = "") -> None:
        self.profile = profile
        self.terms = profile.terms
        self.reads_control_events = profile.reads_control_events
        self.record = record
        self.retry_ms = profile.terms.retry_ms
        self.is_inside_event = False
        self.outcome: Reason | None = None
        self._secret = secret
        self._id_prefix = b"" if profile.app_ids or not secret else f"\nid: {secret}-".encode()
        self._has_end_id = bool(secret)
        self._comment = profile.comment
        self._line_end = b"\n"
        self._lacks_lf = False  # the last bytes end in CR: a LF that follows completes it
        self._wrote_lf = False  # ... and has been written in front of an event of ours

    @property
    def adds_ids(self) -> bool:
        """Whether events get ids."""
        return bool(self._id_prefix)

    def open(
        self,
        now: float,
        epoch: float,
        *,
        reset: str = "",
        resumed: bool = False,
        event_id: str | None = None,
        jitter: float = 0.0,
        ends_in: float | None = None,
    ) -> bytes:
        """Open the connection, and return its first bytes.

        Args:
            now: the monotonic time of the response start; `record.opened_at` is that of the stream.
            epoch: the Unix time at which the monotonic clock was 0.
            reset: why the client cannot resume at its event id; it receives `reset`, not `start`.
            resumed: whether the connection resumes a stream of another request.
            event_id: the event id that the client holds and keeps.
            jitter: from 0 to 1, to spread the rotations of connections that open together.
            ends_in: the time after which the client may no longer read, whatever the terms are.
        """
        self._epoch = epoch
        self.deadlines = Deadlines(self.terms.heartbeat_interval, self.profile.client_kind, now)
        self.ends_at = math.inf
        if self.terms.max_seconds is not None or ends_in is not None:
            self._set_cap(now, jitter, ends_in)
        if not self.reads_control_events:
            return b""
        is_new = not resumed and event_id is None
        first_id = format_event_id(self._secret, 0) if is_new and self._secret else event_id
        return self._start_or_reset(reset, first_id, resumed=resumed)

    def number(self, data: bytes, last: int, count: int) -> bytes:
        """Return `count` usual events with their ids; the last one has the number `last`."""
        prefix = self._id_prefix
        if not prefix:
            return data
        if count == 1:
            return data[:-2] + prefix + (_ID_ENDS[last] if last < _MANY else b"%d\n\n" % last)
        first = last - count + 1
        if last < _MANY:
            ends = _ID_ENDS[first : last + 1]
        else:
            ends = [b"%d\n\n" % number for number in range(first, last + 1)]
        blocks = data.split(b"\n\n")
        return b"".join([block + prefix + end for block, end in zip(blocks, ends, strict=False)])

    def part(self, number: int, data: bytes, now: float) -> bytes:
        """Return an event with its id, or other bytes of the app.

        Args:
            number: the number of the event, `NO_EVENT` or `INSIDE_EVENT`.
            data: its bytes.
            now: the time.
        """
        self.deadlines.active_at = now
        self.is_inside_event = number is INSIDE_EVENT
        if data is BOM or data == BOM:
            return b"" if self._has_written_first() else data
        if self._lacks_lf and self._wrote_lf and data[:1] == b"\n":
            data = data[1:]
        self._wrote_lf = False
        if number > 0:
            if self._id_prefix:
                data = add_line(data, b"%b%d" % (self._id_prefix[1:], number))
            if not data.endswith(b"\n\n"):
                self._line_end = line_end(data[: -len(line_end(data))])
        self._lacks_lf = data.endswith(b"\r")
        return data

    def frames(self, data: bytes, first: int, last: int, now: float) -> bytes:
        """Return the events `first` to `last` from the log, with their ids."""
        count = last - first + 1
        self.deadlines.active_at = now
        splitter = Splitter(len(data) + 1, at_start=first == 1)
        if splitter.count_usual(data) == count:
            return self.number(data, last, count)
        if not self._id_prefix and not self._has_written_first():
            return data
        parts, number = [], first - 1
        for kind, piece in splitter.feed(data):
            is_event = kind is Kind.BLOCK and has_data(piece)
            number += is_event
            parts.append(self.part(number if is_event else 0, piece, now))
        return b"".join(parts) + splitter.flush()

    def on_app_ids(self) -> None:
        """Add no more ids, because the app sets its own."""
        self._id_prefix = b""
        self._has_end_id = False

    def on_ids_seen(self) -> None:
        """Write heartbeats without a blank line from now on, for decoders that dispatch at each."""
        if self._comment is CommentForm.BLOCK_UNTIL_ID:
            self._comment = CommentForm.LINE

    def heartbeat(self, now: float, *, retry_ms: int | None = None) -> bytes:
        """Return a heartbeat, or nothing if a part of an event has been sent.

        Args:
            now: the time.
            retry_ms: when the client is to reconnect, if the connection ends with this heartbeat.
        """
        if self.is_inside_event:
            return b""
        record, uptime = self.record, self.record.age(now)
        before = self._complete_line_end()
        if not self.reads_control_events:
            record.heartbeats += 1
            as_block = self._comment is not CommentForm.LINE
            return before + control_events.heartbeat_comment(self._line_end, as_block=as_block)
        record.heartbeats = max(record.heartbeats + 1, self.deadlines.count(uptime))
        return before + control_events.heartbeat(
            record,
            self.terms,
            unix_time=self._epoch + now,
            uptime=uptime,
            remaining=self.remaining_seconds(now),
            retry_ms=retry_ms,
        )

    def rotate(self, now: float, jitter: float) -> tuple[bytes, bool]:
        """Return the last bytes of a connection whose client resumes the stream, as `end` does.

        Args:
            now: the time.
            jitter: from 0 to 1, to spread the times at which clients reconnect.
        """
        if not self.reads_control_events:
            return b"", False  # a clean end would look like that of the stream
        return self.heartbeat(now, retry_ms=self._spread_retry(jitter)), True

    def prepare_to_drain(self) -> None:
        """Shorten the retry, so that the client reconnects while the stream continues."""
        longest = self.profile.longest_drain_ms
        self.retry_ms = min(self.retry_ms, longest) if longest else self.retry_ms

    def reset_truncated(self, last: int) -> bytes:
        """Return the `reset` of a client that has missed events up to the event `last`."""
        if not self.reads_control_events:
            return b""
        event_id = format_event_id(self._secret, last) if self._id_prefix else None
        return self._start_or_reset("truncated", event_id, resumed=True)

    def end(self, end: StreamEnd, jitter: float) -> tuple[bytes, bool]:
        """Return the last bytes, and whether the response may end as if it were complete."""
        self.outcome = end.reason
        finished = end.reason is Reason.FINISHED
        if self.profile.client_kind is ClientKind.JSON:
            return b"", True  # the response starts now, with a status for the reason
        if end.reason is Reason.INCOMPLETE:
            return b"", False  # the server reports it, as without the middleware
        if (
            end.is_inside_event
            or self.is_inside_event
            or (finished and not self.reads_control_events)
        ):
            # An end event inside an incomplete event would become part of a false one.
            return end.tail, finished
        if self.reads_control_events:
            return self._end_of_eventsource(end, jitter)
        if end.first_chunk is None and not self.profile.is_openai:
            return b"", False
        return self._end_of_openai(end), True

    def _end_of_openai(self, end: StreamEnd) -> bytes:
        if end.has_own_end:
            return b""
        if end.reason in (Reason.ERROR, Reason.SHUTDOWN, Reason.LOST):
            is_shutdown = end.reason is Reason.SHUTDOWN
            last = openai.error_end(self._line_end, shutdown=is_shutdown)
        else:
            last = openai.length_end(end.first_chunk or {}, self._line_end)
        return self._complete_line_end() + last

    def remaining_seconds(self, now: float) -> float | None:
        """Return the time until the cap, `None` if there is none."""
        return None if self.ends_at == math.inf else round(max(0.0, self.ends_at - now), 3)

    def _set_cap(self, now: float, jitter: float, ends_in: float | None) -> None:
        max_seconds, ends_at = self.terms.max_seconds, self.ends_at
        if max_seconds is not None:
            if self.terms.rotates:
                # Connections that opened together do not all end together.
                self.deadlines.cap_at = ends_at = now + max_seconds * (1 - jitter / 10)
            else:  # the producer ends the stream
                ends_at = self.record.opened_at + max_seconds
        if ends_in is not None and now + ends_in < ends_at:
            self.deadlines.cap_at = ends_at = now + ends_in
        self.ends_at = ends_at

    def _has_written_first(self) -> bool:
        """Return whether bytes of the middleware precede those of the app."""
        return self.reads_control_events or self.record.heartbeats > 0

    def _complete_line_end(self) -> bytes:
        """Return the LF of a CRLF in two chunks, which an event of ours must not separate."""
        if not self._lacks_lf or self._wrote_lf:
            return b""
        self._wrote_lf = True
        return b"\n"

    def _start_or_reset(self, reset: str, event_id: str | None, *, resumed: bool) -> bytes:
        return control_events.start_or_reset(
            self.record,
            self.terms,
            reset=reset,
            resumed=resumed,
            event_id=event_id,
            retry_ms=self.retry_ms,
        )

    def _spread_retry(self, jitter: float) -> int:
        """Return a part of the usual retry, from half (`jitter` 0) to all of it (`jitter` 1)."""
        return int(self.retry_ms * (0.5 + 0.5 * jitter))

    def _end_of_eventsource(self, end: StreamEnd, jitter: float) -> tuple[bytes, bool]:
        if end.has_own_end:
            return (end.tail if end.reason is Reason.FINISHED else b""), True
        if end.reason in (Reason.GONE, Reason.UNAVAILABLE):
            return b"", True  # the client keeps its event id, and retries
        if end.reason is Reason.LOST:
            lost = control_events.producer_lost(self.record, self.terms, self.retry_ms)
            return self._complete_line_end() + lost, True
        event_id = self._last_event_id(end)
        if end.reason is Reason.ERROR:
            last = control_events.error(self.record, self.terms, end, event_id)
        else:
            retry_ms = self._spread_retry(jitter) if end.reason is Reason.SHUTDOWN else None
            last = control_events.complete(self.record, self.terms, end, event_id, retry_ms)
        return self._complete_line_end() + last, True

    def _last_event_id(self, end: StreamEnd) -> str | None:
        """Return the id of the end event, `None` if the client keeps an id of the app."""
        if end.reason is Reason.EVICTED and self._secret:
            # A client that reconnected would evict the stream that has evicted this one.
            return format_event_id(self._secret, end.chunks, Ending.FINAL)
        if not self._has_end_id:
            return None
        ending = Ending.CUT
        if end.reason in (Reason.FINISHED, Reason.CANCELLED):
            ending = Ending.FINAL
        return format_event_id(self._secret, end.chunks, ending)
