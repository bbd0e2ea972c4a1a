"""Deadlines of one stream: when a heartbeat or the cap is due.

Time is an argument: `now` in seconds of any monotonic clock. The caller calls `due` again at
`deadline()`.
"""

import enum
import math

from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.stream_terms import StreamTerms

ALIGNMENT_SECONDS = 1 / 16
"""Heartbeats are sent up to this much early, so that those of many streams fall on the same time.

Most of the cost of a heartbeat is its own wake-up of the event loop. (The value is exact in binary,
so that times are equal.)
"""
_ALIGNED_FROM_SECONDS = 1.0


class Reason(enum.StrEnum):
    """Why a stream has ended."""

    FINISHED = "finished"
    DURATION_CAP = "duration_cap"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    EVICTED = "evicted"
    """Its slot was needed for another stream."""
    ERROR = "error"
    LOST = "lost"
    """On a connection that resumes: the producer is gone."""
    GONE = "gone"
    """On a connection that resumes: the log is gone."""
    UNAVAILABLE = "unavailable"
    """On a connection that resumes: the store cannot be reached."""


class Due(enum.Enum):
    """The action that is due."""

    NOTHING = enum.auto()
    HEARTBEAT = enum.auto()
    CAP = enum.auto()


class Deadlines:
    """Compute which action is due and when.

    This is the half of a `StreamState` that handles time and no bytes.

    Attributes:
        client_kind: the kind of the client; it changes from `PLAIN` to `OPENAI` if the first event
            is a chat completion chunk.
        reason: why the stream has ended, `None` while it is open.
        record: the numbers of the stream.
        retry_ms: the delay before a client that is disconnected reconnects.
        terms: the terms of the stream.
    """

    __slots__ = (
        "_cap_at",
        "_ends_at",
        "_heartbeat_at",
        "_interval",
        "_written_at",
        "client_kind",
        "reason",
        "record",
        "retry_ms",
        "terms",
    )

    def __init__(
        self, terms: StreamTerms, *, client_kind: ClientKind, record: StreamRecord
    ) -> None:
        self.terms = terms
        self.client_kind = client_kind
        self.record = record
        self.reason: Reason | None = None
        self.retry_ms = terms.retry_ms
        self._interval = math.inf
        if terms.heartbeat_interval is not None and client_kind is not ClientKind.OFF:
            self._interval = terms.heartbeat_interval
        self._written_at = 0.0  # when bytes that are not counted as events were sent last

    def start(self, now: float, *, age: float, ends_in: float | None, ends_with_log: bool) -> None:
        """Start the stream, or a connection that resumes it.

        Args:
            now: the time of the response start.
            age: the age of the stream at that time.
            ends_in: the time after which the client may no longer read, whatever the terms are.
            ends_with_log: whether the end of the stream comes from a log.
        """
        self.record.opened_at = now - age
        self._heartbeat_at = self._aligned(now + self._interval)
        self._ends_at = math.inf
        max_seconds, rotates = self.terms.max_seconds, self.terms.rotates
        if max_seconds is not None:
            self._ends_at = max_seconds + (now if rotates else self.record.opened_at)
        # The log ends the stream of a reader, also if its producer is lost.
        self._cap_at = math.inf if ends_with_log and not rotates else self._ends_at
        if ends_in is not None and now + ends_in < self._cap_at:
            self._ends_at = self._cap_at = now + ends_in

    def deadline(self) -> float:
        """Return the time of the next call of `due`, infinite for never."""
        return min(self._cap_at, self._heartbeat_at)

    def busy_deadline(self) -> float:
        """Return the time of the next call of `due` while the app keeps sending."""
        return self.deadline() if self.client_kind is ClientKind.EVENTSOURCE else self._cap_at

    def due(self, now: float) -> Due:
        """Return the action that is due; the cap can also be due after the end of the stream."""
        if now >= self._cap_at:
            return Due.CAP
        if now < self._heartbeat_at:
            return Due.NOTHING
        if self.client_kind is not ClientKind.EVENTSOURCE and self.reason is None:
            idle_since = max(self.record.last_event_at, self._written_at)
            self._heartbeat_at = max(self._heartbeat_at, self._aligned(idle_since + self._interval))
        return Due.HEARTBEAT if now >= self._heartbeat_at else Due.NOTHING

    def plan_heartbeat(self, now: float) -> None:
        """Set the time of the next heartbeat, one interval after the one that is due."""
        planned = self._heartbeat_at + self._interval
        # After an event loop was blocked, one heartbeat is sent, not all that were missed.
        self._heartbeat_at = planned if planned > now else self._aligned(now + self._interval)

    def _aligned(self, at: float) -> float:
        """Return the time for a heartbeat that is wanted at `at`."""
        if _ALIGNED_FROM_SECONDS <= self._interval < math.inf:
            return at - at % ALIGNMENT_SECONDS
        return at

    def on_disconnect(self) -> None:
        """Continue without a client: no heartbeats, and no cap of the connection."""
        self._heartbeat_at = math.inf
        if self.terms.rotates:
            self._cap_at = math.inf

    def set_ended(self, reason: Reason) -> None:
        """End the stream for a `reason`."""
        self.reason = reason
        self._heartbeat_at = math.inf

    def remaining_seconds(self, now: float) -> float | None:
        """Return the time until the cap, `None` if there is none."""
        return None if self._ends_at == math.inf else round(max(0.0, self._ends_at - now), 3)

    def duration_seconds(self, now: float) -> float:
        """Return the age of the stream."""
        return round(now - self.record.opened_at, 3)
