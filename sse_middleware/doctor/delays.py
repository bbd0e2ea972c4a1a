"""Measure whether a proxy or another hop holds events back on their way to the client.

Some events show when they were sent: control events by the age of the stream, comments of
sse-starlette by a timestamp, heartbeat comments by their interval. For each, the time of arrival
minus the time of sending is its delay plus an unknown offset, because the clocks of server and
client differ. The offset is the same for all events of a stream, so that the difference between the
largest and the smallest of these values is the time for which an event was held back.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Final, NamedTuple

from sse_middleware.doctor.visit import Visit

HELD_SECONDS: Final = 1.0
"""The shortest delay that is reported. Networks cause shorter ones, and busy machines too."""
AT_ONCE_SHARE: Final = 0.05
"""Events arrive at once if they all arrive within this share of the time before the first one."""
_FEW: Final = 3
"""The fewest events that can show that they arrived at once."""

_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_HEARTBEAT_COMMENT = "heartbeat"


class Sample(NamedTuple):
    """An event or comment whose time of sending is known.

    Attributes:
        sent: in seconds, by a clock of the server with any origin.
        arrived: in seconds, by the clock of the client.
    """

    sent: float
    arrived: float


class Delay(NamedTuple):
    """Events that were held back.

    Attributes:
        seconds: for how long.
        evidence: what shows it, for the report.
    """

    seconds: float
    evidence: str


def longest_delay(visit: Visit) -> Delay | None:
    """Return the longest delay of a stream, `None` if no event was held back."""
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
    """Return the time before the first event if all events arrived at once, else `None`."""
    times = [item.at for item in visit.body.events]
    if len(times) < _FEW or times[0] < HELD_SECONDS:
        return None
    return times[0] if times[-1] - times[0] <= AT_ONCE_SHARE * times[0] else None


def longest_server_pause(visit: Visit) -> float:
    """Return the longest time between two heartbeats, in seconds by the clock of the server."""
    uptimes = [_number(data, "uptime_seconds") for _, data in _control(visit, "heartbeat")]
    return max((two - one for one, two in pairwise(uptimes)), default=0.0)


def _spread(samples: Iterable[Sample]) -> float:
    lags = [sample.arrived - sample.sent for sample in samples]
    return max(lags) - min(lags) if lags else 0.0


def _control_samples(visit: Visit) -> Iterator[Sample]:
    """Yield the control events of a stream; their data contains the age of the stream."""
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
    """Yield the heartbeat comments, which the middleware sends at least an interval apart."""
    try:
        interval = float(visit.header("x-heartbeat-interval"))
    except ValueError:
        return
    times = [at for at, text in visit.body.comments if text == _HEARTBEAT_COMMENT]
    yield from (Sample(number * interval, at) for number, at in enumerate(times))


def _pause_within_event(visit: Visit) -> float:
    """Return the longest pause in the middle of an event.

    Apps send whole events, so that such a pause arises on the way.
    """
    breaks = set(visit.body.breaks)
    times = [chunk.at for chunk in visit.chunks]
    return max((two - one for one, two in pairwise(times) if one in breaks), default=0.0)


def _control(visit: Visit, name: str) -> list[tuple[float, dict[str, object]]]:
    return visit.control_events.get(name, [])


def _number(data: dict[str, object], field: str) -> float:
    value = data.get(field)
    return float(value) if isinstance(value, int | float) else 0.0
