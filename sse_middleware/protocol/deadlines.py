"""Deadlines of one connection: when a heartbeat or its own end is due.

Time is an argument: `now` in seconds of any monotonic clock. The caller asks `due` again at
`deadline()`.
"""

import enum
import math

from sse_middleware.protocol.client_kinds import ClientKind

ALIGNMENT_SECONDS = 1 / 16
"""Heartbeats are sent up to this much early, so that those of many streams fall on the same time.

Most of the cost of a heartbeat is its own wake-up of the event loop. (The value is exact in binary,
so that times are equal.)
"""
_ALIGNED_FROM_SECONDS = 1.0


class Due(enum.Enum):
    """The action that is due."""

    NOTHING = enum.auto()
    HEARTBEAT = enum.auto()
    CAP = enum.auto()


class Deadlines:
    """Compute which action of a connection is due and when.

    Args:
        interval: the interval of heartbeats in seconds, `None` for none.
        client_kind: the kind of the client; an `EVENTSOURCE` gets a heartbeat in each interval, any
            other only after a silence.
        now: the time at which the connection opens.

    Attributes:
        active_at: the time of the last bytes that are not counted as events.
        cap_at: the time at which the connection ends, infinite for never.
    """

    __slots__ = ("_heartbeat_at", "_in_silence", "_interval", "active_at", "cap_at")

    def __init__(self, interval: float | None, client_kind: ClientKind, now: float) -> None:
        self._interval = math.inf if interval is None else interval
        self._in_silence = client_kind is not ClientKind.EVENTSOURCE
        self._heartbeat_at = self._aligned(now + self._interval)
        self.active_at = 0.0
        self.cap_at = math.inf

    def deadline(self) -> float:
        """Return the time of the next call of `due`, infinite for never."""
        return min(self.cap_at, self._heartbeat_at)

    def busy_deadline(self) -> float:
        """Return the time of the next call of `due` while the app keeps sending."""
        return self.cap_at if self._in_silence else self.deadline()

    def due(self, now: float, last_event_at: float) -> Due:
        """Return the action that is due; `last_event_at` is the time of the app's last event."""
        if now >= self.cap_at:
            return Due.CAP
        if now < self._heartbeat_at:
            return Due.NOTHING
        if self._in_silence:
            silent_since = max(last_event_at, self.active_at)
            self._heartbeat_at = max(
                self._heartbeat_at, self._aligned(silent_since + self._interval)
            )
        return Due.HEARTBEAT if now >= self._heartbeat_at else Due.NOTHING

    def plan_heartbeat(self, now: float) -> None:
        """Set the time of the next heartbeat, one interval after the one that is due."""
        planned = self._heartbeat_at + self._interval
        # After an event loop was blocked, one heartbeat is sent, not all that were missed.
        self._heartbeat_at = planned if planned > now else self._aligned(now + self._interval)

    def stop(self) -> None:
        """Plan nothing more."""
        self._heartbeat_at = self.cap_at = math.inf

    def count(self, uptime: float) -> int:
        """Return the number of heartbeats up to this age of the stream, on all connections."""
        return round(uptime / self._interval) if self._interval < math.inf else 0

    def _aligned(self, at: float) -> float:
        """Return the time for a heartbeat that is wanted at `at`."""
        if _ALIGNED_FROM_SECONDS <= self._interval < math.inf:
            return at - at % ALIGNMENT_SECONDS
        return at
