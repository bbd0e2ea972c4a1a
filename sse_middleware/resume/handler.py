"""Resume: the response to a request with an event id, decided before the app runs.

If the client may read the stream, it gets the rest of it, or 204 if it has all of a stream that has
ended. Otherwise the app responds, and a `reset` announces that its response is a new one. To a
client that may not read a stream, the response is the same as if the stream did not exist.
"""

import logging
from http import HTTPStatus
from typing import Final, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Send

from sse_middleware.errors import StoreError
from sse_middleware.http.body_digest import BodyDigest
from sse_middleware.http.own_responses import (
    ReplacedResponse,
    ended_stream,
    send_empty,
    send_rejection,
    send_retry_later,
)
from sse_middleware.http.request import NO_INTENT, RESUMABLE_METHODS, ResumeIntent, SSERequest
from sse_middleware.http.routes import UNMATCHED, Mark
from sse_middleware.http.starlette_routes import route_ahead
from sse_middleware.protocol.client_kinds import EVENT_STREAM, ClientKind
from sse_middleware.protocol.event_ids import (
    Ending,
    EventId,
    format_event_id,
    new_secret,
    stream_id,
)
from sse_middleware.resume.app_ids import AppIds
from sse_middleware.resume.authorization import Authorization, cors_headers
from sse_middleware.resume.endpoint import ResumeEndpoint
from sse_middleware.resume.lookup import LimitReachedError, Lookup, MissLimit
from sse_middleware.resume.stop import read_stop
from sse_middleware.stores.base import ENDED_BY_APP, LogSnapshot, LogState
from sse_middleware.stream.context import Context
from sse_middleware.stream.follower import Follower

logger = logging.getLogger("sse_middleware")

_UNSTARTED: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
"""Statuses of an app that cannot start the stream again."""


class RunApp(NamedTuple):
    """The app handles the request, with these in place of the server's `receive` and `send`."""

    receive: Receive
    send: Send


