"""Whether a hop holds events back: the times at which they were sent, and those of their arrival.

The clocks of the server and of the client need not agree. Of a number of events with known times of
sending, the one that was delayed least shows the offset; another one that was delayed more has been
held back by the difference.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Final, NamedTuple

from sse_middleware.doctor.visit import Visit

HELD_SECONDS: Final = 1.0
"""A delay that no network causes, and a busy machine rarely."""
AT_ONCE_SHARE: Final = 0.05
"""Events that arrive within this share of the wait before them have arrived at once."""
_FEW: Final = 3
"""Fewer events say nothing about when they were sent."""

_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_HEARTBEAT_COMMENT = "heartbeat"


class Sample(NamedTuple):
    """Something whose time of sending is known: the times on the clocks of the two sides."""

    sent: float
    arrived: float


class Delay(NamedTuple):
    """Events that were held back."""

    seconds: float
    evidence: str


def longest_delay(visit: Visit) -> Delay | None:
    """Return the longest time for which events were held back, `None` if no event was."""
    sources = (
        (_control_samples(visit), "the times in the control events show it"),
        (_ping_samples(visit), "the timestamps in the comments of the app show it"),
        (
            _comment_samples(visit),
            "heartbeat comments arrived sooner after each other than they are sent",
        ),
    )
    delays = [Delay(_spread(samples), evidence) for samples, evidence in sources]
    delays.append(Delay(_pause_within_event(visit), "a part of an event arrived before a pause"))
    longest = max(delays)
    return longest if longest.seconds >= HELD_SECONDS else None


def arrived_at_once(visit: Visit) -> float | None:
    """Return the wait before all events, if they then arrived at once, else `None`."""
    times = [item.at for item in visit.body.events]
    if len(times) < _FEW or times[0] < HELD_SECONDS:
        return None
    return times[0] if times[-1] - times[0] <= AT_ONCE_SHARE * times[0] else None


def longest_server_pause(visit: Visit) -> float:
    """Return the longest time between two heartbeats by the clock of the server."""
    uptimes = [_number(data, "uptime_seconds") for _, data in _control(visit, "heartbeat")]
    return max((two - one for one, two in pairwise(uptimes)), default=0.0)


def _spread(samples: Iterable[Sample]) -> float:
    lags = [sample.arrived - sample.sent for sample in samples]
    return max(lags) - min(lags) if lags else 0.0


def _control_samples(visit: Visit) -> Iterator[Sample]:
    """Yield the control events of a stream, whose data has the age of the stream."""
    for name, field in (("start", ""), ("heartbeat", "uptime_seconds"), ("complete", "duration")):
        for at, data in _control(visit, name):
            yield Sample(_number(data, field) if field else 0.0, at)


def _ping_samples(visit: Visit) -> Iterator[Sample]:
    """Yield comments with a timestamp, as sse-starlette sends them."""
    for at, text in visit.body.comments:
        found = _TIMESTAMP.search(text)
        if found is not None:
            try:
                yield Sample(datetime.fromisoformat(found[0]).timestamp(), at)
            except (ValueError, OverflowError):
                continue


def _comment_samples(visit: Visit) -> Iterator[Sample]:
    """Yield our heartbeat comments, which follow each other after at least an interval."""
    try:
        interval = float(visit.header("x-heartbeat-interval"))
    except ValueError:
        return
    times = [at for at, text in visit.body.comments if text == _HEARTBEAT_COMMENT]
    yield from (Sample(number * interval, at) for number, at in enumerate(times))


def _pause_within_event(visit: Visit) -> float:
    """Return the longest pause after a part of an event: apps send whole events."""
    breaks = set(visit.body.breaks)
    times = [chunk.at for chunk in visit.chunks]
    return max((two - one for one, two in pairwise(times) if one in breaks), default=0.0)


def _control(visit: Visit, name: str) -> list[tuple[float, dict[str, object]]]:
    return visit.control_events.get(name, [])


def _number(data: dict[str, object], field: str) -> float:
    value = data.get(field)
    return float(value) if isinstance(value, int | float) else 0.0
