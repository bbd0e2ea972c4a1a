"""Smoke tests: the numbers of many streams, their thresholds, and the record of a run.

It is plain data, like `visit.py`. Times are in seconds.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, Self

from sse_middleware.doctor.visit import Ending, Visit

MEASURES: Final = ("first_event", "duration", "gap")
"""The measures of a stream: the time to its first event, its duration, and its longest gap."""


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """What one stream has shown.

    Attributes:
        error: what was wrong, `""` if nothing was; never a payload.
        first_event: the time from the request to the first event of the app, `None` without one.
        duration: the time from the request to the end.
        gap: the longest time between two events of the app, `None` if there are less than two.
    """

    error: str
    first_event: float | None
    duration: float
    gap: float | None


def result_of(visit: Visit) -> StreamResult:
    """Return the result of a visit."""
    times = [item.at for item in visit.app_events] if visit.is_event_stream else []
    return StreamResult(
        error=_error(visit),
        first_event=times[0] if times else None,
        duration=visit.ended_at,
        gap=max((two - one for one, two in pairwise(times)), default=None),
    )


def _error(visit: Visit) -> str:
    if visit.failure:
        return "no response"
    if not visit.is_event_stream:
        return "no event stream" if visit.status in range(200, 300) else f"status {visit.status}"
    found = (
        ("cut", visit.ending is Ending.CUT),
        ("no end in time", visit.ending is Ending.LEFT),
        ("unknown encoding", bool(visit.body.unreadable)),
        ("error event", _has_error(visit)),
        ("no event", not visit.app_events),
    )
    return next((error for error, is_so in found if is_so), "")


def _has_error(visit: Visit) -> bool:
    """Return whether the server, or an app that is compatible with OpenAI's, has sent an error."""
    return bool(visit.control_events.get("error")) or any(
        event.event == "error" or event.data.startswith('{"error"') for _, event in visit.app_events
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the command.

    Attributes:
        url: the URL, without its query.
        at: when it has begun, in UTC, as ISO 8601.
        count: the number of streams.
        errors: how often each error has occurred.
        first_event, duration, gap: the measures of the streams without an error.
        exceeded: the thresholds that were exceeded.
    """

    url: str
    at: str
    count: int
    errors: Mapping[str, int]
    first_event: Sequence[float]
    duration: Sequence[float]
    gap: Sequence[float]
    exceeded: Sequence[str] = field(default_factory=list)

    @classmethod
    def of(cls, url: str, began_at: datetime, results: Sequence[StreamResult]) -> Self:
        """Return the record of a run."""
        measured = {
            measure: [
                round(value, 4)
                for result in results
                if not result.error and (value := getattr(result, measure)) is not None
            ]
            for measure in MEASURES
        }
        return cls(
            url=url,
            at=began_at.astimezone(UTC).isoformat(timespec="seconds"),
            count=len(results),
            errors=dict(Counter(result.error for result in results if result.error)),
            **measured,
        )

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` has written.

        Raises:
            ValueError: it is something else.
        """
        try:
            run = cls(**json.loads(line))
            datetime.fromisoformat(run.at)
            numbers = [*run.errors.values(), *run.first_event, *run.duration, *run.gap, run.count]
            is_valid = isinstance(run.url, str) and all(
                isinstance(number, int | float) and math.isfinite(number) for number in numbers
            )
        except (TypeError, AttributeError, RecursionError) as exc:
            raise ValueError("no result of a smoke test") from exc
        if not is_valid:
            raise ValueError("no result of a smoke test")
        return run

    def to_json(self) -> str:
        """Return the record as one line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def began_at(self) -> datetime:
        """When the run has begun; without a time zone it is UTC."""
        began_at = datetime.fromisoformat(self.at)
        return began_at if began_at.tzinfo else began_at.replace(tzinfo=UTC)

    @property
    def failed(self) -> int:
        """The number of streams with an error."""
        return sum(self.errors.values())


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a run must not exceed.

    Attributes:
        first_event: the 95th percentile of the time to the first event, `None` for any.
        duration: that of the duration, `None` for any.
        gap: the longest gap, `None` for any.
        errors: the number of streams with an error.
    """

    first_event: float | None = None
    duration: float | None = None
    gap: float | None = None
    errors: int = 0

    def exceeded_by(self, run: Run) -> list[str]:
        """Return, in words, each threshold that a run exceeds."""
        found = []
        if run.failed > self.errors:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in sorted(run.errors.items()))
            found.append(f"errors: {run.failed} of {run.count} ({reasons}), allowed {self.errors}")
        for name, limit, value in (
            ("first event, p95", self.first_event, percentile(run.first_event, 0.95)),
            ("duration, p95", self.duration, percentile(run.duration, 0.95)),
            ("longest gap", self.gap, max(run.gap, default=math.nan)),
        ):
            if limit is not None and value > limit:
                found.append(f"{name}: {value:.3f} s, allowed {limit:g} s")
        return found


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that a share of all values does not exceed; nan for no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def summary(run: Run) -> str:
    """Return the numbers of a run as text."""
    lines = [f"{run.url}: {run.count} streams, {run.failed} with an error"]
    lines += [f"  {reason}: {number}" for reason, number in sorted(run.errors.items())]
    lines += [f"  {'':14}{'p50':>9}{'p95':>9}{'max':>9}"]
    lines += [
        f"  {measure.replace('_', ' '):14}" + "".join(f"{shown(value):>9}" for value in three)
        for measure in MEASURES
        for three in [points(getattr(run, measure))]
    ]
    return "\n".join([*lines, *(f"exceeded: {line}" for line in run.exceeded)])


def points(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 50th and the 95th percentile, and the maximum."""
    return percentile(values, 0.5), percentile(values, 0.95), max(values, default=math.nan)


def shown(value: float) -> str:
    """Write a number of seconds."""
    return "-" if math.isnan(value) else f"{value:.3f} s"
