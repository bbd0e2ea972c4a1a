"""The objects that all requests of one middleware share: settings, store and callbacks."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Scope

from sse_middleware._once import OncePerKey
from sse_middleware.config.options import Options
from sse_middleware.http.body_digest import BodyDigest
from sse_middleware.http.identity import Identities, TrustedProxies
from sse_middleware.http.inner_service import InnerServices
from sse_middleware.http.request import ANY_STREAM, SSERequest, app_path, stream_key_name
from sse_middleware.http.response_head import announcing_headers
from sse_middleware.http.rollout import EVERYONE, Rollout
from sse_middleware.http.routes import UNMATCHED, Mark, PathMarks, get_mark
from sse_middleware.http.starlette_routes import has_mark, route_ahead
from sse_middleware.observability.observer import Observer
from sse_middleware.observability.tracing import Tracing
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.stream_profile import StreamProfile
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stores.base import EventStore, LogInfo
from sse_middleware.stream.end_callback import EndCalls
from sse_middleware.stream.linger import LingerQueue
from sse_middleware.stream.linger_index import request_key
from sse_middleware.stream.other_responses import OtherResponses
from sse_middleware.stream.readers import ReaderPool

logger = logging.getLogger("sse_middleware")

_MAX_WARNINGS = 1000

Authorize = Callable[[Scope, LogInfo], bool | Awaitable[bool]]
"""Returns whether a request may resume a stream."""
ExpiresAt = Callable[[Scope], float | None]
"""Returns when the credentials of a request expire, in seconds since 1970, `None` for never."""


@dataclass
class Attaching:
    """Whether marks are looked up before the app runs, because some attach requests to streams.

    Attributes:
        is_needed: as above, `None` before the first request.
    """

    is_needed: bool | None = None


class MatchedRoute(NamedTuple):
    """The route of a request, before the app has found it.

    Attributes:
        mark: the mark of its endpoint or path, `None` without one.
        name: its name, one of a bounded set.
        path_params: the parameters in the path.
    """

    mark: Mark | None
    name: str
    path_params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The objects that all requests of one middleware share.

    Attributes:
        app: the wrapped app.
        options: the settings.
        options_for: returns the settings of a mark.
        profiles: the profiles of the streams of a mark that `profile` has computed.
        store: keeps the events.
        linger_queue: the streams that wait for a reader.
        readers: counts the connections that follow streams.
        end_calls: the calls of `on_end` that have not returned.
        proxies: the proxies that are trusted to name the addresses of clients.
        identities: determines the identities that requests belong to.
        rollout: determines the clients that the middleware acts for.
        path_marks: marks for paths; the first that matches applies.
        observers: are notified of streams.
        tracing: starts the spans of streams.
        authorize_resume: permits or denies a resume after all other checks.
        expires_at: returns the time at which the credentials of a request expire.
        attaching: whether some marks attach requests.
        inner_services: the paths at which the app passes on streams of another instance.
        warned: the warnings that have been logged, each with its route; its size is bounded.
        other_responses: checks responses that are no event streams.
    """

    app: ASGIApp
    options: Options
    options_for: OncePerKey[Mark, Options]
    profiles: OncePerKey[Mark, dict[ClientKind, StreamProfile]] = field(
        default_factory=lambda: OncePerKey(lambda _: {})
    )
    store: EventStore
    linger_queue: LingerQueue
    readers: ReaderPool
    end_calls: EndCalls = field(default_factory=EndCalls)
    proxies: TrustedProxies
    identities: Identities
    rollout: Rollout = EVERYONE
    path_marks: PathMarks = ()
    observers: Sequence[Observer] = ()
    tracing: Tracing = field(default_factory=Tracing)
    authorize_resume: Authorize | None = None
    expires_at: ExpiresAt | None = None
    attaching: Attaching = field(default_factory=Attaching)
    inner_services: InnerServices = field(default_factory=InnerServices)
    warned: set[tuple[str, str]] = field(default_factory=set)
    other_responses: OtherResponses = field(default_factory=OtherResponses)

    def profile(self, mark: Mark, client_kind: ClientKind) -> StreamProfile:
        """Return what all streams of a mark and a kind of client have in common."""
        known = self.profiles(mark)
        profile = known.get(client_kind)
        if profile is None:
            options = self.options_for(mark)
            terms = StreamTerms.from_options(options, client_kind)
            profile = known[client_kind] = StreamProfile.from_options(
                options,
                client_kind,
                terms=terms,
                app_ids=mark.stream_key is not None,
                headers=announcing_headers(terms),
            )
        return profile

    def attaches(self) -> bool:
        """Return whether a request may be attached to a stream."""
        if self.attaching.is_needed is None:
            self.attaching.is_needed = self.has_mark(lambda mark: mark.attach != "never")
        return self.attaching.is_needed

    def has_mark(self, wanted: Callable[[Mark], bool]) -> bool:
        """Return whether there is such a mark, of a path or, as far as is known, of an endpoint."""
        return any(wanted(mark) for _, mark in self.path_marks) or has_mark(self.app, wanted)

    def get_mark(self, scope: Scope, path: str) -> Mark | None:
        """Return the mark of the endpoint that the app has matched, else the mark of its path.

        Args:
            scope: the scope of the request, after the app has routed it.
            path: the `app_path` before that; a mount of Starlette changes the `root_path`.
        """
        mark = get_mark(scope.get("endpoint"), scope.get("method", ""))
        return self.mark_of_path(path) if mark is None and self.path_marks else mark

    def match_mark(self, scope: Scope) -> Mark | None:
        """Return that mark before the app has found the endpoint."""
        return self.match_route(scope).mark

    def match_route(self, scope: Scope) -> MatchedRoute:
        """Return that mark and the route, before the app has found the endpoint."""
        endpoint, template, path_params = route_ahead(dict(scope), self.app)
        mark = get_mark(endpoint, scope.get("method", ""))
        if mark is None and self.path_marks:
            mark = self.mark_of_path(app_path(scope))
        name = template or (mark.name if mark else None) or UNMATCHED
        return MatchedRoute(mark, name, path_params)

    def new_body_digest(self, scope: Scope, path: str) -> BodyDigest:
        """Return a digest for the body of a request, which hashes only if the digest may be needed.

        That is if the response may be a stream that is kept. Most uploads are to other endpoints.

        Args:
            scope: the scope of the request; the app may have routed it already.
            path: as for `get_mark`.
        """
        if not self.options.replay_max_events:
            return BodyDigest(limit=0)
        is_routed = scope.get("endpoint") is not None
        mark = self.get_mark(scope, path) if is_routed else self.match_mark(scope)
        is_left_alone = mark is None or mark.overrides.get("enabled") is False
        return BodyDigest(limit=0) if is_left_alone else BodyDigest()

    def end_repeated(self, request: SSERequest, body: BodyDigest | None = None) -> None:
        """End the streams of a client that lingers after the same request, as a page that reloads.

        Without an event id, the client cannot resume them. The streams of other workers end when
        their time to linger is over.

        Args:
            request: the request.
            body: the digest of its body, `None` before the app has received it.
        """
        if request.last_event_id is not None or (body is None and request.method != "GET"):
            return  # in particular, a preflight request has no credentials
        if request.request_path in self.linger_queue.paths:
            identity = self.identities.of(request)
            key = request_key(request, identity, None if body is None else body.hexdigest())
            if key is not None:
                self.linger_queue.end_repeated(key)

    def client_kind(self, request: SSERequest, mark: Mark | None) -> ClientKind:
        """Return the kind of a client, `OFF` if the rollout excludes it, `UNMARKED` without a mark.

        Args:
            request: the request.
            mark: the mark of its endpoint, if it has one.
        """
        if self.rollout.is_partial and not self.rollout.includes(request):
            return ClientKind.OFF
        if mark is None:
            return ClientKind.UNMARKED
        if mark.collects and ANY_STREAM.isdisjoint(request.accepted_types):
            return ClientKind.JSON
        if mark.family is not None:
            return mark.family
        return request.client_kind

    def leaves_alone(self, path: str) -> bool:
        """Return whether the streams of a path are left alone, unless its endpoint has a mark."""
        mark = self.mark_of_path(path)
        if mark is None:
            return self.options.only_marked
        return mark.overrides.get("enabled") is False

    @property
    def may_leave_alone(self) -> bool:
        """Whether `leaves_alone` is true for any path."""
        disabled = (mark.overrides.get("enabled") is False for _, mark in self.path_marks)
        return self.options.only_marked or any(disabled)

    def is_first_warning(self, warning: str, route: str) -> bool:
        """Return whether a warning has not been logged for a route yet, and store that it is."""
        key = (warning, route)
        if key in self.warned or len(self.warned) >= _MAX_WARNINGS:
            return False
        self.warned.add(key)
        return True

    def mark_of_path(self, path: str) -> Mark | None:
        """Return the mark of a path by the settings and arguments."""
        for glob, mark in self.path_marks:
            if glob.match(path):
                return mark
        return None

    def marks_path(self, scope: Scope) -> bool:
        """Return whether the settings and arguments mark the path of a request."""
        mark = self.mark_of_path(app_path(scope)) if self.path_marks else None
        return mark is not None and mark.overrides.get("enabled") is not False

    def key_name(self, mark: Mark | None, request: SSERequest) -> str | None:
        """Return the name in the store of the stream that a request selects by its `stream_key`."""
        if mark is None or mark.stream_key is None:
            return None
        try:
            return stream_key_name(mark.stream_key(request.scope), request.request_path)
        except Exception:
            logger.exception("stream_key(scope) has failed; the stream cannot be resumed")
            return None

    def credential_ttl(self, scope: Scope) -> float | None:
        """Return how long the credentials of a request are valid, `None` for no limit.

        If that is not known, they are not valid.
        """
        if self.expires_at is None:
            return None
        try:
            expires_at = self.expires_at(scope)
            return None if expires_at is None else max(0.0, expires_at - time.time())
        except Exception:
            logger.exception("expires_at(scope) has failed; the stream ends at once")
            return 0.0
