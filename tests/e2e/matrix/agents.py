# ruff: noqa: PLC0415, T201 - each agent is imported in its own process only
"""An app inside the agents of tracers and error trackers; each agent needs a process of its own.

    python -m tests.e2e.matrix.agents sentry

The program prints what the agent has observed, by the mode of the middleware, as JSON.
"""

import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware, plugin
from sse_middleware.testing import EVENTSOURCE_HEADERS
from tests.support.asgi import Exchange, body, handle, http_scope, running, stream_start
from tests.support.clock import VirtualClockLoop

MODES: dict[str, dict[str, Any] | None] = {"bare": None, "unmarked": {}, "marked": {"mark": "*"}}
CLIENTS = {"eventsource": EVENTSOURCE_HEADERS, "plain": []}
Found = dict[str, Any]


def run(call: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(_awaited(call))


async def _awaited(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


def wrapped(app: ASGIApp, mode: str) -> ASGIApp:
    options = MODES[mode]
    return app if options is None else SSEMiddleware(app, **options)


async def deaf(_: Scope, receive: Receive, send: Send) -> None:
    """Read the body and stream, without listening for the disconnect."""
    await receive()
    await send(stream_start())
    for _number in range(20):
        await send(body(b"data: x\n\n"))
        await asyncio.sleep(1)
    await send(body(b"", more=False))


async def leaving(app: ASGIApp, client: str) -> None:
    """Send a request with a body, and leave after some heartbeats."""
    scope = http_scope(headers=CLIENTS[client], app=Starlette())
    async with running(app, Exchange(scope, body=b"question")) as exchange:
        await exchange.until_count(12)
        exchange.disconnect()
        await asyncio.sleep(60)


def opentelemetry() -> Found:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    found: Found = {}
    for mode in MODES:
        for client in CLIENTS:
            spans, provider = InMemorySpanExporter(), TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(spans))
            app = OpenTelemetryMiddleware(wrapped(deaf, mode), tracer_provider=provider)
            run(partial(leaving, app, client))
            finished = spans.get_finished_spans()
            found[f"{mode} {client}"] = {
                "traces": len({span.context.trace_id for span in finished}),
                "roots": [span.name for span in finished if span.parent is None],
                "received": sum("receive" in span.name for span in finished),
            }
    return found


def elastic() -> Found:
    from elasticapm.contrib.starlette import ElasticAPM, make_apm_client

    client = make_apm_client(
        {
            "SERVICE_NAME": "app",
            "CAPTURE_BODY": "all",
            "DISABLE_SEND": True,
            "CENTRAL_CONFIG": False,
            "CLOUD_PROVIDER": "none",
        }
    )
    found: Found = {}
    for mode in MODES:
        for kind in CLIENTS:
            calls: list[int] = []

            def counting(app: ASGIApp, calls: list[int] = calls) -> ASGIApp:
                async def layer(scope: Scope, receive: Receive, send: Send) -> None:
                    async def counted() -> Message:
                        calls.append(1)
                        assert len(calls) < 1000, "a busy loop"
                        return await receive()

                    await app(scope, counted, send)

                return layer

            app = ElasticAPM(counting(wrapped(deaf, mode)), client=client)
            run(partial(leaving, app, kind))
            found[f"{mode} {kind}"] = len(calls)
    client.close()
    return found


def sentry() -> Found:
    import sentry_sdk
    from sentry_sdk.integrations.starlette import StarletteIntegration

    events: list[MutableMapping[str, Any]] = []

    def keep(event: Any, _: Any) -> None:
        events.append(event)

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        before_send=keep,
        auto_session_tracking=False,
        auto_enabling_integrations=False,  # all packages that are installed, in seconds
        integrations=[StarletteIntegration()],
    )
    found: Found = {}
    for mode, options in MODES.items():
        for client, headers in CLIENTS.items():
            layers = [] if options is None else [Middleware(SSEMiddleware, **options)]
            app = Starlette(routes=[Route("/", failing)], middleware=layers)
            events.clear()
            run(partial(failed, app, headers))
            found[f"{mode} {client}"] = [
                f"{event['level']} {event['exception']['values'][-1]['type']}"
                if "exception" in event
                else f"{event['level']} {event.get('logentry')}"
                for event in events
            ]
    return found


async def failing(_: Request) -> Response:
    async def events() -> Any:
        yield b"data: x\n\n"
        await asyncio.sleep(1)
        raise ValueError("swordfish")

    return StreamingResponse(events(), media_type="text/event-stream")


async def failed(app: ASGIApp, headers: list[tuple[bytes, bytes]]) -> None:
    results = await asyncio.gather(handle(app, headers=headers), return_exceptions=True)
    assert isinstance(results[0], ValueError)


def newrelic() -> Found:
    hooks = importlib.import_module("newrelic.hooks.framework_starlette")  # it has no types
    proxies = [hooks.wrap_middleware(one) for one in (CORSMiddleware, SSEMiddleware)]
    app = Starlette(routes=[Route("/", failing)])
    app.add_middleware(proxies[0], allow_origins=["https://app.example"])
    plugin.install(app, mark="*")
    order = [layer.cls is proxies[0] for layer in app.user_middleware]
    origin = [*EVENTSOURCE_HEADERS, (b"origin", b"https://app.example")]
    exchange = Exchange(http_scope(headers=origin))

    async def ask() -> None:
        call = app(exchange.scope, exchange.receive, exchange.send)
        await asyncio.gather(call, return_exceptions=True)

    run(ask)
    return {
        "cors first": order,
        "names": exchange.names,
        "origin": exchange.headers[b"access-control-allow-origin"].decode(),
    }


AGENTS = {agent.__name__: agent for agent in (opentelemetry, elastic, sentry, newrelic)}

if __name__ == "__main__":
    print(json.dumps(AGENTS[sys.argv[1]]()))
