"""One FastAPI app in many stacks of middlewares, each under a path of its own.

A stream with `?hold_at=` waits after so many events for a request to `/release`.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Annotated, Any

from asgi_correlation_id import CorrelationIdMiddleware
from brotli_asgi import BrotliMiddleware
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
from slowapi import Limiter
from slowapi.middleware import SlowAPIMiddleware
from slowapi.util import get_remote_address
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.e2e.matrix import app_parts

_OUTER: ContextVar[str] = ContextVar("outer", default="unset")
_DISPATCHED: ContextVar[str] = ContextVar("dispatched", default="unset")


class SetsVariable:
    """Set a context variable around everything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = _OUTER.set("outer")
        try:
            await self.app(scope, receive, send)
        finally:
            _OUTER.reset(token)


class Dispatches(BaseHTTPMiddleware):
    """Set another one, and a header, in a `BaseHTTPMiddleware`."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        _DISPATCHED.set("dispatched")
        response = await call_next(request)
        response.headers["x-dispatched"] = "yes"
        return response


class Anyone(AuthenticationBackend):
    """Authenticate each request as the same user."""

    async def authenticate(self, _: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        return AuthCredentials(["authenticated"]), SimpleUser("user")


OTHERS = {
    "gzip": [Middleware(GZipMiddleware, minimum_size=10)],
    "cors": [
        Middleware(CORSMiddleware, allow_origins=["https://example.org"], allow_credentials=True)
    ],
    "base": [Middleware(Dispatches)],
    "two bases": [Middleware(Dispatches), Middleware(Dispatches)],
}
# Not its `SlowAPIASGIMiddleware`, which sends the response start with each part of a body.
OTHERS["slowapi"] = [Middleware(SlowAPIMiddleware)]
OTHERS["brotli"] = [
    # With streams compressed: see `test_compression.py`.
    Middleware(BrotliMiddleware, minimum_size=10, excluded_handlers=["/stream"])
]
OTHERS["agents"] = [
    Middleware(OpenTelemetryMiddleware, tracer_provider=TracerProvider()),
    Middleware(SentryAsgiMiddleware),
    Middleware(CorrelationIdMiddleware, generator=lambda: "the same for both"),
    Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
    Middleware(AuthenticationMiddleware, backend=Anyone()),
]
OTHERS["all"] = [*OTHERS["gzip"], *OTHERS["cors"], *OTHERS["base"]]

SESSION = Middleware(SessionMiddleware, secret_key="matrix")
US = Middleware(SSEMiddleware, mark=app_parts.MARK)


def stacks() -> dict[str, list[Middleware]]:
    """Return each stack by its name, the outermost middleware first."""
    us = [US] if app_parts.WITH_US else []
    found = {"alone-outside": [SESSION, *us], "alone-inside": [*us, SESSION]}
    for name, others in OTHERS.items():
        slug = name.replace(" ", "-")
        found[f"{slug}-outside"] = [*others, SESSION, *us]
        found[f"{slug}-inside"] = [*us, *others, SESSION]
    for place in ("outside", "inside"):  # each counts in a registry of its own
        instrumentator = Middleware(
            PrometheusInstrumentatorMiddleware, registry=CollectorRegistry()
        )
        outer, inner = ([instrumentator], []) if place == "outside" else ([], [instrumentator])
        found[f"instrumentator-{place}"] = [*outer, SESSION, *us, *inner]
    outer = inner = [Middleware(SSEMiddleware)] if app_parts.WITH_US else []
    found["nested-outside"] = [*outer, SESSION, *us]  # the inner one has the mark
    found["nested-inside"] = [*us, SESSION, *inner]
    found["base-around"] = [*OTHERS["base"], SESSION, *us, *OTHERS["base"]]
    return found


async def resource(key: str) -> AsyncIterator[str]:
    try:
        yield "resource"
    finally:
        app_parts.note(key, "dependency")


def make(stack: list[Middleware]) -> ASGIApp:
    """Create the app with the middlewares of `stack`."""
    app = FastAPI(middleware=[Middleware(SetsVariable), *stack])
    app.state.limiter = Limiter(get_remote_address, default_limits=["100000/minute"])
    released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    @app.get("/stream")
    async def stream(
        *,
        request: Request,
        key: str,
        n: int,
        pause: float,
        hold_at: int = -1,
        held: Annotated[str, Depends(resource)],
        tasks: BackgroundTasks,
    ) -> StreamingResponse:
        request.session["count"] = request.session.get("count", 0) + 1
        tasks.add_task(note_with_variables, key)

        async def events() -> AsyncIterator[bytes]:
            if hold_at == 0:
                await released[key].wait()
            variables = f"{_OUTER.get()} {_DISPATCHED.get()} {request.session['count']}"
            number = 0
            async for event in app_parts.events(key, n, pause):
                yield event.replace(b"\n\n", f" {variables}\n\n".encode())
                number += 1
                if number == hold_at:
                    await released[key].wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def note_with_variables(key: str) -> None:
        app_parts.note(key, f"background {_OUTER.get()} {_DISPATCHED.get()}")

    @app.get("/release")
    async def release(key: str) -> None:
        released[key].set()

    @app.get("/json")
    async def json(request: Request) -> dict[str, Any]:
        return {"session": request.session.get("count", 0), "text": "x" * 5000}

    return app


_apps = {f"/{name}": make(stack) for name, stack in stacks().items()}


async def _dispatch(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        return
    name, slash, rest = scope["path"][1:].partition("/")
    await _apps[f"/{name}"]({**scope, "path": slash + rest}, receive, send)


app = app_parts.watched(_dispatch)
