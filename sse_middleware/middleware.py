"""The door: one line around any ASGI app.

    app.add_middleware(SSEMiddleware)   # Starlette, FastAPI
    app = SSEMiddleware(app)            # any ASGI 3 app

The object that lives as long as the app holds options only; all state of a request is in its
`Responder`.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Unpack

from prometheus_client import REGISTRY, CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from sse_middleware._once import OncePerKey
from sse_middleware.client.serve import ClientFiles
from sse_middleware.config.arguments import OptionArguments
from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError
from sse_middleware.http.identity import Identify
from sse_middleware.http.own_responses import MetricsEndpoint, send_readiness
from sse_middleware.http.request import SSERequest, is_request_for, may_have_event_id
from sse_middleware.http.response_head import passthrough_reason, stream_headers
from sse_middleware.http.routes import Mark, glob_pattern
from sse_middleware.limits.admission import admission_for
from sse_middleware.limits.admission_check import AdmissionCheck, reject_if_draining
from sse_middleware.observability.logs import StreamLog
from sse_middleware.observability.metrics import counting_in, exposition
from sse_middleware.observability.observer import Observer
from sse_middleware.protocol.event_ids import new_secret, stream_id
from sse_middleware.protocol.stream_terms import NO_TERMS
from sse_middleware.resume.handler import ResumeHandler
from sse_middleware.stores.base import EventStore
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stream.context import Authorize, Context, ExpiresAt
from sse_middleware.stream.current import CURRENT, IN_SCOPE, CurrentStream
from sse_middleware.stream.linger_queue import LingerQueue
from sse_middleware.stream.responder import Responder
from sse_middleware.stream.shutdown import SHUTDOWN

logger = logging.getLogger("sse_middleware")

AnyASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI app by whatever types its framework calls scopes and messages."""


