"""What one visit shows: a list of checks, each of which returns findings."""

from collections.abc import Callable, Iterator
from typing import Final

from sse_middleware.doctor.codings import codings_of, describe
from sse_middleware.doctor.delays import arrived_at_once, longest_delay, longest_server_pause
from sse_middleware.doctor.findings import Finding
from sse_middleware.doctor.hops import cache_evidence, suspects
from sse_middleware.doctor.visit import Ending, Visit

SILENT_SECONDS: Final = 20.0
"""Some proxies cut a connection after 30 s without a byte."""
IDLE_SECONDS: Final = 1.0
"""No idle timeout is shorter."""
_ENDED: Final = (Ending.COMPLETE, Ending.CLOSED)
_FORBIDS_CACHES: Final = frozenset(("no-cache", "no-store", "private", "max-age=0"))
_NO_CONTENT: Final = 204

Check = Callable[[Visit], Iterator[Finding]]


def examine(visit: Visit) -> list[Finding]:
    """Return what a visit shows.

    If there is no event stream, that is the only finding.
    """
    if visit.failure:
        return [Finding("unreachable", f"{visit.failure}.")]
    if visit.status not in range(200, 300) or visit.status == _NO_CONTENT:
        return [Finding("status", _status(visit))]
    if not visit.is_event_stream:
        shown = visit.header("content-type") or "missing"
        return [Finding("no_event_stream", f"The content type is {shown[:100]}.")]
    return [finding for check in _CHECKS for finding in check(visit)]


def _status(visit: Visit) -> str:
    details = [f"The status is {visit.status}, after {visit.head_at:.1f} s"]
    details += (
        f"{name}: {value[:200].partition('?')[0]}"
        for name in ("location", "retry-after", "allow", "www-authenticate", "server")
        if (value := visit.header(name))
    )
    return "; ".join(details) + "."


def _buffering(visit: Visit) -> Iterator[Finding]:
    delay = longest_delay(visit)
    wait = arrived_at_once(visit)
    if delay is not None:
        detail = f"Events were held back for up to {delay.seconds:.1f} s: {delay.evidence}."
        yield Finding("buffered", f"{detail} {suspects(visit)}")
    elif wait is not None and not visit.control_events:
        count = len(visit.body.events)
        detail = f"{count} events arrived at once after {wait:.1f} s."
        yield Finding("arrived_at_once", f"{detail} {suspects(visit)}")


def _encoding(visit: Visit) -> Iterator[Finding]:
    encoding = visit.header("content-encoding")
    if codings_of(encoding):
        yield Finding("compressed", f"Content-Encoding: {describe(encoding)}.")
    if visit.body.unreadable:
        detail = f"Content-Encoding: {describe(encoding)}. {visit.body.unreadable}"
        yield Finding("unreadable", detail)
    if length := visit.header("content-length"):
        yield Finding("content_length", f"Content-Length: {length}.")


def _caching(visit: Visit) -> Iterator[Finding]:
    policy = visit.header("cache-control")
    if evidence := cache_evidence(visit):
        yield Finding("cached", f"{evidence}.")
    elif _FORBIDS_CACHES.isdisjoint(part.strip().lower() for part in policy.split(",")):
        yield Finding("cacheable", f"Cache-Control: {policy or 'missing'}.")


def _end(visit: Visit) -> Iterator[Finding]:
    if visit.ending is Ending.CUT:
        gaps = [length for _, length in visit.gaps()]
        if gaps[-1] >= max(IDLE_SECONDS, 0.9 * max(gaps)):
            detail = f"Nothing had arrived for {gaps[-1]:.1f} s."
            yield Finding("idle_timeout", f"{detail} {_heartbeats(visit)}")
        else:
            detail = (
                f"It was cut after {visit.ended_at:.1f} s, {gaps[-1]:.1f} s after the last byte."
            )
            yield Finding("cut", detail)
    if visit.control_events.get("error") or any(
        item.event.event == "error" for item in visit.app_events
    ):
        yield Finding("failed", f"The trace id is {visit.header('x-trace-id') or 'unknown'}.")
    if visit.ending in _ENDED and not visit.body.unreadable:
        if not visit.app_events:
            yield Finding("no_events", f"It has {visit.body.size} bytes.")
        if visit.body.rest:
            yield Finding("unfinished_event", f"{visit.body.rest} bytes follow the last event.")


