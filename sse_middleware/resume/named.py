"""Streams by name or public id: the response of a `resume_endpoint`, for any kind of client.

A request finds only the streams of its own identity. Each client gets the stream in the form of its
kind: an `EventSource` with ids and control events, any other client exactly the bytes of the app.
"""

import logging
from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.types import Message, Receive, Send

from sse_middleware.errors import StoreError
from sse_middleware.http.own_responses import send_empty
from sse_middleware.http.request import ResumeIntent, SSERequest, stream_name
from sse_middleware.http.response_head import BODY
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.event_ids import Ending, EventId, is_stream_id, stream_id
from sse_middleware.resume.authorization import Authorization, cors_headers, without_cors
from sse_middleware.resume.handler import ResumeHandler, RunApp, warn_unavailable
from sse_middleware.resume.log_events import number_of
from sse_middleware.resume.lookup import LimitReachedError
from sse_middleware.stores.base import ENDED_BY_APP, LogSnapshot, LogState
from sse_middleware.stream.context import Context

logger = logging.getLogger("sse_middleware")

_STOPS: Final = ("POST", "DELETE")
_SEQUENCE: Final = "starting_after"
_AFTER: Final = ("after", _SEQUENCE)
_MAX_DIGITS: Final = 15


class _Position(NamedTuple):
    """A position in a query: the parameter, and its value."""

    parameter: str
    value: int


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
        """Send the stream of a request, or 204 if there is none for the client; or stop it.

        Args:
            name: the name, `""` for none. An `X-Stream-ID` has precedence.
            request: the request.
            receive: the server's `receive`.
            send: the server's `send`.
            replays: whether a stream that has ended is sent too, as long as it is kept.
        """
        stops, is_head = request.method in _STOPS, request.method == "HEAD"
        if is_head:
            request, send = _as_get(request), _without_body(send)
        try:
            if not stops:
                self._handler.lookup.check_room()
            found = await self._find(name, request)
            if found is None or (stops and _is_cross_site(request, found)):
                await send_empty(send, request, HTTPStatus.NO_CONTENT)
            elif stops:
                await self._context.store.cancel(found.info.stream_id)
                await self._send_nothing(found, request, send)
            else:
                found = found._replace(info=without_cors(found.info, request))
                run_app = RunApp(receive, send)
                await self._send(found, request, run_app, replays=replays, is_head=is_head)
        except LimitReachedError as exc:
            kind = ClientKind.PLAIN if stops else request.client_kind
            await self._handler.reject(exc, request, send, client_kind=kind)
        except StoreError as exc:
            warn_unavailable(exc)
            if stops or request.client_kind is not ClientKind.EVENTSOURCE:
                await send_empty(send, request, HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                await self._handler.send_retry_later(request.last_event_id, request, send)

    async def _find(self, name: str, request: SSERequest) -> LogSnapshot | None:
        """Return the log that a request selects, if it may read it."""
        identity = self._context.identities.of(request) or ""
        if not identity and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "A request to a resume_endpoint has no identity, so that it finds no stream. Set "
                "SSEMiddleware(identify=...) or SSE_IDENTITY_COOKIES, or have clients send an "
                "Authorization header. This is logged once."
            )
        public_id = request.headers.get(b"x-stream-id")
        if public_id is not None:
            return await self._find_by_id(public_id.decode("latin-1"), identity, request)
        if not (name and identity):
            return None
        # A page that only looks whether a stream is running gets its response at once.
        knows_of_it = (
            request.method in _STOPS
            or _position_in(request) is not None
            or request.intent.event_id is not None
        )
        key = stream_name(name, identity)
        if knows_of_it:
            found = await self._handler.lookup.find_named(key, request)
        else:
            found = await self._context.store.find_named(key)
        return found if await self._access.may_read_named(found, request) else None

    async def _find_by_id(
        self, public_id: str, identity: str, request: SSERequest
    ) -> LogSnapshot | None:
        """Return the log of a public id, which is no secret: the identity gives access."""
        if not (identity and is_stream_id(public_id)):
            return None
        found = await self._handler.lookup.find(public_id, request)
        if found is None or await self._access.may_read_named(found, request):
            return found
        await self._handler.lookup.find_nothing(request)
        return None

    async def _send(
        self,
        found: LogSnapshot,
        request: SSERequest,
        run_app: RunApp,
        *,
        replays: bool,
        is_head: bool,
    ) -> None:
        """Send a log from its first event, or from the position of the client."""
        kind, event_id = request.client_kind, request.intent.event_id
        after: int | None
        has_id, reset = False, ""
        if event_id is not None and stream_id(event_id.secret) == found.info.stream_id:
            after, has_id = event_id.seq, event_id.ending is None
        else:
            after = await self._position(found, request, is_head=is_head)
            reset = "gone" if after is None and _has_part(event_id) else ""
        if _is_over(found, after, kind, has_id=has_id, replays=replays) or (
            # Such a client cannot be notified of events that are missing.
            kind is not ClientKind.EVENTSOURCE and (after or 0) < found.first - 1
        ):
            await self._send_nothing(found, request, run_app.send)
            return
        await self._handler.read(
            found,
            request,
            run_app,
            after=after or 0,
            secret=found.info.secret,
            reset=reset,
            client_kind=kind,
            is_head=is_head,
        )

    async def _position(
        self, found: LogSnapshot, request: SSERequest, *, is_head: bool
    ) -> int | None:
        """Return the number of the event after which the query resumes, `None` if it has none."""
        position = _position_in(request)
        if position is None or position.parameter != _SEQUENCE:
            return None if position is None else position.value
        if is_head and found.state is LogState.RUNNING and found.first == 1:
            return position.value  # the response is the same, and a HEAD does not read the log
        number = await number_of(self._context.store, found, position.value)
        return position.value if number is None else number

    async def _send_nothing(self, found: LogSnapshot, request: SSERequest, send: Send) -> None:
        headers = cors_headers(found.info, request)
        await send_empty(send, request, HTTPStatus.NO_CONTENT, headers)


def _as_get(request: SSERequest) -> SSERequest:
    """Return a HEAD as the GET whose status and headers it gets."""
    other = request.with_scope({**request.scope, "method": "GET"})
    other.intent = ResumeIntent(other.event_id)
    return other


def _without_body(send: Send) -> Send:
    """Return a `send` for the response to a HEAD: of a rejection, it sends the headers alone."""

    async def send_empty_parts(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == BODY else message)

    return send_empty_parts


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
    return not (has_id and (found.has_end_frame or state not in ENDED_BY_APP))


def _has_part(event_id: EventId | None) -> bool:
    """Return whether a client has a part of another stream."""
    if event_id is None or not event_id.seq:
        return False
    return event_id.ending in (None, Ending.CUT)


def _position_in(request: SSERequest) -> _Position | None:
    """Return the position in the query, `None` if it has none."""
    for name, value in request.query:
        if name in _AFTER and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
            return _Position(name, int(value))
    return None


def _is_cross_site(request: SSERequest, found: LogSnapshot) -> bool:
    """Return whether a page of another site makes the request, with the cookies of the user.

    Browsers send a simple POST to other sites without asking (CORS). Clients that are no browsers
    do not send the header (https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header).
    """
    site = request.headers.get(b"sec-fetch-site", b"")
    return site == b"cross-site" and request.origin != found.info.origin
