"""Closing: who comes while the server ends is sent away before the app runs.

An `EventSource` gets an empty stream and comes back soon, to another worker, with the id that it
has; any status but 200 would stop it for good. Who else shows that it wants a stream gets 503. What
may be an ordinary request is answered as ever, and if that is a stream, it ends with the others.
"""

import json
from http import HTTPStatus

from starlette.types import Scope, Send

from sse_middleware.claims import last_event_id
from sse_middleware.cursors import parse_cursor
from sse_middleware.families import Family, family_of, wants_events_only
from sse_middleware.headers import request_headers
from sse_middleware.reader import OWN_HEADERS
from sse_middleware.resume import Resumption
from sse_middleware.setup import Setup
from sse_middleware.writer import body_message

_RETRY_AFTER_SECONDS = 1
_BODY = json.dumps(
    {
        "error": {
            "type": "server_error",
            "code": "shutdown",
            "message": "The server is shutting down.",
        }
    }
).encode()
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(_BODY)),
    (b"retry-after", b"%d" % _RETRY_AFTER_SECONDS),
    *OWN_HEADERS,
]


async def turn_away(setup: Setup, resumption: Resumption, scope: Scope, send: Send) -> bool:
    """Send a request away that wants a stream; tell whether it was one."""
    family = _wanted(setup, scope)
    if family is None or family is Family.OFF:
        return False
    if family is Family.EVENTSOURCE:
        await resumption.send_away(last_event_id(scope), scope, send)
    else:
        await send(
            {
                "type": "http.response.start",
                "status": HTTPStatus.SERVICE_UNAVAILABLE.value,
                "headers": [*_HEADERS],
            }
        )
        await send(body_message(_BODY, more_body=False))
    return True


async def tell_readiness(send: Send, *, ready: bool) -> None:
    """Answer whoever asks whether the server takes requests: 200, or 503 once it ends."""
    body = b"ready\n" if ready else b"draining\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send(body_message(body, more_body=False))


def _wanted(setup: Setup, scope: Scope) -> Family | None:
    """Tell what kind of stream a request wants, `None` where it may be another thing."""
    if scope.get("method") not in ("GET", "POST"):
        return None
    headers = request_headers(scope.get("headers") or ())
    has_cursor = parse_cursor(last_event_id(scope) or "") is not None
    mark = setup.mark_ahead(scope)
    family = family_of(scope["method"], headers, has_cursor=has_cursor)
    if mark is not None:
        return None if mark.overrides.get("enabled") is False else mark.family or family
    if setup.options.only_marked:
        return None
    shows_it = family is Family.EVENTSOURCE or wants_events_only(headers)
    return family if shows_it else None
