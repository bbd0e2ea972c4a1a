"""What a resume shows: the client has left a stream, and returns with the id of an event.

Its new response has to begin after that event. With ids of the middleware, the numbers show each
lost and each repeated event. Events that both responses contain must be the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sse_middleware.doctor.findings import Finding
from sse_middleware.doctor.visit import TimedEvent, Visit
from sse_middleware.protocol.event_ids import parse_event_id
from sse_middleware.protocol.parser import EventParser


@dataclass(frozen=True, kw_only=True)
class Resume:
    """A stream that was left and resumed.

    Attributes:
        left: the connection that the command has closed.
        last_id: the id of an event of it, with which the command has returned.
        resumed: the response to the request with this id.
        replayed: the response to one with the id of the `start` event, `None` if there is none.
    """

    left: Visit
    last_id: str
    resumed: Visit
    replayed: Visit | None = None


class _Numbered(NamedTuple):
    number: int
    event: str
    data: str


class UntilEvent:
    """Read chunks until an event of the app with an id has come.

    Args:
        number: the least number of the event, if its id is one of the middleware.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._parser = EventParser()

    def __call__(self, chunk: bytes) -> bool:
        """Return whether the event has come."""
        return any(event.id and self._is_reached(event.id) for event in self._parser.feed(chunk))

    def _is_reached(self, event_id: str) -> bool:
        parsed = parse_event_id(event_id)
        return parsed is None or parsed.seq >= max(1, self._number)


def first_id(visit: Visit) -> str:
    """Return the id of the first event of the app that has one, `""` if none has."""
    return next((item.event.id for item in visit.app_events if item.event.id), "")


def start_id(visit: Visit) -> str:
    """Return the id of the `start` event, `""` if there is none."""
    parsed = parse_event_id(first_id(visit))
    return f"{parsed.secret}-0" if parsed is not None and visit.control_events.get("start") else ""


def examine_resume(resume: Resume) -> list[Finding]:
    """Return what is wrong with a resume, nothing if it has returned exactly the rest."""
    resumed = resume.resumed
    if not resumed.is_event_stream:
        outcome = resumed.failure or f"the status {resumed.status}"
        return [Finding("resume_failed", f"The answer is {outcome}.")]
    resets = resumed.control_events.get("reset", [])
    if any(data.get("reason") == "gone" for _, data in resets):
        return [Finding("resume_gone", "The answer begins with reset, reason gone.")]
    if resets:
        return [Finding("lost_events", "The answer begins with reset, reason truncated.")]
    if parse_event_id(resume.last_id) is None:
        return list(_examine_own_ids(resume))
    if resumed.control_events.get("start") and not resumed.app_events and not _ends(resumed):
        return [Finding("resume_unavailable", "The answer is an empty stream with a retry.")]
    return list(_examine_numbers(resume))


def _examine_numbers(resume: Resume) -> Iterator[Finding]:
    """Compare the numbers in the ids of the middleware."""
    held = parse_event_id(resume.last_id)
    assert held is not None
    before = [item for item in _numbered(resume.left, held.secret) if item.number <= held.seq]
    after = _numbered(resume.resumed, held.secret)
    numbers = [item.number for item in after]
    expected = range(held.seq + 1, 1 + _last_number(resume, held.secret))
    if repeated := sorted({number for number in numbers if number <= held.seq}):
        yield Finding("repeated_events", f"{len(repeated)} events before the last id came again.")
    elif len(set(numbers)) < len(numbers):
        yield Finding("repeated_events", "Events came twice.")
    elif numbers != list(expected):
        lost = sorted(set(expected) - set(numbers))
        yield Finding("lost_events", f"The events {lost[:5]} after the last id are missing.")
    known = {item.number: item for item in (*before, *after)}
    others = _numbered(resume.left, held.secret)
    if resume.replayed is not None:
        replayed = _numbered(resume.replayed, held.secret)
        others += replayed
        yield from _missing_in_replay(known, replayed)
    if changed := [item for item in others if known.get(item.number, item) != item]:
        yield Finding("changed_events", f"{len(changed)} events differ.")


def last_number(visit: Visit) -> int:
    """Return the number of the last event of the app, 0 if none has an id of the middleware."""
    numbers = (parse_event_id(item.event.id or "") for item in visit.app_events)
    return max((parsed.seq for parsed in numbers if parsed is not None), default=0)


def _last_number(resume: Resume, secret: str) -> int:
    """Return the number of the last event that the resumed response must contain."""
    visits = (resume.left, resume.resumed)
    numbers = [item.number for visit in visits for item in _numbered(visit, secret)]
    ends = resume.resumed.control_events.get("complete", [])
    totals = [data.get("total_chunks") for _, data in ends]
    return max([*numbers, *(total for total in totals if isinstance(total, int))], default=0)


def _missing_in_replay(known: dict[int, _Numbered], replayed: list[_Numbered]) -> Iterator[Finding]:
    """Compare a replay from the beginning with what was received; either may have ended early."""
    last = max((item.number for item in replayed), default=0)
    found = {item.number for item in replayed}
    if lost := [number for number in known if number <= last and number not in found]:
        yield Finding("lost_events", f"A replay from the beginning lacks {len(lost)} events.")


def _examine_own_ids(resume: Resume) -> Iterator[Finding]:
    """Compare the ids of an app, whose order is not known."""
    had = [_content(item) for item in resume.left.app_events]
    found = [_content(item) for item in resume.resumed.app_events]
    if found and had and found[0] == had[0]:
        yield Finding("starts_over", "The first event of the answer is the first of the stream.")
        return
    position = next(
        (i for i, (event_id, _, _) in enumerate(had) if event_id == resume.last_id), len(had)
    )
    known = {content for content in had[: position + 1] if content[0]}
    if repeated := [content for content in found if content in known]:
        yield Finding("repeated_events", f"{len(repeated)} events came again.")


def _numbered(visit: Visit, secret: str) -> list[_Numbered]:
    """Return the events of the app with ids of the middleware, and with this secret."""
    found = []
    for _, event in visit.app_events:
        parsed = parse_event_id(event.id or "")
        if parsed is not None and parsed.secret == secret and parsed.ending is None:
            found.append(_Numbered(parsed.seq, event.event, event.data))
    return found


def _content(item: TimedEvent) -> tuple[str | None, str, str]:
    return item.event.id, item.event.event, item.event.data


def _ends(visit: Visit) -> bool:
    return bool(visit.control_events.get("complete") or visit.control_events.get("error"))
