"""The findings of the doctor: a table of what can be wrong with a stream, each with its remedy."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Severity(enum.StrEnum):
    """How serious a finding is, the most serious first."""

    ERROR = "error"
    """Clients of the stream lose events, get them late, or get nothing."""
    WARNING = "warning"
    """The stream works, and breaks if a network, a proxy or a worker does."""
    NOTE = "note"
    """Something to know."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table.

    Attributes:
        severity: how serious it is.
        title: what has been found, in a sentence.
        remedy: what to change.
    """

    severity: Severity
    title: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding about one stream.

    Attributes:
        code: the key of its kind in `FINDINGS`.
        detail: the evidence, in one or more sentences; never a payload, a cookie or an event id.
    """

    code: str
    detail: str

    @property
    def kind(self) -> Kind:
        """The row of the table."""
        return FINDINGS[self.code]


_ERROR, _WARNING, _NOTE = Severity

FINDINGS: Final[Mapping[str, Kind]] = {
    "unreachable": Kind(
        _ERROR,
        "There is no response.",
        "Check the address, the certificate, and that the server runs. Behind a proxy, a "
        "connection that is closed without a response often means that the app is not there.",
    ),
    "status": Kind(
        _ERROR,
        "The response is not a success.",
        "401, 403: send credentials with `--header`. 404, 405: check the path and `--method`. 3xx: "
        "use the address of `Location`. 429, 503: a limit is reached or the server shuts down. "
        "502, 504: the proxy does not reach the app, or not in time. 204: an `EventSource` stops.",
    ),
    "no_event_stream": Kind(
        _ERROR,
        "The response is no event stream.",
        'Send `content-type: text/event-stream` (in Starlette: `media_type="text/event-stream"`). '
        "If the app does, the response comes from elsewhere: a login page, an error page of a "
        "proxy, or another route.",
    ),
    "buffered": Kind(
        _ERROR,
        "A hop between the app and here holds events back.",
        "Turn off response buffering for this path at the hop that is named. nginx: "
        "`proxy_buffering off;`, or remove `proxy_ignore_headers X-Accel-Buffering;`. An nginx "
        "behind another one removes the header `X-Accel-Buffering` for the outer one: set "
        "`proxy_pass_header X-Accel-Buffering;` in the inner one. Also look for compression, and "
        "for middleware of the app that collects bodies.",
    ),
    "arrived_at_once": Kind(
        _WARNING,
        "All events arrived at the same time, after a wait.",
        "The app sends them so, or a hop holds the response back until its end. To find out, give "
        "the address of the app itself as a second URL, or mark the route: the times in heartbeats "
        "then show which it is.",
    ),
    "compressed": Kind(
        _WARNING,
        "The stream is compressed.",
        "Most hops that compress collect bytes first, and thereby hold events back. Exclude "
        "`text/event-stream`: nginx: remove it from `gzip_types`, `brotli_types` and `zstd_types`; "
        "a compressing middleware of the app: exclude the path; a CDN: turn off compression for "
        "it. Marked streams have `no-transform`, which CDNs obey.",
    ),
    "unreadable": Kind(
        _ERROR,
        "The body cannot be decoded.",
        "The content coding was not asked for, or the data does not fit it. The events were not "
        "examined. Turn off compression for `text/event-stream` at each hop.",
    ),
    "content_length": Kind(
        _ERROR,
        "The stream has a `content-length`, so that a hop has collected it as a whole.",
        "Send the response as a stream. If the app does, a middleware of the app or a hop collects "
        "bodies (for caching, for an ETag, for signing): exclude `text/event-stream` there.",
    ),
    "cached": Kind(
        _ERROR,
        "The stream comes from a cache.",
        "Turn off caching for this path, and send `Cache-Control: no-store` or `no-cache`.",
    ),
    "cacheable": Kind(
        _WARNING,
        "Nothing forbids caches to store the stream.",
        "Send `Cache-Control: no-cache`, as the middleware does unless the app sends a header of "
        "its own; check that no hop replaces the header.",
    ),
    "idle_timeout": Kind(
        _ERROR,
        "The connection was cut during a silence, as by an idle timeout.",
        "Mark the route, and set `SSE_HEARTBEAT_INTERVAL` to less than half of the silence; or "
        "raise the timeout of the hop (nginx: `proxy_read_timeout`; HAProxy: `timeout server` and "
        "`timeout client`; load balancers of clouds: idle timeout).",
    ),
    "cut": Kind(
        _ERROR,
        "The connection was cut before the end of the response.",
        "Look for an exception of the app, a worker that was killed, and a limit on the total "
        "duration at a hop or of the server (always after the same time, such as 30, 60 or 300 s).",
    ),
    "failed": Kind(
        _ERROR,
        "The stream has ended with an error event of the server.",
        "Search the logs of the server for the trace id of the response.",
    ),
    "no_events": Kind(
        _WARNING,
        "The response has ended without an event of the app.",
        "If there should be events: each needs a `data` line and a blank line after it.",
    ),
    "unfinished_event": Kind(
        _WARNING,
        "The last event has no blank line after it, so that clients discard it.",
        "End each event with a blank line, also the last one.",
    ),
    "silence": Kind(
        _WARNING,
        "There was a long silence, in which many proxies cut a connection.",
        "Mark the route; the middleware then sends heartbeats. If it is marked, compare "
        "`X-Heartbeat-Interval`.",
    ),
    "server_paused": Kind(
        _WARNING,
        "The server itself sent its heartbeats late: its event loop was blocked.",
        "Find the code that blocks the event loop (PYTHONASYNCIODEBUG=1 logs it), and run it in a "
        "thread. The network is not the cause.",
    ),
    "no_middleware": Kind(
        _WARNING,
        "No header of the middleware has arrived.",
        "Add `SSEMiddleware` to the app, and mark the route. If it is there: the path is left out "
        "(`SSE_INCLUDE`, `SSE_EXCLUDE`, `SSE_ONLY_MARKED`), the client is outside "
        "`SSE_ROLLOUT_PERCENT`, or a hop removes `X-Stream-ID`.",
    ),
    "unmarked": Kind(
        _WARNING,
        "The route is not marked: no heartbeats, no resume, no clean end.",
        'Mark it: `@streaming` on the endpoint, `SSEMiddleware(mark="/path/*")`, or `SSE_MARK`.',
    ),
    "no_ids": Kind(
        _WARNING,
        "The events have no ids, so that a client that reconnects starts over.",
        "Mark the route: an `EventSource` then receives ids. Other clients resume by name.",
    ),
    "starts_over": Kind(
        _WARNING,
        "A client that reconnects with its last event id receives the stream from its beginning.",
        "An app that sends ids has to continue after `Last-Event-ID`; or leave the ids to the "
        'middleware, or have it keep those of the app (`ids="app"`). Check that no hop removes the '
        "header `Last-Event-ID`.",
    ),
    "resume_failed": Kind(
        _ERROR,
        "A client that reconnects with its last event id receives no stream.",
        "The status or the cause is named. A stream that was cut has to be continued with a 2xx.",
    ),
    "resume_gone": Kind(
        _ERROR,
        "The server does not know the stream that a client has just left.",
        "With several workers or servers, set `SSE_REDIS_URL` so that they share their streams. "
        "With one: the client has to send the same `Authorization` and cookies as before, "
        "`SSE_LINGER_SECONDS` and `SSE_REPLAY_MAX_EVENTS` must not be 0, and `SSE_REPLAY_TTL` not "
        "too short.",
    ),
    "resume_unavailable": Kind(
        _ERROR,
        "The store of the streams is unavailable, so that a client cannot resume now.",
        "Check Redis, and the warnings in the log of the server.",
    ),
    "lost_events": Kind(
        _ERROR,
        "A resumed stream lacks events.",
        "Raise `SSE_REPLAY_MAX_EVENTS` and `SSE_REPLAY_MAX_BYTES` if the kept events were "
        "truncated. Otherwise a hop changes streams, or this is a bug: report it.",
    ),
    "repeated_events": Kind(
        _ERROR,
        "A resumed stream repeats events that the client has.",
        "An app that sends ids has to continue after `Last-Event-ID`, not at it. With ids of the "
        "middleware, this is a bug: report it.",
    ),
    "changed_events": Kind(
        _ERROR,
        "The same events have other contents when they are sent again.",
        "A hop that rewrites bodies is the usual cause: send `Cache-Control: no-transform`, and "
        "exclude `text/event-stream` there.",
    ),
    "cors": Kind(
        _ERROR,
        "A page of this origin may not read the stream.",
        "Add a CORS middleware outside of `SSEMiddleware`, or let the proxy send "
        "`Access-Control-Allow-Origin` with this origin; for requests with cookies not `*`, and "
        "with `Access-Control-Allow-Credentials: true`.",
    ),
    "cors_preflight": Kind(
        _ERROR,
        "A browser does not send the request of a page of this origin: the preflight is rejected.",
        "Answer `OPTIONS` with 2xx, `Access-Control-Allow-Origin`, `-Allow-Methods` and "
        "`-Allow-Headers`, which lists `content-type`, `last-event-id` and those of `--header`.",
    ),
    "end_unclear": Kind(
        _WARNING,
        "Only the closed connection marks the end, so that a cut looks like an end.",
        "Use HTTP/1.1 at each hop (nginx before 1.29.7: `proxy_http_version 1.1;`), without "
        "`Connection: close`; or mark the route, whose streams end with an event.",
    ),
    "http_1_0": Kind(
        _WARNING,
        "The response has the version HTTP/1.0, in which a stream has no end of its own.",
        "Use HTTP/1.1 or later at each hop.",
    ),
    "six_connections": Kind(
        _NOTE,
        "A browser opens at most six connections to this origin, for all tabs and requests.",
        "Offer HTTP/2 at the outermost hop, which needs TLS; or close streams in hidden tabs.",
    ),
}
"""The kinds of findings by their code."""


def markdown() -> str:
    """Return the table of all kinds, as docs/doctor.md has it."""
    rows = ["| code | severity | finding | remedy |", "|---|---|---|---|"]
    rows += (
        f"| `{code}` | {kind.severity} | {kind.title} | {kind.remedy} |"
        for code, kind in FINDINGS.items()
    )
    return "\n".join(rows)
