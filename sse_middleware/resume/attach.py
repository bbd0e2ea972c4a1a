"""Attach: a request follows the stream of an equal one, instead of running the app.

The first request of a name claims it, and runs the app. Others wait until its stream opens, and
then follow it from the first event; if its response is no stream, their apps run too. A failed
store never prevents the app from running.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from starlette.types import Receive, Send

from sse_middleware.errors import StoreError
from sse_middleware.http.body_digest import BodyDigest
from sse_middleware.http.own_responses import CONFLICT, send_rejection
from sse_middleware.http.request import (
    ANY_STREAM,
    LONGEST_NAME,
    RESUMABLE_METHODS,
    SSERequest,
    stream_name,
)
from sse_middleware.http.routes import Mark, name_in
from sse_middleware.protocol.client_kinds import EVENT_STREAM, ClientKind
from sse_middleware.protocol.event_ids import new_secret, stream_id
from sse_middleware.resume.authorization import Authorization
from sse_middleware.resume.handler import ResumeHandler, RunApp, read_post_body
from sse_middleware.resume.lookup import LimitReachedError
from sse_middleware.stores.base import LogSnapshot, LogState
from sse_middleware.stream.context import Context
from sse_middleware.stream.current import CurrentStream

logger = logging.getLogger("sse_middleware")

_HIT: Final = "hit"
_COALESCED: Final = "coalesced"
"""The values of `X-Stream-Cache`: the stream has finished, or it is still open."""
_MISS: Final = "miss"
"""The app runs."""
_FIRST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.25
"""The pauses of a request that waits for the stream of another one to open, in seconds."""


class _Wanted(NamedTuple):
    """The streams that a request may follow.

    Attributes:
        name: their name in the store.
        mark: the mark of the endpoint.
        client_kind: the kind of the client.
        body_digest: the digest of the request's body if all requests of the name must have the
            same, else `None`.
    """

    name: str
    mark: Mark
    client_kind: ClientKind
    body_digest: str | None


class AttachedRequests:
    """Attach requests to streams.

    Args:
        context: the objects that all requests share.
        handler: sends the events of a log.
    """

    def __init__(self, context: Context, handler: ResumeHandler) -> None:
        self._context = context
        self._handler = handler
        self._access = Authorization(context)

    async def handle(
        self, request: SSERequest, current: CurrentStream, receive: Receive, send: Send
    ) -> RunApp | None:
        """Send the stream of an equal request, or return how the app sends its own.

        Args:
            request: the request.
            current: receives the claim of the request to its name.
            receive: the server's `receive`.
            send: the server's `send`.
        """
        run_app = RunApp(receive, send)
        mark, _, path_params = self._context.match_route(request.scope)
        may_attach = mark is not None and self._may_attach(mark, request)
        identity = self._context.identities.of(request) if may_attach else None
        current.is_matched = mark is not None and (not may_attach or bool(identity))
        if mark is None or not identity:
            return run_app
        is_by_name = mark.stream_name is not None and not request.idempotency_key
        body: BodyDigest | None = None
        if not is_by_name:
            body, run_app = await read_post_body(request, run_app)
        digest = None if body is None else body.hexdigest()
        name = _name(mark, path_params, request, body, digest)
        if name is None:
            return run_app
        wanted = _Wanted(
            stream_name(name, identity),
            mark,
            self._context.client_kind(request, mark),
            digest if request.idempotency_key else None,
        )
        try:
            return await self._attach(wanted, request, current, run_app)
        except LimitReachedError as exc:
            await self._handler.reject(exc, request, send, client_kind=wanted.client_kind)
            return None
        except StoreError as exc:
            logger.warning(
                "A request cannot be attached to the stream of another one, so its app runs: the "
                "store is unavailable (%s)",
                exc,
            )
            return run_app

    def _may_attach(self, mark: Mark, request: SSERequest) -> bool:
        """Return whether a request may follow the stream of another one."""
        options = self._context.options_for(mark)
        return (
            mark.attach != "never"
            and mark.overrides.get("enabled") is not False
            and options.keep
            and options.replay_max_events > 0
            and request.method in RESUMABLE_METHODS
            and request.last_event_id is None
            and not ANY_STREAM.isdisjoint(request.accepted_types)
            and self._context.client_kind(request, mark) is not ClientKind.OFF
        )

    async def _attach(
        self, wanted: _Wanted, request: SSERequest, current: CurrentStream, run_app: RunApp
    ) -> RunApp | None:
        secret, opened = new_secret(), ""
        found = await self._context.store.find_named(wanted.name)
        while not await self._follow(wanted, found, request, run_app, opened):
            holder, newer = await self._claim(wanted.name, stream_id(secret), found)
            if holder != stream_id(secret):
                found = await self._wait_for(holder, wanted.name)
                if await self._follow(wanted, found, request, run_app, holder):
                    return None
                current.record.cache = _MISS
                return run_app
            if newer is None:
                current.claim(wanted.name, secret)
                current.record.cache = _MISS
                return run_app
            found, opened = newer, newer.info.stream_id
        return None

    async def _claim(
        self, name: str, own: str, found: LogSnapshot | None
    ) -> tuple[str, LogSnapshot | None]:
        """Claim a name for a stream, unless another one has opened since `found` was looked up.

        Returns:
            The stream that has the claim, and the log of one that has opened, and may have ended;
            then, nothing is claimed.
        """
        store, holder, newer, is_decided = self._context.store, "", None, False
        try:
            holder = await store.claim(name, own)
            if holder == own:
                latest = await store.find_named(name)
                known = None if found is None else found.info.stream_id
                if latest is not None and latest.info.stream_id != known:
                    newer = latest
            is_decided = True
        finally:
            if newer is not None or not is_decided:
                store.release(name, own)
        return holder, newer

    async def _wait_for(self, holder: str, name: str) -> LogSnapshot | None:
        """Wait until a stream opens, and return its log; return `None` if it does not.

        Raises:
            LimitReachedError: the stream, or the process, has too many readers.
        """
        readers = self._context.readers
        if reached := readers.take(holder):  # it is a reader already while it waits
            raise LimitReachedError(reached)
        try:
            return await self._wait_until_opened(holder, name)
        finally:
            readers.release(holder)

    async def _wait_until_opened(self, holder: str, name: str) -> LogSnapshot | None:
        store = self._context.store
        pause = _FIRST_PAUSE
        while True:
            claimant = await store.claimant(name)
            found = await store.find_named(name)
            if found is not None and found.info.stream_id == holder:
                return found
            if claimant != holder:  # its stream has opened, and may have ended, or it has none
                return await store.find(holder)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _follow(
        self,
        wanted: _Wanted,
        found: LogSnapshot | None,
        request: SSERequest,
        run_app: RunApp,
        holder: str = "",
    ) -> bool:
        """Send a stream if the request may follow it; return whether there is a response.

        Args:
            wanted: the streams that the request may follow.
            found: the log of a stream.
            request: the request.
            run_app: has the server's `send`.
            holder: the stream for which the request has waited, so that it may have finished.
        """
        if found is None or not await self._access.may_read_named(found, request):
            return False
        info = found.info
        if wanted.body_digest is not None and info.body_digest not in (None, wanted.body_digest):
            await send_rejection(run_app.send, request, CONFLICT, None)
            return True
        is_finished = found.state is LogState.FINISHED
        may_be_finished = wanted.mark.attach == "kept" or info.stream_id == holder
        if (
            not (found.state is LogState.RUNNING or (is_finished and may_be_finished))
            or found.first > 1
            or (info.asks_for_stream and EVENT_STREAM not in request.accepted_types)
        ):
            return False
        await self._handler.read(
            found,
            request,
            run_app,
            after=0,
            secret=info.secret,
            client_kind=wanted.client_kind,
            cache=_HIT if is_finished else _COALESCED,
        )
        return True


def _name(
    mark: Mark,
    path_params: Mapping[str, Any],
    request: SSERequest,
    body: BodyDigest | None,
    digest: str | None,
) -> str | None:
    """Return the name of the stream that a request opens, `None` if it is not known."""
    if request.idempotency_key:
        return request.idempotency_key
    if mark.stream_name is not None:
        try:
            name = name_in(mark.stream_name, {**request.scope, "path_params": path_params})
        except Exception:
            logger.exception("stream_name has failed; the request is not attached to a stream")
            return None
        return name if 0 < len(name) <= LONGEST_NAME else None
    if body is not None and digest is None:  # too long, or the client has left
        return None
    return f"request:{_request_digest(request, digest)}"


def _request_digest(request: SSERequest, body_digest: str | None) -> str:
    """Return a digest of all by which an equal request is recognized."""
    parts = (
        request.method.encode(),
        request.request_path.encode("utf-8", "surrogatepass"),
        request.scope.get("query_string") or b"",
        request.headers.get(b"accept", b""),
        (body_digest or "").encode(),
    )
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:%b" % (len(part), part))
    return digest.hexdigest()