class SSEMiddleware:
    """Make the event streams of `app` survive the real world, and leave all else as it is.

    Args:
        app: any ASGI 3 app.
        marks: marks for path globs, for frameworks whose endpoints cannot carry them: `{"/chat/*":
            streaming(stream_max_seconds=600)}`; the first that matches counts, and a mark on the
            endpoint itself goes before.
        registry: where Prometheus metrics are counted and served from; the default one without.
        store: where the events of streams are kept; by default the memory of the process.
        identify: tells whose a request is, from its scope (whether by a session, a token or an
            address), `None` where it cannot; only they can resume their streams. It runs at the
            opening of a stream and at a resume, before the app, and must not block.
        authorize_resume: has the last word on a resume: a function, async or not, of the request's
            scope and the stream's `LogInfo`.
        expires_at: tells from a scope when the credentials of a request end, in seconds since the
            epoch, `None` for never; its stream ends then as at the cap.
        **options: fields of `Options`; each goes before its `SSE_*` variable.

    Raises:
        ConfigurationError: an argument is out of its bounds. A bad variable is told when the
            server starts the app up, so that it stops the start-up.
        TypeError: there is no such option.
    """

    def __init__(
        self,
        app: AnyASGIApp,
        *,
        marks: Mapping[str, Mark] | None = None,
        registry: CollectorRegistry | None = None,
        store: EventStore | None = None,
        identify: Identify | None = None,
        authorize_resume: Authorize | None = None,
        expires_at: ExpiresAt | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        for glob, mark in (marks or {}).items():
            if not isinstance(mark, Mark):
                raise TypeError(f"the mark of {glob!a} is {mark!r}, allowed is streaming(...)")
        self.app = app
        self._misconfigured: ConfigurationError | None = None
        chosen = Options.from_environ({}, **options)  # a bad argument is told here and now
        observers = (*counting_in(registry or REGISTRY), StreamLog())
        one_process = False
        try:
            chosen = Options.from_environ(os.environ, **options)
            if store is None:
                one_process = not chosen.redis_url
                store = _store(chosen, observers)
        except ConfigurationError as exc:
            self._misconfigured = exc
        self._context = Context(
            app=app,
            options=chosen,
            options_for=OncePerKey(lambda mark: chosen.with_overrides(mark.overrides)),
            store=MemoryStore() if store is None else store,
            linger_queue=LingerQueue(chosen.max_lingering, observers),
            marks={glob_pattern(glob): mark for glob, mark in (marks or {}).items()},
            observers=observers,
            identify=identify,
            authorize_resume=authorize_resume,
            expires_at=expires_at,
        )
        self._admission = None
        if self._misconfigured is None:
            try:
                self._admission = admission_for(self._context)
            except ConfigurationError as exc:
                self._misconfigured = exc
        self._resumption = ResumeHandler(self._context, one_process=one_process)
        self._follow_named = self._resumption.follow_named
        self._include = [glob_pattern(glob) for glob in chosen.include]
        self._exclude = [glob_pattern(glob) for glob in chosen.exclude]
        self._client = ClientFiles(chosen.client_path) if chosen.client_path else None
        # The ends of the paths that need a second look: those of what we serve, or all.
        all_paths = chosen.include or chosen.exclude or not chosen.enabled or self._misconfigured
        of_client = self._client.paths if self._client else ()
        own = (chosen.metrics_path, chosen.ready_path, *of_client)
        self._looked_at = ("",) if all_paths else tuple(filter(None, own))
        self._metrics: MetricsEndpoint | None = None
        if chosen.metrics_path:
            self._metrics = MetricsEndpoint(
                exposition(registry, os.environ),
                chosen.metrics_path,
                first="metrics_path" in chosen.explicit,
            )
        self._warned_of_loop = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: C901 - few calls
        """Handle one connection as ASGI 3 specifies."""
        # This runs for every request of the app: as few calls and objects as possible.
        if (
            scope["type"] != "http"
            or scope.get("path", "").endswith(self._looked_at)
            or IN_SCOPE in scope
            or SHUTDOWN.is_draining
        ) and (send := await self._intercept(scope, receive, send)) is None:
            return
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the event loop is not asyncio's
            task = None
        if task is None:
            await self.app(scope, receive, self._with_headers_only(scope, send))
            return
        responder: Responder | None
        if self._admission is None and not may_have_event_id(scope):
            current = CurrentStream(scope, self._follow_named)
            responder = Responder(self._context, current, scope, receive, send, task)
        elif (responder := await self._admit(scope, receive, send, task)) is None:
            return
        scope[IN_SCOPE] = current = responder.current
        token = CURRENT.set(current)
        try:
            await self.app(scope, responder.receive, responder.send)
        except BaseException as exc:
            if not responder.suppresses(exc):
                raise
        finally:
            try:
                if responder.producer is not None:
                    await responder.aclose()
            finally:
                try:
                    CURRENT.reset(token)
                except ValueError:  # the app's caller continues in another context
                    CURRENT.set(None)
                scope.pop(IN_SCOPE, None)
                if responder.admission is not None:
                    responder.admission.release()

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, task: "asyncio.Task[Any]"
    ) -> Responder | None:
        """Resume a stream or check the limits; return `None` after a response."""
        request, check = SSERequest(scope), None
        if may_have_event_id(scope):
            run_app = await self._resumption.handle(request, receive, send)
            if run_app is None:
                return None
            receive, send = run_app
        if self._admission is not None:
            check = AdmissionCheck(self._admission, self._context, request)
            await check.check_before_app()
            if check.refusal:
                await check.send_rejection(send)
                return None
        current = CurrentStream(scope, self._follow_named, request)
        return Responder(self._context, current, scope, receive, send, task, check)

    async def _intercept(self, scope: Scope, receive: Receive, send: Send) -> Send | None:
        """Handle a call that needs no responder and return `None`, or return the app's `send`."""
        if self._misconfigured is not None:
            await self._fail_start(self._misconfigured, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, self._with_lifespan(send))
        elif scope["type"] != "http" or IN_SCOPE in scope or not self._context.options.enabled:
            await self.app(scope, receive, send)
        elif (app_send := await self._send_own(scope, receive, send)) is not None:
            if not self._is_left_out(scope.get("path", "")):
                return app_send
            logger.debug("request left alone: its path is left out")
            await self.app(scope, receive, app_send)
        return None

    async def _send_own(self, scope: Scope, receive: Receive, send: Send) -> Send | None:
        """Send a page of ours or a rejection and return `None`, or return the app's `send`."""
        ready_path = self._context.options.ready_path
        if ready_path and is_request_for(scope, ready_path):
            await send_readiness(send, scope, ready=not _drains())
            return None
        if self._client is not None and is_request_for(scope, *self._client.paths):
            await self._client(scope, receive, send)
            return None
        if self._metrics is not None and is_request_for(scope, self._metrics.path):
            return await self._metrics.handle(scope, send)
        if _drains() and not self._is_left_out(scope.get("path", "")):
            is_rejected = await reject_if_draining(self._context, SSERequest(scope), send)
            return None if is_rejected else send
        return send

    def _with_lifespan(self, send: Send) -> Send:
        """Begin to listen for signals, and return a `send` that keeps what was given to a store."""
        if not self._context.options.enabled or not _has_loop():
            return send
        SHUTDOWN.drain_for(asyncio.get_running_loop())
        store = self._context.store
        if not store.is_shared:
            return send

        async def behind_flush(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                if self._admission is not None:
                    await self._admission.close()
                await store.close()
            await send(message)

        return behind_flush

    def _is_left_out(self, path: str) -> bool:
        if self._include and not any(glob.match(path) for glob in self._include):
            return True
        return any(glob.match(path) for glob in self._exclude)

    def _with_headers_only(self, scope: Scope, send: Send) -> Send:
        """Return a `send` for event loops that have no asyncio task, such as trio's."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers") or ()
                method = scope.get("method", "")
                if passthrough_reason(method, message["status"], headers) is None:
                    self._warn_of_loop()
                    added = stream_headers(
                        headers,
                        NO_TERMS,
                        http_version=scope.get("http_version", ""),
                        trace_id=SSERequest(scope).trace_id,
                        stream_id=stream_id(new_secret()),
                        keep_cache_control=True,
                    )
                    message = {**message, "headers": added}
            await send(message)

        return with_headers

    def _warn_of_loop(self) -> None:
        if not self._warned_of_loop:
            self._warned_of_loop = True
            logger.warning(
                "event streams get headers only, neither heartbeats nor a cap: "
                "they need asyncio, and this server runs the app in something else"
            )

    @staticmethod
    async def _fail_start(
        exc: ConfigurationError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] != "lifespan":
            raise exc
        await receive()
        await send({"type": "lifespan.startup.failed", "message": str(exc)})


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _drains() -> bool:
    """Return whether the server of the running loop drains."""
    if not (SHUTDOWN.is_draining and _has_loop()):
        return False
    return SHUTDOWN.drain_for(asyncio.get_running_loop()).is_draining


def _store(options: Options, observers: Sequence[Observer]) -> EventStore:
    limits: dict[str, Any] = {
        "max_events": options.replay_max_events,
        "max_bytes": options.replay_max_bytes,
        "ttl": options.replay_ttl,
    }
    if not options.redis_url:
        return MemoryStore(max_total_bytes=options.memory_max_bytes, **limits)
    try:
        from sse_middleware.stores.redis.store import RedisStore  # noqa: PLC0415 - an extra
    except ImportError as exc:
        allowed = "nothing, or with pip install 'sse-middleware[redis]' what is there"
        raise ConfigurationError("SSE_REDIS_URL", "a URL", allowed) from exc
    url, prefix = options.redis_url, options.redis_prefix
    try:
        return RedisStore(url, prefix=prefix, observers=observers, **limits)
    except ConfigurationError as exc:
        raise ConfigurationError("SSE_REDIS_URL", exc.got, exc.allowed) from exc
