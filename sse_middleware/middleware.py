"""The middleware: one line around any ASGI app.

    app.add_middleware(SSEMiddleware)   # Starlette, FastAPI
    app = SSEMiddleware(app)            # any ASGI 3 app

The middleware object lives as long as the app and holds settings only; the state of a request is in
its `Responder`.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, cast

from prometheus_client import REGISTRY, CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from sse_middleware._once import OncePerKey, running_loop
from sse_middleware.admin.live_streams import LiveStreams, live_streams
from sse_middleware.admin.pages import AdminPages
from sse_middleware.config.arguments import OptionArguments
from sse_middleware.config.constructor import check_arguments
from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError
from sse_middleware.http.identity import (
    AsyncIdentify,
    AwaitedIdentity,
    Identify,
    Identities,
    TrustedProxies,
    identity_secret,
)
from sse_middleware.http.request import (
    SSERequest,
    app_path,
    may_have_event_id,
    request_path,
)
from sse_middleware.http.rollout import EVERYONE, InRollout, Rollout
from sse_middleware.http.routes import Mark, PathFilter, PathMarks, bare_marks, compile_marks
from sse_middleware.http.starlette_routes import warn_of_names
from sse_middleware.limits.admission import Admission, admission_for
from sse_middleware.limits.admission_check import AdmissionCheck, reject_if_draining
from sse_middleware.observability.logs import StreamLog
from sse_middleware.observability.metrics import counting_in
from sse_middleware.observability.pricing import pricing
from sse_middleware.observability.tracing import Tracing
from sse_middleware.own_pages import OwnPages, drains
from sse_middleware.resume.attach import AttachedRequests
from sse_middleware.resume.handler import ResumeHandler
from sse_middleware.resume.named import NamedStreams
from sse_middleware.stores.base import EventStore
from sse_middleware.stores.configured import asked_at_start, create_store
from sse_middleware.stores.installed import INSTALLED, RedisAddress
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stream.context import Authorize, Context, ExpiresAt
from sse_middleware.stream.current import (
    CURRENT,
    IN_SCOPE,
    LEFT_ALONE,
    CurrentStream,
    RequestServices,
    StreamCell,
    current_in,
)
from sse_middleware.stream.headers_only import with_headers_only
from sse_middleware.stream.linger import LingerQueue
from sse_middleware.stream.readers import ReaderPool, reader_limit
from sse_middleware.stream.responder import Responder
from sse_middleware.stream.shutdown import SHUTDOWN

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from sse_middleware.observability.observer import Observer

logger = logging.getLogger("sse_middleware")

AnyASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI app, with any types that its framework has for scopes and messages."""


