"""The report of the doctor, as text and as JSON: no payload, no secret, no event id."""

import textwrap
from collections.abc import Iterator
from typing import Any, Final

from sse_middleware.doctor.diagnosis import Diagnosis, locate
from sse_middleware.doctor.findings import Severity
from sse_middleware.doctor.hops import named_hops
from sse_middleware.doctor.visit import Ending, Visit

_WIDTH: Final = 100
_SHOWN_HEADERS: Final = (
    *("content-type", "content-encoding", "content-length", "transfer-encoding", "cache-control"),
    *("server", "via", "age", "x-cache", "x-accel-buffering", "connection", "alt-svc"),
    *("x-trace-id", "x-stream-id", "x-stream-max-seconds", "x-heartbeat-interval"),
    *("x-silence-threshold", "access-control-allow-origin", "vary"),
)
_ENDINGS: Final = {
    Ending.FAILED: "there was no response",
    Ending.COMPLETE: "the response was complete",
    Ending.CLOSED: "the server closed the connection",
    Ending.CUT: "the connection was cut",
    Ending.LEFT: "it was still open",
}


def text(diagnoses: list[Diagnosis]) -> str:
    """Return the report as text."""
    lines = [line for diagnosis in diagnoses for line in _lines(diagnosis)]
    return "\n".join([*lines, *(_wrapped(sentence, "") for sentence in locate(diagnoses))]).rstrip()


def as_json(diagnoses: list[Diagnosis]) -> dict[str, Any]:
    """Return the report as an object for JSON."""
    return {
        "urls": [_object(diagnosis) for diagnosis in diagnoses],
        "hops": locate(diagnoses),
        "errors": any(diagnosis.has(Severity.ERROR) for diagnosis in diagnoses),
        "warnings": any(diagnosis.has(Severity.WARNING) for diagnosis in diagnoses),
    }


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"{diagnosis.target.method} {diagnosis.target.shown}"
    yield from (f"  {fact}" for fact in _facts(diagnosis))
    for finding in diagnosis.findings:
        yield ""
        yield _wrapped(f"{finding.kind.severity}: {finding.kind.title} [{finding.code}]", "  ")
        yield _wrapped(finding.detail, "    ")
        yield _wrapped(f"Remedy: {finding.kind.remedy}", "    ")
    if not diagnosis.findings:
        yield "  Nothing is wrong."
    yield ""


def _facts(diagnosis: Diagnosis) -> Iterator[str]:
    visit = diagnosis.visit
    if visit.failure:
        return
    version = f"HTTP/{visit.http_version}{', HTTP/2 is offered' if diagnosis.http2 else ''}"
    hops = ", ".join(named_hops(visit)) or "no hop is visible"
    yield f"status {visit.status}, {version}, {visit.header('content-type') or 'no type'}; {hops}"
    if not visit.is_event_stream:
        return
    first = f"{visit.app_events[0].at:.2f} s" if visit.app_events else "none"
    yield (
        f"response start {visit.head_at:.2f} s, first event {first}, "
        f"{len(visit.app_events)} events of the app in {len(visit.chunks)} chunks, "
        f"{visit.body.size} bytes"
    )
    yield (
        f"longest silence {max(length for _, length in visit.gaps()):.2f} s; "
        f"after {visit.ended_at:.1f} s {_ENDINGS[visit.ending]}"
    )
    yield f"mark: {_mark(visit)}"
    yield f"resume: {_resume(diagnosis)}"


def _mark(visit: Visit) -> str:
    if visit.is_marked:
        interval, cap = visit.header("x-heartbeat-interval"), visit.header("x-stream-max-seconds")
        return f"yes, heartbeat {interval} s, cap {cap} s"
    return "no" if visit.header("x-stream-id") else "no header of the middleware"


def _resume(diagnosis: Diagnosis) -> str:
    if diagnosis.resume is None:
        return "not examined"
    count = len(diagnosis.resume.resumed.app_events)
    return f"{count} events of the app after the first one"


def _object(diagnosis: Diagnosis) -> dict[str, Any]:
    visit = diagnosis.visit
    is_stream = visit.is_event_stream
    return {
        "url": diagnosis.target.shown,
        "method": diagnosis.target.method,
        "status": visit.status,
        "http_version": visit.http_version,
        "http2": diagnosis.http2,
        "headers": {name: visit.header(name) for name in _SHOWN_HEADERS if visit.header(name)},
        "hops": named_hops(visit),
        "marked": visit.is_marked,
        "ending": visit.ending,
        "seconds": {
            "response_start": round(visit.head_at, 3),
            "first_event": round(visit.app_events[0].at, 3) if visit.app_events else None,
            "longest_silence": round(max(gap for _, gap in visit.gaps()), 3),
            "total": round(visit.ended_at, 3),
        },
        "events": len(visit.app_events) if is_stream else 0,
        "bytes": visit.body.size,
        "resumed_events": None
        if diagnosis.resume is None
        else len(diagnosis.resume.resumed.app_events),
        "findings": [
            {
                "code": finding.code,
                "severity": finding.kind.severity,
                "title": finding.kind.title,
                "detail": finding.detail,
                "remedy": finding.kind.remedy,
            }
            for finding in diagnosis.findings
        ],
    }


def _wrapped(line: str, indent: str) -> str:
    return textwrap.fill(
        line,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
