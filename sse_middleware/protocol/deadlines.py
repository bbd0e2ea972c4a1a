"""When something of ours is due on one stream: its heartbeats, and its end at the cap.

Time is an argument: `now` in seconds of any monotonic clock. `deadline()` says when `due` is to be
asked.
"""

import enum
import math

from sse_middleware.config.options import Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind

TOGETHER_SECONDS = 1 / 16
"""How much earlier than asked heartbeats come at most, so that those of many streams come together.

To wake up for each on its own is most of what it costs. (Exact in binary, as times have to meet.)
"""
_LONG_SECONDS = 1.0


class Reason(enum.StrEnum):
    """Why a stream has ended."""

    FINISHED = "finished"
    DURATION_CAP = "duration_cap"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    EVICTED = "evicted"
    """Its place was needed for another one."""
    ERROR = "error"
    LOST = "lost"
    """For a reader: the producer is gone."""
    GONE = "gone"
    """For a reader: the log is."""
    UNAVAILABLE = "unavailable"
    """For a reader: the store is out of reach."""


class Due(enum.Enum):
    """What time has made due."""

    NOTHING = enum.auto()
    HEARTBEAT = enum.auto()
    CAP = enum.auto()


class Deadlines:
    """Know what is due.

    It is the half of a `StreamState` that looks at the clock and at no byte.

    Attributes:
        family: what kind of client reads; `OPENAI` once the first event of a plain stream says so.
        max_seconds: the cap of this stream, `None` for none.
        reason: why it has ended, `None` while it is open.
        record: where the numbers go.
        retry_ms: when a client that was cut is to come back.
        rotates: whether the cap ends the connection, and not the stream.
    """

    __slots__ = (
        "_beat_at",
        "_cap_at",
        "_ends_at",
        "_interval",
        "_marked",
        "_written_at",
        "family",
        "max_seconds",
        "reason",
        "record",
        "retry_ms",
        "rotates",
    )

    def __init__(
        self, options: Options, *, family: ClientKind, record: StreamRecord, marked: bool
    ) -> None:
        self.family = family
        self.record = record
        self.reason: Reason | None = None
        self._marked = marked
        self.max_seconds = options.stream_max_seconds
        rotates = options.cap_action == "rotate" if "cap_action" in options.explicit else not marked
        self.rotates = family is ClientKind.EVENTSOURCE and rotates
        uncapped = not (marked or "stream_max_seconds" in options.explicit)
        if family is ClientKind.OFF or (family is not ClientKind.EVENTSOURCE and uncapped):
            self.max_seconds = None
        self.retry_ms = options.retry_ms
        if options.linger_seconds:  # who waits longer finds nothing
            self.retry_ms = min(self.retry_ms, int(options.linger_seconds * 1000))
        self._interval = math.inf
        if options.heartbeat_interval is not None and family is not ClientKind.OFF:
            self._interval = options.heartbeat_interval
        self._written_at = 0.0  # what is no single event, such as a comment of the app's

    def begin(self, now: float, *, age: float, ends_in: float | None, is_reader: bool) -> None:
        """Begin the life of the stream, or of one connection of it.

        Args:
            now: the time of the response start.
            age: how old the stream is by then.
            ends_in: the time after which the client may read no more, whatever the settings say.
            is_reader: whether somebody else tells the end of the stream.
        """
        self.record.opened_at = now - age
        self._beat_at = self._together(now + self._interval)
        self._ends_at = math.inf
        if self.max_seconds is not None:
            self._ends_at = self.max_seconds + (now if self.rotates else self.record.opened_at)
        # To a reader the log tells the end, if need be that its producer is gone.
        self._cap_at = math.inf if is_reader and not self.rotates else self._ends_at
        if ends_in is not None and now + ends_in < self._cap_at:
            self._ends_at = self._cap_at = now + ends_in

    def deadline(self) -> float:
        """Return the time at which `due` is to be asked next, infinite for never."""
        return min(self._cap_at, self._beat_at)

    def busy_deadline(self) -> float:
        """Return the time at which `due` is to be asked even while the app keeps sending."""
        return self.deadline() if self.family is ClientKind.EVENTSOURCE else self._cap_at

    def due(self, now: float) -> Due:
        """Tell what time has made due; a stream that has ended can still reach its cap."""
        if now >= self._cap_at:
            return Due.CAP
        if now < self._beat_at:
            return Due.NOTHING
        if self.family is not ClientKind.EVENTSOURCE and self.reason is None:
            idle_since = max(self.record.last_event_at, self._written_at)
            self._beat_at = max(self._beat_at, self._together(idle_since + self._interval))
        return Due.HEARTBEAT if now >= self._beat_at else Due.NOTHING

    def plan_heartbeat(self, now: float) -> None:
        """Set the time of the next heartbeat, one interval behind the one that is due."""
        planned = self._beat_at + self._interval
        # A loop that was blocked for long owes one heartbeat, not all that it has missed.
        self._beat_at = planned if planned > now else self._together(now + self._interval)

    def _together(self, at: float) -> float:
        """Return the time for a heartbeat that is wanted at `at`."""
        if _LONG_SECONDS <= self._interval < math.inf:
            return at - at % TOGETHER_SECONDS
        return at

    def go_on_unread(self) -> None:
        """Go on without the client: nothing is to be told to it."""
        self._beat_at = math.inf
        if self.rotates:
            self._cap_at = math.inf

    def stop(self, reason: Reason) -> None:
        """End, for a `reason`."""
        self.reason = reason
        self._beat_at = math.inf

    def remaining_seconds(self, now: float) -> float | None:
        """Return the time until the cap, `None` where there is none."""
        return None if self._ends_at == math.inf else round(max(0.0, self._ends_at - now), 3)

    def duration_seconds(self, now: float) -> float:
        """Return the age of the stream."""
        return round(now - self.record.opened_at, 3)
