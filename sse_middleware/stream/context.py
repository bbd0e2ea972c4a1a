"""What all requests of one middleware share: settings, store, and what an operator brings."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from re import Pattern

from starlette.types import ASGIApp, Scope

from sse_middleware._once import OncePerKey
from sse_middleware.config.options import Options
from sse_middleware.http.identity import Identify
from sse_middleware.http.request import SSERequest, stream_key_name
from sse_middleware.http.routes import UNMATCHED, Mark, get_mark, route_ahead
from sse_middleware.observability.observer import Observer
from sse_middleware.protocol.client_kinds import (
    ALL_PERCENT,
    ClientKind,
    detect_client_kind,
    in_rollout,
)
from sse_middleware.stores.base import EventStore, LogInfo
from sse_middleware.stream.linger_queue import LingerQueue

logger = logging.getLogger("sse_middleware")

Authorize = Callable[[Scope, LogInfo], bool | Awaitable[bool]]
"""Tells whether a request may go on with a stream."""
ExpiresAt = Callable[[Scope], float | None]
"""Tells when the credentials of a request end, in seconds since the epoch, `None` for never."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all requests of one middleware share.

    Attributes:
        app: the app that is wrapped.
        options: the settings.
        options_of: the settings of a mark.
        store: where events are kept.
        lingering: the streams that wait for a reader.
        marks: the marks that lie on paths, the first that matches counts.
        observers: who is told of streams.
        identify: tells whose a request is.
        authorize_resume: has the last word on a resume.
        expires_at: tells when the credentials of a request end.
        capped_routes: the routes whose first cap has been told of; it grows, up to a bound.
    """

    app: ASGIApp
    options: Options
    options_for: OncePerKey[Mark, Options]
    store: EventStore
    linger_queue: LingerQueue
    marks: Mapping[Pattern[str], Mark] = field(default_factory=dict)
    observers: Sequence[Observer] = ()
    identify: Identify | None = None
    authorize_resume: Authorize | None = None
    expires_at: ExpiresAt | None = None
    capped_routes: set[str] = field(default_factory=set)

    def get_mark(self, scope: Scope) -> Mark | None:
        """Return the mark that lies on the endpoint of `scope`, else on its path."""
        return self._mark(scope.get("endpoint"), scope)

    def match_mark(self, scope: Scope) -> Mark | None:
        """Return that mark before the app has found the endpoint."""
        return self.match_route(scope)[0]

    def match_route(self, scope: Scope) -> tuple[Mark | None, str]:
        """Return that mark, and what the route is called, before the app has found the endpoint."""
        endpoint, template = route_ahead(dict(scope), self.app)
        mark = self._mark(endpoint, scope)
        return mark, template or (mark.name if mark else None) or UNMATCHED

    def client_kind(self, request: SSERequest, mark: Mark | None) -> ClientKind:
        """Return the kind of a client, `OFF` for one that the rollout leaves out.

        Args:
            request: the request.
            mark: the mark of its endpoint, if there is one.
        """
        percent = self.options.rollout_percent
        if percent < ALL_PERCENT and not in_rollout(percent, request.headers, request.peer_host):
            return ClientKind.OFF
        if mark is not None and mark.family is not None:
            return mark.family
        has_event_id = request.intent.event_id is not None
        return detect_client_kind(request.method, request.headers, has_event_id=has_event_id)

    def _mark(self, endpoint: object, scope: Scope) -> Mark | None:
        mark = get_mark(endpoint, scope.get("method", ""))
        if mark is None and self.marks:
            path = scope.get("path", "")
            mark = next((mark for glob, mark in self.marks.items() if glob.match(path)), None)
        return mark

    def key_name(self, mark: Mark | None, request: SSERequest) -> str | None:
        """Return what the store calls the stream that a request asks for by its `stream_key`."""
        if mark is None or mark.stream_key is None:
            return None
        try:
            return stream_key_name(mark.stream_key(request.scope), request.request_path)
        except Exception:
            logger.exception("stream_key(scope) has failed; the stream is not kept")
            return None

    def credential_ttl(self, scope: Scope) -> float | None:
        """Return how long the credentials of a request are good for, `None` for as long as any.

        Where that cannot be told they are not.
        """
        if self.expires_at is None:
            return None
        try:
            expires_at = self.expires_at(scope)
        except Exception:
            logger.exception("expires_at(scope) has failed; the stream ends at once")
            return 0.0
        return None if expires_at is None else max(0.0, expires_at - time.time())