class ResumeHandler:
    """Handle the requests of clients that reconnect to a stream.

    Args:
        context: the objects that all requests share.
        one_process: whether streams are kept in this process alone.
        limit: limits the unknown ids that a client may send, `None` for no limit.

    Attributes:
        lookup: finds the streams.
    """

    def __init__(
        self, context: Context, *, one_process: bool, limit: MissLimit | None = None
    ) -> None:
        self._context = context
        self.lookup = Lookup(context, limit)
        self._access = Authorization(context)
        self._app_ids = AppIds(context, self.lookup, self._access)
        self._warns = one_process

    async def handle(self, request: SSERequest, receive: Receive, send: Send) -> RunApp | None:
        """Send the response to a request with an event id, or return how the app sends it."""
        event_id, held = request.event_id, request.last_event_id
        run_app = RunApp(receive, send)
        try:
            if request.is_stop:
                return await self._stop(request, run_app)
            if held is None or request.method not in RESUMABLE_METHODS:
                return run_app
            if event_id is None:
                return await self._resume_by_app_id(held, request, run_app)
            return await self._resume(event_id, request, run_app)
        except LimitReachedError as exc:
            reads = EVENT_STREAM in request.accepted_types and not self._handles_status(request)
            kind = ClientKind.EVENTSOURCE if reads else ClientKind.PLAIN
            await self.reject(exc, request, send, client_kind=kind)
            return None
        except StoreError as exc:
            warn_unavailable(exc)
            if self._handles_status(request):
                self._report(UNMATCHED, "unavailable")
                await send_empty(send, request, HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                await self.send_retry_later(held, request, send)
            return None

    def _handles_status(self, request: SSERequest) -> bool:
        """Return whether a request is the `fetch` of a page, which can handle an error status."""
        has_own_id = request.event_id is not None
        return request.is_stop or not (has_own_id or self._reads_control_events(request))

    async def _resume(
        self, event_id: EventId, request: SSERequest, run_app: RunApp
    ) -> RunApp | None:
        if event_id.ending is Ending.FINAL:
            await self._send_end(request, run_app.send, UNMATCHED)
            return None
        if isinstance(route_ahead(dict(request.scope), self._context.app).endpoint, ResumeEndpoint):
            return run_app  # which has its own rules, and looks the stream up
        found = None
        if event_id.ending is None:
            self.lookup.check_room()
            found = await self.lookup.find(stream_id(event_id.secret), request)
        if self._access.is_opened_by(found, request):
            body, run_app = await read_post_body(request, run_app)
            if await self._access.may_resume(found.info, request, body):
                return await self._continue(found, event_id, request, run_app)
        elif found is not None:
            await self.lookup.find_nothing(request)
        elif event_id.ending is None and not self._is_passed_on(request):
            self._warn_of_processes()
        return await self._run_with_reset(request, run_app)

    async def _continue(
        self, found: LogSnapshot, event_id: EventId, request: SSERequest, run_app: RunApp
    ) -> RunApp | None:
        """Send the rest of a log that the client may read."""
        info, ended = found.info, found.state is not LogState.RUNNING
        if found.state is LogState.APP_OWNS_IDS:
            request.hide_event_id()
            request.intent = NO_INTENT
            return run_app
        if ended and event_id.seq > found.last:
            request.hide_event_id()
            return await self._run_with_reset(request, run_app)
        if found.state in ENDED_BY_APP and event_id.seq == found.last and not found.has_end_frame:
            await self._send_end(request, run_app.send, info.route)
            return None
        await self.read(found, request, run_app, after=event_id.seq, secret=event_id.secret)
        return None

    async def _resume_by_app_id(
        self, held: str, request: SSERequest, run_app: RunApp
    ) -> RunApp | None:
        """Resume a stream if its app numbers its events but does not keep them."""
        mark = self._context.match_mark(request.scope)
        name = self._context.key_name(mark, request)
        kind = self._context.client_kind(request, mark)
        if name is None or kind is ClientKind.OFF:
            return run_app
        body, run_app = await read_post_body(request, run_app)
        found, after = await self._app_ids.find(name, held, request, body)
        if found is not None:
            await self._continue_by_app_id(found, after, held, kind, request, run_app)
            return None
        if _never_reruns(mark):
            await self._send_gone(request, run_app)
            return None
        if kind is ClientKind.EVENTSOURCE:
            request.intent = ResumeIntent(EventId("", 0), reset="gone")
        return run_app

    async def _continue_by_app_id(  # noqa: PLR0917 - one call
        self,
        found: LogSnapshot,
        after: int,
        held: str,
        kind: ClientKind,
        request: SSERequest,
        run_app: RunApp,
    ) -> None:
        """Send the rest of a log after the event with the app's id `held`."""
        is_over = found.state is not LogState.RUNNING and after >= found.last
        if is_over and kind is not ClientKind.EVENTSOURCE:  # which alone receives an end of ours
            await self._send_end(request, run_app.send, found.info.route)
            return
        await self.read(
            found,
            request,
            run_app,
            after=after,
            secret=found.info.secret,  # for the id of the end
            event_id=held,
            client_kind=kind,
        )

    async def read(
        self,
        found: LogSnapshot,
        request: SSERequest,
        run_app: RunApp,
        *,
        after: int,
        secret: str = "",
        event_id: str | None = None,
        reset: str = "",
        client_kind: ClientKind = ClientKind.EVENTSOURCE,
        is_head: bool = False,
        cache: str = "",
    ) -> None:
        """Send the rest of a log, from its oldest event if the missed ones are no longer kept.

        Raises:
            LimitReachedError: the stream, or the process, has too many readers.
        """
        info, readers = found.info, self._context.readers
        reached = (readers.limit_for if is_head else readers.take)(info.stream_id)
        if reached:
            raise LimitReachedError(reached, route=info.route)
        truncated = after < found.first - 1
        after = max(after, found.first - 1)
        if secret and event_id is None:
            event_id = format_event_id(secret, after)
        try:
            follower = Follower(
                self._context,
                request,
                run_app.receive,
                run_app.send,
                info=info,
                after=after,
                event_id=event_id,
                secret=secret,
                reset=reset or ("truncated" if truncated else ""),
                client_kind=client_kind,
                cache=cache,
            )
            if is_head:
                await follower.send_head()
                return
            for observer in self._context.observers:
                result = "truncated" if truncated else cache or "resumed"
                observer.resumed(info.route, result, max(0, found.last - after))
            await follower.run()
        finally:
            if not is_head:
                readers.release(info.stream_id)

    async def reject(
        self,
        limit: LimitReachedError,
        request: SSERequest,
        send: Send,
        *,
        client_kind: ClientKind,
    ) -> None:
        """Reject a reader. An `EventSource` is put off: any status but 200 would stop it."""
        for observer in self._context.observers:
            observer.rejected(limit.route, limit.reason)
        if client_kind is ClientKind.EVENTSOURCE:
            held, options = request.last_event_id or "", self._context.options
            await send_retry_later(send, request, options, held, 2 * limit.retry_after)
        else:
            await send_rejection(send, request, limit.reason, limit.retry_after)

    async def _stop(self, request: SSERequest, run_app: RunApp) -> RunApp | None:
        """End a stream if the client may read it; the response does not show whether there is one.

        The app does not handle the request, unless it may pass it on to the service that has the
        stream: for a stream of another process, it would run anew.
        """
        target, receive = await read_stop(request, run_app.receive)
        found, cors = None, []
        if target is not None:
            found = await self.lookup.find(stream_id(target.secret), request)
        if self._access.is_opened_by(found, request) and await self._access.may_resume(
            found.info, request
        ):
            await self._context.store.cancel(found.info.stream_id)
            self._report(found.info.route, "cancelled")
            cors = cors_headers(found.info, request)
        elif found is not None:
            await self.lookup.find_nothing(request)
        elif self._is_passed_on(request):
            return RunApp(receive, run_app.send)
        else:
            self._warn_of_processes()
        await send_empty(run_app.send, request, HTTPStatus.NO_CONTENT, cors)
        return None

    def _is_passed_on(self, request: SSERequest) -> bool:
        """Return whether the app may pass a request on to a service that has its stream."""
        return self._context.inner_services.serve(request.request_path)

    async def _send_gone(self, request: SSERequest, run_app: RunApp) -> None:
        """Send a client `reset` and the end if its stream is gone and must not start again."""
        if EVENT_STREAM in request.accepted_types:
            await self._gone(request)(request.scope, run_app.receive, run_app.send)
        else:
            self._report(UNMATCHED, "gone")
            await send_empty(run_app.send, request, HTTPStatus.NO_CONTENT)

    async def _run_with_reset(self, request: SSERequest, run_app: RunApp) -> RunApp | None:
        """Let the app respond, and announce a new stream to a client that has part of the old.

        The app gets an event id that this middleware does not know: it may be that of another one,
        in the service to which the app passes the request.
        """
        mark = self._context.match_mark(request.scope)
        is_passed_on = self._is_passed_on(request)
        if _never_reruns(mark) and not is_passed_on:
            await self._send_gone(request, run_app)
            return None
        event_id = request.intent.event_id
        has_nothing = event_id is not None and not event_id.seq and event_id.ending is None
        if has_nothing and mark is not None and not is_passed_on:
            # It is of our `start`; an app with own ids is not to get it.
            request.hide_event_id()
        request.intent = ResumeIntent(event_id, reset="" if has_nothing else "gone")
        if EVENT_STREAM not in request.accepted_types:  # a client of a JSON API, for example
            return run_app
        replaced = ReplacedResponse(
            request.scope,
            run_app.send,
            lambda status: self._gone(request) if status in _UNSTARTED else None,
        )
        return RunApp(run_app.receive, replaced.send)

    def _gone(self, request: SSERequest) -> ASGIApp:
        """Return the response to a client if its stream is gone and cannot be started again.

        Without it, the status of the app's response would stop an `EventSource` without a reason.
        """
        self._report(UNMATCHED, "gone")
        secret = new_secret()
        end = format_event_id(secret, 0, Ending.FINAL)
        options, name = self._context.options, stream_id(secret)
        return ended_stream(request, options, name, event_id=end, reset="gone")

    async def send_retry_later(self, held: str | None, request: SSERequest, send: Send) -> None:
        """Have a client reconnect soon, with the id that it has."""
        self._report(UNMATCHED, "unavailable")
        await send_retry_later(send, request, self._context.options, held or "")

    async def _send_end(self, request: SSERequest, send: Send, route: str) -> None:
        """Stop the reconnects of an `EventSource`.

        "HTTP 204 No Content ... tells the browser to stop reconnecting" (WHATWG HTML 9.2.1).
        """
        self._report(route, "ended")
        await send_empty(send, request, HTTPStatus.NO_CONTENT)

    def _reads_control_events(self, request: SSERequest) -> bool:
        mark = self._context.match_mark(request.scope)
        return self._context.client_kind(request, mark) is ClientKind.EVENTSOURCE

    def _report(self, route: str, result: str) -> None:
        for observer in self._context.observers:
            observer.resumed(route, result, 0)

    def _warn_of_processes(self) -> None:
        if self._warns:
            self._warns = False
            logger.warning(
                "A client has tried to resume or stop a stream that this process does not have: it "
                "gets a new one, or the stop has no effect. If there are several processes, set "
                "SSE_REDIS_URL so that they share their streams. This is logged once."
            )


def _never_reruns(mark: Mark | None) -> bool:
    return mark is not None and mark.rerun == "never"


def warn_unavailable(exc: StoreError) -> None:
    """Log that a client cannot resume or stop its stream."""
    logger.warning("A stream cannot be resumed or ended now: the store is unavailable (%s)", exc)


async def read_post_body(request: SSERequest, run_app: RunApp) -> tuple[BodyDigest | None, RunApp]:
    """Read the body of a POST, which the app then receives all the same."""
    if request.method != "POST":
        return None, run_app
    body = BodyDigest()
    messages: list[Message] = []
    while not (body.is_complete or body.is_too_long):
        message = await run_app.receive()
        messages.append(message)
        if message["type"] != "http.request":
            break
        body.add(message)
    messages.reverse()

    async def receive() -> Message:
        return messages.pop() if messages else await run_app.receive()

    return body, RunApp(receive, run_app.send)
