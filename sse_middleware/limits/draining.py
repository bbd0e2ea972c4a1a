"""Closing: who comes while the server ends is sent away before the app runs.

An `EventSource` gets an empty stream and comes back soon, to another worker, with the id that it
has; any status but 200 would stop it for good. Who else shows that it wants a stream gets 503. What
may be an ordinary request is answered as ever, and if that is a stream, it ends with the others.
"""

from http import HTTPStatus

from starlette.types import Scope, Send

from sse_middleware.http.own_responses import SHUTDOWN, put_off, refuse
from sse_middleware.http.request import last_event_id
from sse_middleware.http.response_head import body_message, request_headers
from sse_middleware.protocol.client_kinds import EVENT_STREAM, ClientKind, accepted_types
from sse_middleware.protocol.event_ids import parse_event_id
from sse_middleware.stream.context import Context

_RETRY_AFTER_SECONDS = 1


async def turn_away(setup: Context, scope: Scope, send: Send) -> bool:
    """Send a request away that wants a stream; tell whether it was one."""
    if scope.get("method") not in ("GET", "POST"):
        return False
    headers = request_headers(scope.get("headers") or ())
    held = last_event_id(scope) or ""
    has_cursor = parse_event_id(held) is not None
    mark, route = setup.ahead(scope)
    family = setup.family_of(scope, headers, mark, has_cursor=has_cursor)
    if mark is not None:
        wants_it = mark.overrides.get("enabled") is not False
    else:
        shows_it = family is ClientKind.EVENTSOURCE or accepted_types(headers) == {EVENT_STREAM}
        wants_it = shows_it and not setup.options.only_marked
    if not wants_it or family is ClientKind.OFF:
        return False
    for observer in setup.observers:
        observer.rejected(route, SHUTDOWN)
    if family is ClientKind.EVENTSOURCE:
        await put_off(send, scope, setup.options, held)
    else:
        await refuse(send, scope, SHUTDOWN, _RETRY_AFTER_SECONDS)
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