class SSEMiddleware:
    """Keep the event streams of `app` alive, and leave all other responses unchanged.

    Args:
        app: any ASGI 3 app.
        marks: marks with options for path globs: `{"/chat/*": streaming(stream_max_seconds=600)}`.
            The first glob that matches applies. It has precedence over the option `mark`, and a
            mark on the endpoint itself over both. Globs match below the app's `root_path`.
        registry: the registry in which Prometheus metrics are counted, and which is then served
            as a whole. By default they are counted in the default registry, and only they are
            served unless `metrics_path` is set.
        tracer_provider: the provider of OpenTelemetry that records a span for each stream, by
            default the one that is set for the process. Without one, there are no spans.
        store: the store of the streams' events, by default the memory of the process.
        identify: a function that returns the identity that a scope belongs to (from a session, a
            token or an address), `None` if it has none; without the function, the `Authorization`
            and the cookies of the option `identity_cookies` determine it. A stream is resumed only
            with the identity that has opened it. The function is called when a stream opens and
            when it is resumed, before the app runs, and must not block. An async function is
            awaited for each request, before the app runs.
        authorize_resume: a function, async or not, of the request's scope and the stream's
            `LogInfo` that makes the final decision on a resume.
        rollout: a function that returns whether the middleware acts for a scope, `None` to decide
            by the options of the rollout; called as `identify` is.
        expires_at: a function that returns when the credentials of a scope expire, in seconds since
            the epoch, `None` for never; the stream then ends as at the cap.
        **options: fields of `Options`; each has precedence over its `SSE_*` variable.

    Raises:
        ConfigurationError: an argument is out of its bounds.
        TypeError: there is no such option.

    An invalid variable stops the start-up of the server instead: the lifespan fails. So does an
    argument if the event loop runs already. Starlette creates its layers only when the lifespan
    begins, and servers take an exception then for an app without a lifespan.

    The object can be pickled, as Ray Serve does; the copy is created from the same arguments.
    """

    def __init__(
        self,
        app: AnyASGIApp,
        *,
        marks: Mapping[str, Mark] | None = None,
        registry: CollectorRegistry | None = None,
        tracer_provider: "TracerProvider | None" = None,
        store: EventStore | None = None,
        identify: Identify | AsyncIdentify | None = None,
        authorize_resume: Authorize | None = None,
        expires_at: ExpiresAt | None = None,
        rollout: InRollout | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        self._arguments: dict[str, Any] = {
            "marks": marks,
            "registry": registry,
            "tracer_provider": tracer_provider,
            "store": store,
            "identify": identify,
            "authorize_resume": authorize_resume,
            "expires_at": expires_at,
            "rollout": rollout,
            **options,
        }
        compiled_marks: PathMarks = ()
        self._misconfigured: Exception | None = None
        try:
            check_arguments(app, self._arguments, os.environ)
            compiled_marks = compile_marks(marks or {})
            chosen = Options.from_environ({}, **options)
        except (ConfigurationError, TypeError) as exc:
            if running_loop() is None:
                raise
            self._misconfigured = exc
            chosen, store, identify, rollout, registry = Options(), None, None, None, None
        awaited = AwaitedIdentity.of(identify)
        known = cast("Identify | None", awaited or identify)
        observers: tuple[Observer, ...] = (*counting_in(registry or REGISTRY), StreamLog())
        own_store, clients = store is None, EVERYONE
        self.app = app
        live: LiveStreams | None = None
        try:
            if self._misconfigured is None:
                chosen = Options.from_environ(os.environ, **options)
            clients = Rollout.from_options(chosen, known, rollout)
            observers = (*pricing(is_wanted=chosen.usage_cost), *observers)
            if (live := live_streams(chosen)) is not None:
                observers = (*observers, live)
            if store is None:
                store = create_store(
                    chosen.redis_url,
                    chosen.redis_prefix,
                    memory=chosen.memory_max_bytes,
                    observers=observers,
                    max_events=chosen.replay_max_events,
                    max_bytes=chosen.replay_max_bytes,
                    ttl=chosen.replay_ttl,
                )
        except ConfigurationError as exc:
            self._misconfigured = exc
        INSTALLED.set(self, RedisAddress(chosen.redis_url, chosen.redis_prefix))
        store = MemoryStore() if store is None else store
        secret = identity_secret(chosen, is_shared=store.is_shared)
        self._context = Context(
            app=app,
            options=chosen,
            options_for=OncePerKey(lambda mark: chosen.with_overrides(mark.overrides)),
            store=store,
            linger_queue=LingerQueue(chosen.max_lingering, observers),
            readers=ReaderPool(
                chosen.max_readers, reader_limit(chosen.max_streams, chosen.max_readers)
            ),
            proxies=TrustedProxies(chosen.trusted_proxies),
            rollout=clients,
            path_marks=(*compiled_marks, *bare_marks(chosen.mark)),
            observers=observers,
            tracing=Tracing(tracer_provider),
            identities=Identities(known, chosen.identity_cookies, secret),
            authorize_resume=authorize_resume,
            expires_at=expires_at,
        )
        self._admission = self._create_admission()
        self._awaited_identity = awaited
        self._admits_all = self._admission is None and awaited is None
        self._resume = ResumeHandler(
            self._context,
            one_process=own_store and not chosen.redis_url,
            limit=self._admission if store.is_shared else None,
        )
        self._services = RequestServices(
            NamedStreams(self._context, self._resume).respond, self._context.tracing
        )
        self._attached = AttachedRequests(self._context, self._resume)
        self._attaching = self._context.attaching
        self._path_filter = PathFilter(chosen.include, chosen.exclude)
        self._pages = OwnPages(chosen, registry)
        # The ends of the paths of requests that `_intercept` handles: those of our pages, or all.
        is_selective = self._path_filter.is_set or self._context.may_leave_alone
        all_paths = is_selective or not chosen.enabled or self._misconfigured
        self._admin = None if live is None else AdminPages(self._context, live, self._services)
        paths = self._pages.paths + (self._admin.paths if self._admin else ())
        self._intercepted = ("",) if all_paths else paths
        self._lingering_paths = self._context.linger_queue.paths

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy is created, before it has started."""
        return partial(type(self), **self._arguments), (self.app,)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: C901, PLR0912 - few calls
        """Handle one connection as ASGI 3 specifies, with as few calls and objects as possible."""
        if (
            scope["type"] != "http"
            or scope.get("path", "").endswith(self._intercepted)
            or IN_SCOPE in scope
            or SHUTDOWN.is_draining
        ) and (send := await self._intercept(scope, receive, send)) is None:
            return
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the event loop is not asyncio's
            task = None
        if task is None:
            await self.app(scope, receive, with_headers_only(self._context, scope, send))
            return
        responder: Responder | None
        if (
            self._admits_all
            and not may_have_event_id(scope)
            and not (self._lingering_paths and request_path(scope) in self._lingering_paths)
            and self._attaching.is_needed is False
        ):
            cell: StreamCell = {"headers": scope.get("headers") or (), "services": self._services}
            responder = Responder(self._context, cell, scope, receive, send, task)
        elif (responder := await self._admit(scope, receive, send, task)) is None:
            return
        scope[IN_SCOPE] = cell = responder.cell
        token = CURRENT.set(cell)
        try:
            await self.app(scope, responder.receive, responder.send)
        except BaseException as exc:
            if not responder.suppresses(exc):
                raise
        finally:
            try:
                if responder.producer is not None or responder.held is not None:
                    await responder.aclose()
            finally:
                try:
                    CURRENT.reset(token)
                except ValueError:  # the app's caller continues in another context
                    CURRENT.set(None)
                scope.pop(IN_SCOPE, None)
                if "current" in cell:
                    current = cell["current"]
                    current.request = None
                    if current.claimed:
                        self._context.store.release(current.claimed, current.stream_id)
                if responder.admission is not None:
                    responder.admission.release()

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, task: "asyncio.Task[Any]"
    ) -> Responder | None:
        """Resume a stream, check the limits or handle a reload; return `None` after a response."""
        if self._awaited_identity is not None:
            await self._awaited_identity.load(scope)
        request = SSERequest(scope, tracing=self._context.tracing)
        if may_have_event_id(scope):
            run_app = await self._resume.handle(request, receive, send)
            if run_app is None:
                return None
            receive, send = run_app
        current = CurrentStream(request.headers.items(), self._services, request)
        if self._attaching.is_needed is not False and self._context.attaches():
            run_app = await self._attached.handle(request, current, receive, send)
            if run_app is None:
                return None
            receive, send = run_app
        is_admitted, check = False, None
        try:
            if self._admission is not None:
                check = AdmissionCheck(self._admission, self._context, request)
                await check.check_before_app()
                if check.rejection:
                    await check.send_rejection(send)
                    return None
            is_admitted = True
        finally:
            if current.claimed and not is_admitted:
                self._context.store.release(current.claimed, current.stream_id)
        if self._lingering_paths:
            self._context.end_repeated(request)
        return Responder(self._context, {"current": current}, scope, receive, send, task, check)

    async def _intercept(self, scope: Scope, receive: Receive, send: Send) -> Send | None:
        """Handle a call that needs no responder and return `None`, or return the app's `send`."""
        if self._misconfigured is not None:
            await self._fail_start(self._misconfigured, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
        elif scope["type"] != "http" or not self._context.options.enabled:
            await self.app(scope, receive, send)
        elif IN_SCOPE in scope and (
            scope.pop(LEFT_ALONE, False) or self._context.marks_path(scope)
        ):
            current_in(scope[IN_SCOPE]).is_answered = True  # the outer one passes ours on
            return await self._filter(scope, receive, send)
        elif IN_SCOPE in scope:
            await self.app(scope, receive, send)
        elif self._admin is not None and self._admin.serves(scope):
            await self._admin(scope, receive, send)
        elif (app_send := await self._pages.handle(scope, receive, send)) is not None:
            return await self._filter(scope, receive, app_send)
        return None

    async def _filter(self, scope: Scope, receive: Receive, send: Send) -> Send | None:
        """Handle a request that is left out or rejected and return `None`, or return `send`."""
        if self._path_filter.is_set and self._path_filter.leaves_out(app_path(scope)):
            logger.debug("request passed through: its path is left out")
            await self.app(scope, receive, send)
            return None
        if self._context.may_leave_alone and self._context.leaves_alone(app_path(scope)):
            scope[LEFT_ALONE] = True
        if drains() and await reject_if_draining(self._context, SSERequest(scope), send):
            return None
        return send

    def _create_admission(self) -> Admission | None:
        if self._misconfigured is None:
            try:
                return admission_for(self._context)
            except ConfigurationError as exc:
                self._misconfigured = exc
        return None

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the lifespan on; it shows that a server runs in this loop, and closes the store."""
        context, options = self._context, self._context.options
        if not options.enabled or running_loop() is None:
            await self.app(scope, receive, send)
            return
        is_set = bool(options.ready_path) or "drain_seconds" in options.explicit
        warn_of_names(context.app)
        with (
            SHUTDOWN.serving(can_end_streams=is_set or bool(context.path_marks)),
            asked_at_start(context.store),
        ):
            await self.app(scope, receive, self._closing(send))

    def _closing(self, send: Send) -> Send:
        """Return a `send` that waits for `on_end` and closes the store at the shutdown."""
        context = self._context
        if not (context.store.is_shared or context.has_mark(lambda mark: bool(mark.on_end))):
            return send

        async def close_and_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await context.end_calls.wait(context.options.drain_seconds)
                if context.store.is_shared:
                    if self._admission is not None:
                        await self._admission.close()
                    await context.store.close()
            await send(message)

        return close_and_send

    @staticmethod
    async def _fail_start(exc: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"SSEMiddleware: {exc}"})
        raise exc  # also then: test clients take an app that returns for one that has started
