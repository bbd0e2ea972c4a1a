"""The doctor: visits a stream as a browser does, leaves it, resumes it, and examines each visit."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from sse_middleware.doctor.checks import examine, examine_cors
from sse_middleware.doctor.client import Target, fetch, offers_http2
from sse_middleware.doctor.codings import accepted
from sse_middleware.doctor.findings import Finding, Severity
from sse_middleware.doctor.resume import (
    Resume,
    UntilEvent,
    examine_resume,
    first_id,
    last_number,
    start_id,
)
from sse_middleware.doctor.visit import EVENT_STREAM, Visit

Progress = Callable[[str], None]

_BROWSER: Final = {
    "accept": EVENT_STREAM,
    "cache-control": "no-cache",
    "user-agent": "Mozilla/5.0 (compatible; sse_middleware doctor)",
}
"""The headers by which the middleware and proxies know a browser's `EventSource`."""
_NAMED: Final = {**_BROWSER, "accept": f"{EVENT_STREAM};events=named"}
"""Those of the browser client, for other methods than GET."""
_OF_A_HOP: Final = frozenset(
    (
        *("buffered", "arrived_at_once", "compressed", "content_length", "unreadable", "cached"),
        *("cacheable", "idle_timeout", "cut", "end_unclear", "http_1_0", "no_middleware"),
        *("changed_events", "resume_failed", "starts_over", "lost_events"),
    )
)
"""Findings that a hop can cause, so that the address of another hop shows which."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the doctor does at each URL.

    Attributes:
        seconds: the time for which a stream is read.
        resumes: whether the stream is opened once more, left and resumed.
        origin: the origin of a page for which CORS is checked, `""` for none.
    """

    seconds: float = 30.0
    resumes: bool = True
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found at one URL.

    Attributes:
        target: the request.
        visit: the response to it.
        http2: whether HTTP/2 is offered, `None` if that is not known.
        findings: the findings, the most serious first.
        resume: the resume, `None` if there was none.
    """

    target: Target
    visit: Visit
    http2: bool | None
    findings: list[Finding]
    resume: Resume | None = None

    def has(self, severity: Severity) -> bool:
        """Return whether there is a finding of this severity."""
        return any(finding.kind.severity is severity for finding in self.findings)


def diagnose(target: Target, plan: Plan, progress: Progress) -> Diagnosis:
    """Examine the stream at one URL.

    Args:
        target: the request.
        plan: what to do.
        progress: is called with a line before each step.
    """
    headers = dict(_BROWSER if target.method == "GET" else _NAMED)
    if plan.origin:
        headers["origin"] = plan.origin
    progress(f"reads {target.shown} for at most {plan.seconds:g} s")
    visit = fetch(target, {**headers, "accept-encoding": accepted()}, seconds=plan.seconds)
    findings = examine(visit)
    http2 = None if visit.failure else offers_http2(target)
    if http2 is False:
        findings.append(Finding("six_connections", "HTTP/2 is not offered."))
    if plan.origin and not visit.failure:
        findings += _check_cors(target, plan, visit, headers, progress)
    resume = None
    if plan.resumes and visit.is_event_stream and first_id(visit):
        resume = _resume(target, plan, headers, progress)
        findings += [] if resume is None else examine_resume(resume)
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.kind.severity))
    return Diagnosis(target=target, visit=visit, http2=http2, findings=findings, resume=resume)


def _check_cors(
    target: Target, plan: Plan, visit: Visit, headers: Mapping[str, str], progress: Progress
) -> Iterator[Finding]:
    # A browser sends a preflight for a method, a content type or a header that forms cannot send.
    preflight = None
    own = sorted(target.headers.keys() - {"cookie"})
    if target.method != "GET" or own:
        progress("sends the preflight request of a browser")
        asked = {
            **headers,
            "access-control-request-method": target.method,
            "access-control-request-headers": ", ".join(sorted({*own, "last-event-id"})),
        }
        bare = replace(target, headers={}, body=None)
        preflight = fetch(bare, asked, seconds=plan.seconds, method="OPTIONS")
    credentials = "cookie" in target.headers
    yield from examine_cors(visit, preflight, plan.origin, credentials=credentials)


def _resume(
    target: Target, plan: Plan, headers: Mapping[str, str], progress: Progress
) -> Resume | None:
    """Leave a new stream after its first event, and return to it twice."""
    progress("opens the stream again, and leaves it after its first event")
    left = fetch(target, headers, seconds=plan.seconds, until=UntilEvent(1))
    last_id = first_id(left)
    if not last_id:
        return None
    progress("returns with the id of this event")
    resumed = fetch(target, {**headers, "last-event-id": last_id}, seconds=plan.seconds)
    replayed = None
    if beginning := start_id(left):
        progress("compares the stream from its beginning with what has been received")
        replayed = fetch(
            target,
            {**headers, "last-event-id": beginning},
            seconds=plan.seconds,
            until=UntilEvent(last_number(resumed)),
        )
    return Resume(left=left, last_id=last_id, resumed=resumed, replayed=replayed)


def locate(diagnoses: list[Diagnosis]) -> list[str]:
    """Return, in sentences, which hop causes a finding that is at an outer URL only.

    Args:
        diagnoses: those of the URLs of one stream, from the outermost hop to the app.
    """
    sentences = []
    for outer, inner in pairwise(diagnoses):
        if not inner.visit.is_event_stream:
            continue
        known = {finding.code for finding in inner.findings}
        sentences += [
            f"`{finding.code}` is found at {outer.target.shown} and not at "
            f"{inner.target.shown}: the first of them causes it, or a hop between them."
            for finding in outer.findings
            if finding.code in _OF_A_HOP - known
        ]
    return sentences
