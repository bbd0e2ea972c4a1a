"""Resuming: what a request with a cursor gets, decided before the app runs.

The rest of its stream, where there is one that it may read; 204 behind an end that was all; else
the app's own answer, told to be a new one by a `reset`. Who may not read a stream cannot tell it
from one that never was.
"""

import logging
from collections.abc import Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import NamedTuple

from starlette.types import Message, Receive, Scope, Send

from sse_middleware.errors import StoreError
from sse_middleware.http.own_responses import ended_stream, put_off
from sse_middleware.http.request import (
    NO_CLAIM,
    RequestBody,
    ResumeIntent,
    cancelled_id,
    last_event_id,
    stream_name,
    without_event_id,
)
from sse_middleware.http.response_head import OWN_HEADERS, RawHeaders, body_message, unpacked
from sse_middleware.http.routes import UNMATCHED
from sse_middleware.protocol.event_ids import Ending, EventId, new_secret, parse_event_id, stream_id
from sse_middleware.protocol.wire import Kind, Splitter, event_id
from sse_middleware.resume.authorization import CORS, Authorization
from sse_middleware.stores.base import LogSnapshot, LogState
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.context import Context

logger = logging.getLogger("sse_middleware")

_REFUSED = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)


class RunApp(NamedTuple):
    """A request that the app is to answer after all."""

    receive: Receive
    send: Send
    claim: ResumeIntent = NO_CLAIM


