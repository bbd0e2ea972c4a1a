"""The open streams of a process, those that have ended last, and what has happened to them.

It is an observer of streams, and exists only if the live page is on. Its methods may be called in
several threads, one for each event loop; each changes one container in one step.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError
from sse_middleware.observability.stream_record import StreamRecord

SHOWN_STREAMS: Final = 200
"""The newest open streams that are shown; all are counted."""
_KEPT_ENDS: Final = 50
_KEPT_ACTIVITIES: Final = 100
_FAULTS: Final = (("circuit", "open"), ("listener", "down"))
_NAMED_KIND: Final = "eventsource"


class LiveStreams:
    """Keep the records of streams.

    Args:
        clock: the clock of the streams, in seconds.
        epoch: returns the seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float], epoch: Callable[[], float]) -> None:
        self._clock = clock
        self._epoch = epoch
        self._open: dict[int, tuple[StreamRecord, float]] = {}  # with the time of the opening
        self._ended: deque[dict[str, Any]] = deque(maxlen=_KEPT_ENDS)
        self._activities: deque[tuple[float, str]] = deque(maxlen=_KEPT_ACTIVITIES)
        self._lingering = 0

    def snapshot(self) -> dict[str, Any]:
        """Return what there is now, as an object for JSON, the newest first."""
        now, opened = self._clock(), list(self._open.values())
        readers = Counter(
            record.stream_id for record, _ in opened if record.resumed_after is not None
        )
        newest = opened[-SHOWN_STREAMS:]
        newest.reverse()
        streams = [
            _row(record) | _state(record, readers) | {"age": round(now - opened_at, 1)}
            for record, opened_at in newest
        ]
        return {
            "process": os.getpid(),
            "open": len(opened),
            "lingering": self._lingering,
            "streams": streams,
            "ended": list(reversed(self._ended)),
            "activities": [
                {"at": round(at, 3), "text": text} for at, text in reversed(list(self._activities))
            ],
        }

    def opened(self, record: StreamRecord) -> None:
        """Add a stream, or a connection that follows one."""
        self._open[id(record)] = record, self._clock()

    def progressed(self, record: StreamRecord) -> None:
        """Do nothing: the record is read when it is shown."""

    def stalled(self, record: StreamRecord, seconds: float) -> None:
        """Keep that a client has blocked a write."""
        self._keep(f"a client of {record.route} blocked a write for {seconds:.1f} s")

    def ended(self, record: StreamRecord) -> None:
        """Move a stream to those that have ended."""
        self._open.pop(id(record), None)
        age = round(record.duration_seconds, 1)
        ended = {"outcome": record.outcome, "age": age, "at": round(self._epoch(), 3)}
        self._ended.append(_row(record) | ended)

    def resumed(self, route: str, result: str, replayed: int) -> None:
        """Keep the result of a resume."""
        self._keep(f"resume on {route}: {result}, {replayed} missed events")

    def lingering(self, more: int) -> None:
        """Count the streams that linger."""
        self._lingering += more

    def rejected(self, route: str, reason: str) -> None:
        """Keep the reason of a rejection."""
        self._keep(f"a stream of {route} was rejected: {reason}")

    def on_end_failed(self, route: str) -> None:
        """Keep a failure of `on_end`."""
        self._keep(f"on_end of {route} has failed")

    def store_failed(self, operation: str) -> None:
        """Keep a failure of the store."""
        self._keep(f"the store has failed: {operation}")

    def health_changed(self, component: str, name: str, state: str, more: int) -> None:
        """Keep that a part of the access to the store does not work."""
        if more > 0 and (component, state) in _FAULTS:
            self._keep(f"{component} of {name}: {state}")

    def store_flushed(self, seconds: float) -> None:
        """Do nothing."""

    def _keep(self, text: str) -> None:
        self._activities.append((self._epoch(), text))


def live_streams(options: Options) -> LiveStreams | None:
    """Return the observer for the live page, `None` if the page is off.

    Raises:
        ConfigurationError: the page has no token.
    """
    if not options.admin_path:
        return None
    if not options.admin_token:
        allowed = "16 to 1024 characters in one line, since SSE_ADMIN_PATH is set"
        raise ConfigurationError("SSE_ADMIN_TOKEN", "", allowed)
    return LiveStreams(time.monotonic, time.time)


def _row(record: StreamRecord) -> dict[str, Any]:
    return {
        "stream_id": record.stream_id,
        "trace_id": record.trace_id,
        "route": record.route,
        "kind": record.family,
        "events": record.chunks,
        "tokens": record.tokens,
        "bytes": record.sent_bytes,
        "resumed_after": record.resumed_after,
        "control": _last_control_event(record),
    }


def _state(record: StreamRecord, readers: Counter[str]) -> dict[str, Any]:
    followers = readers[record.stream_id]
    if record.resumed_after is not None:
        return {"state": "resumed", "connections": 1}
    own = 0 if record.disconnects else 1
    state = "open" if own else "read by others" if followers else "lingering"
    return {"state": state, "connections": own + followers}


def _last_control_event(record: StreamRecord) -> str:
    if record.outcome is not None and record.family == _NAMED_KIND:
        return "error" if record.outcome == "error" else f"complete ({record.outcome})"
    if record.heartbeats:
        return f"heartbeat {record.heartbeats}"
    return "start" if record.family == _NAMED_KIND else ""