def _form(visit: Visit) -> Iterator[Finding]:
    is_framed = visit.header("transfer-encoding") or visit.header("content-length")
    if visit.http_version == "1.0":
        yield Finding("http_1_0", "Each hop has a version of its own; this is the outermost.")
    elif not is_framed:
        yield Finding("end_unclear", "The response has neither chunks nor a length.")


def _silence(visit: Visit) -> Iterator[Finding]:
    start, longest = max(visit.gaps(), key=lambda gap: gap[1])
    if longest >= SILENT_SECONDS:
        detail = f"No byte for {longest:.1f} s, from {start:.1f} s on."
        yield Finding("silence", f"{detail} {_heartbeats(visit)}")
    pause, interval = longest_server_pause(visit), _interval(visit)
    if interval and pause >= 2 * interval + IDLE_SECONDS:
        yield Finding(
            "server_paused",
            f"By the clock of the server, {pause:.1f} s passed between two heartbeats; "
            f"the interval is {interval:g} s.",
        )


def _mark(visit: Visit) -> Iterator[Finding]:
    if not visit.header("x-stream-id"):
        yield Finding("no_middleware", "X-Stream-ID is missing.")
    elif not visit.is_marked:
        yield Finding("unmarked", "X-Stream-ID is there, and X-Heartbeat-Interval is not.")
    if visit.app_events and not any(item.event.id for item in visit.app_events):
        yield Finding("no_ids", f"None of {len(visit.app_events)} events has an id.")


def _heartbeats(visit: Visit) -> str:
    interval = visit.header("x-heartbeat-interval")
    if interval:
        return f"The announced heartbeat interval is {interval} s."
    return "No heartbeat is announced."


def _interval(visit: Visit) -> float:
    try:
        return float(visit.header("x-heartbeat-interval"))
    except ValueError:
        return 0.0


_CHECKS: Final[tuple[Check, ...]] = (
    _buffering,
    _encoding,
    _caching,
    _end,
    _form,
    _silence,
    _mark,
)


def examine_cors(
    visit: Visit, preflight: Visit | None, origin: str, *, credentials: bool
) -> Iterator[Finding]:
    """Yield what forbids a page of another origin to read a stream.

    Args:
        visit: the response to the request with this origin.
        preflight: the response to the `OPTIONS` request before it, `None` if a browser sends none.
        origin: the origin of the page.
        credentials: whether the request has cookies.
    """
    if preflight is not None and (reason := _preflight_problem(preflight, origin)):
        yield Finding("cors_preflight", reason)
    if reason := _origin_problem(visit, origin, credentials=credentials):
        yield Finding("cors", reason)


def _origin_problem(visit: Visit, origin: str, *, credentials: bool) -> str:
    allowed = visit.header("access-control-allow-origin")
    if allowed not in (origin, "*") or (credentials and allowed == "*"):
        return f"Access-Control-Allow-Origin: {allowed[:200] or 'missing'}."
    allows_credentials = visit.header("access-control-allow-credentials") == "true"
    if credentials and not allows_credentials:
        return "Access-Control-Allow-Credentials is not true."
    return ""


def _preflight_problem(visit: Visit, origin: str) -> str:
    if visit.failure or visit.status not in range(200, 300):
        return f"The answer to OPTIONS is {visit.failure or visit.status}."
    if visit.header("access-control-allow-origin") not in (origin, "*"):
        return "The answer to OPTIONS has no Access-Control-Allow-Origin for it."
    allowed = visit.header("access-control-allow-headers").lower()
    if "last-event-id" not in allowed and "*" not in allowed:
        return "Access-Control-Allow-Headers lacks last-event-id."
    return ""