class ResumeHandler:
    """Answer the requests that come back to a stream.

    Args:
        setup: what all requests share.
        one_process: whether streams are kept in this process alone.
    """

    def __init__(self, setup: Context, *, one_process: bool) -> None:
        self._setup = setup
        self._access = Authorization(setup)
        self._warns = one_process

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> RunApp | None:
        """Answer a request that claims something; return it where the app has to."""
        cancelled = parse_event_id(cancelled_id(scope) or "")
        held = last_event_id(scope)
        cursor = parse_event_id(held or "")
        if cursor is not None:
            scope["headers"] = without_event_id(scope["headers"])
        anew = RunApp(receive, send)
        try:
            if cancelled is not None:
                return None if await self._cancel(cancelled, scope, send) else anew
            if held is None or scope.get("method") not in ("GET", "POST"):
                return anew
            if cursor is None:
                return await self._resume_by_app_id(held, scope, anew)
            return await self._resume(cursor, scope, anew)
        except StoreError as exc:
            logger.warning("the store is out of reach: %s", exc)
            if cancelled is None:
                await self._send_away(held, scope, send)
            else:  # by a page's `fetch`, which can be told that it has not worked
                self._tell(UNMATCHED, "unavailable")
                await _empty(send, HTTPStatus.SERVICE_UNAVAILABLE)
            return None

    async def _resume(self, cursor: EventId, scope: Scope, anew: RunApp) -> RunApp | None:
        if cursor.ending is Ending.FINAL:
            await self._stop(anew.send, UNMATCHED)
            return None
        anew = anew._replace(claim=ResumeIntent(cursor))
        if cursor.ending is Ending.AGAIN:
            return anew
        found = None
        if cursor.ending is None:
            found = await self._setup.store.find(stream_id(cursor.secret))
        if self._access.is_its_own(found, scope):
            body = None
            if scope["method"] == "POST":
                body = RequestBody()
                anew = anew._replace(receive=await _read_body(anew.receive, body))
            if await self._access.may_go_on(found.info, scope, body):
                return await self._go_on(found, cursor, scope, anew)
        elif found is not None:
            await self._look_for_none()
        elif cursor.ending is None:
            self._warn_of_processes()
        return self._tell_reset(anew, scope)

    async def _go_on(
        self, found: LogSnapshot, cursor: EventId, scope: Scope, anew: RunApp
    ) -> RunApp | None:
        """Give a client the rest of a log that it may read."""
        info, ended = found.info, found.state is not LogState.RUNNING
        if found.state is LogState.APP_OWNS_IDS:
            return anew._replace(claim=NO_CLAIM)
        if ended and cursor.seq > found.last:
            return self._tell_reset(anew, scope)
        if found.state is LogState.FINISHED and cursor.seq == found.last and not found.tells_end:
            if not info.marked:
                return anew
            await self._stop(anew.send, info.route)
            return None
        await self._read(found, scope, anew, after=cursor.seq, secret=cursor.secret)
        return None

    async def follow_named(
        self, name: str, cursor: EventId | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with the stream of a name, from its beginning or where a cursor stands.

        Raises:
            RuntimeError: nobody can be told from anybody.
        """
        if self._setup.identify is None:
            raise RuntimeError("a resume_endpoint needs SSEMiddleware(identify=...): whose is it?")
        anew = RunApp(receive, send)
        try:
            found = await self._setup.store.find_named(stream_name(name))
            allowed = await self._access.may_read_named(found, scope)
            if found is None or not allowed:
                await _empty(send, HTTPStatus.NO_CONTENT)
            elif cursor is not None and self._is_place_in(found, cursor):
                if await self._go_on(found, cursor, scope, anew) is not None:
                    await _empty(send, HTTPStatus.NO_CONTENT)
            elif found.state is LogState.RUNNING:
                had_another = cursor is not None and cursor.seq and cursor.ending is None
                reset = "gone" if had_another else ""
                await self._read(found, scope, anew, after=0, reset=reset)
            else:
                await _empty(send, HTTPStatus.NO_CONTENT)
        except StoreError as exc:
            logger.warning("the store is out of reach: %s", exc)
            await self._send_away(None if cursor is None else str(cursor), scope, send)

    @staticmethod
    def _is_place_in(found: LogSnapshot, cursor: EventId) -> bool:
        return cursor.ending is None and stream_id(cursor.secret) == found.info.stream_id

    async def _resume_by_app_id(self, told: str, scope: Scope, anew: RunApp) -> RunApp | None:
        """Resume a stream whose app numbers its events and does not keep them."""
        name = self._setup.key_name(self._setup.mark_ahead(scope), scope)
        if name is None:
            return anew
        found = await self._setup.store.find_named(name)
        reset = anew._replace(claim=ResumeIntent(EventId("", 0), reset="gone"))
        if not self._access.is_its_own(found, scope):
            return reset
        body = None
        if scope["method"] == "POST":
            body = RequestBody()
            anew = anew._replace(receive=await _read_body(anew.receive, body))
            reset = reset._replace(receive=anew.receive)
        if not await self._access.may_go_on(found.info, scope, body):
            return reset
        after = await self._place_of_app_id(found, told)
        if after is None:
            return reset
        await self._read(found, scope, anew, after=after, event_id=told)
        return None

    async def _read(
        self,
        found: LogSnapshot,
        scope: Scope,
        anew: RunApp,
        *,
        after: int,
        secret: str = "",
        event_id: str | None = None,
        reset: str = "",
    ) -> None:
        """Send the rest of a log, from its oldest event on where what is missed is not kept."""
        truncated = after < found.first - 1
        after = max(after, found.first - 1)
        if secret:
            event_id = str(EventId(secret, after))
        for observer in self._setup.observers:
            result = "truncated" if truncated else "resumed"
            observer.resumed(found.info.route, result, max(0, found.last - after))
        await Connection(
            self._setup,
            scope,
            anew.receive,
            anew.send,
            info=found.info,
            after=after,
            event_id=event_id,
            secret=secret,
            reset=reset or ("truncated" if truncated else ""),
        ).run()

    async def _place_of_app_id(self, found: LogSnapshot, told: str) -> int | None:
        """Return the number of the event that carries the id `told`, `None` where none does."""
        wanted, place = told.encode(), None
        number = found.first - 1
        if found.last <= number:
            return None  # there is nothing to read, and nothing to wait for
        async with aclosing(self._setup.store.follow(found.info.stream_id, number)) as log:
            async for batch in log:
                if batch.state is not LogState.RUNNING:
                    return place
                splitter = Splitter(len(batch.frames) + 1)
                for kind, block in splitter.feed(batch.frames):
                    number += kind is Kind.BLOCK
                    if kind is Kind.BLOCK and event_id(block) == wanted:
                        place = number
                if batch.last >= found.last:
                    return place
                number = batch.last
        return place

    async def _cancel(self, cursor: EventId, scope: Scope, send: Send) -> bool:
        """End a stream for whoever may read it; tell whether there is such a one."""
        found = await self._setup.store.find(stream_id(cursor.secret))
        if not self._access.is_its_own(found, scope):
            if found is not None:
                await self._look_for_none()
            return False
        if found.state is LogState.APP_OWNS_IDS:
            return False
        await self._setup.store.cancel(found.info.stream_id)
        self._tell(found.info.route, "cancelled")
        cors = [pair for pair in unpacked(found.info.headers) if pair[0].lower().startswith(CORS)]
        await _empty(send, HTTPStatus.NO_CONTENT, cors)
        return True

    async def _look_for_none(self) -> None:
        """Take as long as for a stream that is not there, which may be longer."""
        await self._setup.store.find(stream_id(new_secret()))

    def _tell_reset(self, anew: RunApp, scope: Scope) -> RunApp:
        """Let the app answer, and the client know that it is a new answer.

        Who has had nothing of the old one has nothing to throw away.
        """
        cursor = anew.claim.cursor
        has_nothing = cursor is not None and not cursor.seq and cursor.ending is None
        send = _Refusal(anew.send, lambda: self._reset_and_end(scope)).send
        return RunApp(anew.receive, send, ResumeIntent(cursor, reset="" if has_nothing else "gone"))

    def _reset_and_end(self, scope: Scope) -> tuple[RawHeaders, bytes]:
        """Return the answer to a client whose stream is gone, and whose app refuses to begin it."""
        self._tell(UNMATCHED, "gone")
        secret = new_secret()
        end = str(EventId(secret, 0, Ending.FINAL))
        options, name = self._setup.options, stream_id(secret)
        return ended_stream(scope, options, name, event_id=end, reset="gone")

    async def _send_away(self, held: str | None, scope: Scope, send: Send) -> None:
        """Let a client ask again soon, with the id that it has held."""
        self._tell(UNMATCHED, "unavailable")
        await put_off(send, scope, self._setup.options, held or "")

    async def _stop(self, send: Send, route: str) -> None:
        """Let an `EventSource` come back no more.

        "HTTP 204 No Content ... tells the browser to stop reconnecting" (WHATWG HTML 9.2.1).
        """
        self._tell(route, "ended")
        await _empty(send, HTTPStatus.NO_CONTENT)

    def _tell(self, route: str, result: str) -> None:
        for observer in self._setup.observers:
            observer.resumed(route, result, 0)

    def _warn_of_processes(self) -> None:
        if self._warns:
            self._warns = False
            logger.warning(
                "a client came back to a stream that this process does not know; this is told "
                "once; where there are several, SSE_REDIS_URL lets them share their streams"
            )


class _Refusal:
    """Answer in place of an app that has no such method or path, which would stop the client."""

    def __init__(self, send: Send, answer: Callable[[], tuple[RawHeaders, bytes]]) -> None:
        self._send = send
        self._answer = answer
        self._answered = False

    async def send(self, message: Message) -> None:
        """Pass a message of the app's on, or drop it behind our own answer."""
        if message["type"] == "http.response.start" and message["status"] in _REFUSED:
            self._answered = True
            headers, data = self._answer()
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send(body_message(data, more_body=False))
        elif not self._answered:
            await self._send(message)


async def _empty(send: Send, status: HTTPStatus, headers: RawHeaders | None = None) -> None:
    """Answer with a status and no body."""
    own = [*OWN_HEADERS, *(headers or ())]
    if status is not HTTPStatus.NO_CONTENT:  # which has none (RFC 9110 8.6)
        own.append((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": status.value, "headers": own})
    await send(body_message(b"", more_body=False))


async def _read_body(receive: Receive, body: RequestBody) -> Receive:
    """Read the body of a request, and return what gives it to the app nevertheless."""
    messages: list[Message] = []
    while not (body.complete or body.is_too_long):
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            break
        body.add(message)
    messages.reverse()

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
