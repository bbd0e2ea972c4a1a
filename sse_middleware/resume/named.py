"""Streams by name: the response of a `resume_endpoint`, for any kind of client.

A name belongs to an identity, so that a request finds only the streams of its own identity. Each
client gets the stream in the form of its kind: an `EventSource` with ids and control events, any
other client exactly the bytes of the app.
"""

import logging
from http import HTTPStatus
from typing import Final

from starlette.types import Receive, Send

from sse_middleware.errors import StoreError
from sse_middleware.http.own_responses import send_empty
from sse_middleware.http.request import SSERequest, stream_name
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.event_ids import EventId, stream_id
from sse_middleware.resume.authorization import Authorization
from sse_middleware.resume.handler import ResumeHandler, RunApp, warn_unavailable
from sse_middleware.stores.base import LogSnapshot, LogState
from sse_middleware.stream.context import Context

logger = logging.getLogger("sse_middleware")

_STOPS: Final = ("POST", "DELETE")
_AFTER: Final = ("after", "starting_after")
_MAX_DIGITS: Final = 15


class NamedStreams:
    """Respond to the requests to a `resume_endpoint`.

    Args:
        context: the objects that all requests share.
        handler: sends the rest of a log.
    """

    def __init__(self, context: Context, handler: ResumeHandler) -> None:
        self._context = context
        self._handler = handler
        self._access = Authorization(context)
        self._has_warned = False

    async def respond(
        self, name: str, request: SSERequest, receive: Receive, send: Send, *, replays: bool
    ) -> None:
        """Send the stream with a name, or 204 if there is none for the client; or stop it.

        Args:
            name: the name.
            request: the request.
            receive: the server's `receive`.
            send: the server's `send`.
            replays: whether a stream that has ended is sent too, as long as it is kept.
        """
        stops = request.method in _STOPS
        try:
            found = await self._find(name, request)
            if found is None or (stops and _is_cross_site(request, found)):
                await send_empty(send, request, HTTPStatus.NO_CONTENT)
            elif stops:
                await self._context.store.cancel(found.info.stream_id)
                await send_empty(send, request, HTTPStatus.NO_CONTENT)
            else:
                await self._send(found, request, RunApp(receive, send), replays=replays)
        except StoreError as exc:
            warn_unavailable(exc)
            if stops or request.client_kind is not ClientKind.EVENTSOURCE:
                await send_empty(send, request, HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                await self._handler.send_retry_later(request.last_event_id, request, send)

    async def _find(self, name: str, request: SSERequest) -> LogSnapshot | None:
        """Return the log of a name that the request may read."""
        identity = self._context.identities.of(request) or ""
        if not identity and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "A request to a resume_endpoint has no identity, so that it finds no stream. Set "
                "SSEMiddleware(identify=...) or SSE_IDENTITY_COOKIES, or have clients send an "
                "Authorization header. This is logged once."
            )
        # A page that only looks whether a stream is running gets its response at once.
        knows_of_it = (
            request.method in _STOPS
            or _after(request) is not None
            or request.intent.event_id is not None
        )
        find = self._handler.find_named if knows_of_it else self._context.store.find_named
        found = await find(stream_name(name, identity))
        return found if await self._access.may_read_named(found, request) else None

    async def _send(
        self, found: LogSnapshot, request: SSERequest, run_app: RunApp, *, replays: bool
    ) -> None:
        """Send a log from its first event, or from the position of the client."""
        kind, event_id = request.client_kind, request.intent.event_id
        after, has_id = _after(request), event_id is not None and _is_in(found, event_id)
        if event_id is not None and has_id:
            after = event_id.seq
        if _is_over(found, after, kind, has_id=has_id, replays=replays) or (
            # Such a client cannot be notified of events that are missing.
            kind is not ClientKind.EVENTSOURCE and (after or 0) < found.first - 1
        ):
            await send_empty(run_app.send, request, HTTPStatus.NO_CONTENT)
            return
        had_another = after is None and event_id is not None and event_id.ending is None
        reset = "gone" if had_another and event_id is not None and event_id.seq else ""
        await self._handler.read(
            found,
            request,
            run_app,
            after=after or 0,
            secret=found.info.secret,
            reset=reset,
            client_kind=kind,
        )


def _is_over(
    found: LogSnapshot, after: int | None, kind: ClientKind, *, has_id: bool, replays: bool
) -> bool:
    """Return whether a log has nothing more for a client.

    Args:
        found: the log.
        after: the number of the last event that the client has, `None` without a position.
        kind: the kind of the client.
        has_id: whether it has an event id of the stream, so that it knows of no end yet.
        replays: whether a stream that has ended is sent to a client without a position.
    """
    state = found.state
    if state is LogState.RUNNING:
        return False
    if state in (LogState.APP_OWNS_IDS, LogState.GONE):
        return True
    if after is None:
        return not (replays and state is not LogState.CANCELLED and found.last)
    if after != found.last:
        return after > found.last
    if kind is not ClientKind.EVENTSOURCE:
        # It may have been cut before the end, which shows whether the stream has finished.
        return state is LogState.CANCELLED
    return not (has_id and (found.has_end_frame or state is not LogState.FINISHED))


def _is_in(found: LogSnapshot, event_id: EventId) -> bool:
    return event_id.ending is None and stream_id(event_id.secret) == found.info.stream_id


def _after(request: SSERequest) -> int | None:
    """Return the number of the event after which the query resumes, `None` if it has none."""
    for name, value in request.query:
        if name in _AFTER and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
            return int(value)
    return None


def _is_cross_site(request: SSERequest, found: LogSnapshot) -> bool:
    """Return whether a page of another site makes the request, with the cookies of the user.

    Browsers send a simple POST to other sites without asking (CORS). Clients that are no browsers
    do not send the header (https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header).
    """
    site = request.headers.get(b"sec-fetch-site", b"")
    return site == b"cross-site" and request.origin != found.info.origin
