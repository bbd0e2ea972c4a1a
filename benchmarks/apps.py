"""The apps of the contestants.

They have the same routes:

- `/stream?events=N&burst=B&length=L&pause=P`: N events, with a turn of the loop after every B (0:
  none) that takes P milliseconds (0: no time); an event is L times as long as usual
- `/idle`: one event, then silence
- `/paced?per_second=P`: an endless stream of events with the time at which they are sent
- `/json`: a JSON response

The apps of channels have one route, `/channel?name=N`: an endless stream of all that is published
on this channel. Those of resumable streams have the first route; `name=N` there names the stream.

An app imports no other contestant, because the garbage collector visits everything that is loaded.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

DATA = '{"id":"chatcmpl-123","choices":[{"index":0,"delta":{"content":"hello"}}]}'
JSON = {"id": 123, "name": "a name", "tags": ["one", "two"], "price": 1.5}

PLAIN = {"Accept": "*/*"}
EVENTSOURCE = {
    "Accept": "text/event-stream",
    "Cache-Control": "no-cache",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
}
WITH_IDENTITY = {**PLAIN, "Authorization": "Bearer a-token"}
"""Of a plain client whose streams may be kept: only the same identity can resume them."""
HEARTBEAT_VARIABLE = "SSE_HEARTBEAT_INTERVAL"
"""The setting of the middleware; the app of sse-starlette reads it too."""
LONGER_THAN_ANY_SUITE = 600  # seconds

Source = Callable[..., AsyncIterator[Any]]
Wrap = Callable[[str], Any]
Respond = Callable[[AsyncIterator[Any]], Response]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of the compared implementations.

    Attributes:
        app: makes the ASGI app.
        headers: of each request; the middleware derives the kind of client from them.
        heartbeat: bytes that every heartbeat contains; empty: there is no heartbeat, or its
            interval cannot be set.
    """

    app: Callable[[], ASGIApp]
    headers: Mapping[str, str]
    heartbeat: bytes = b""


def as_bytes(data: str) -> bytes:
    """Return an event in the form that Starlette's `StreamingResponse` takes."""
    return f"data: {data}\n\n".encode()


def sources(wrap: Wrap) -> dict[str, Source]:
    """Return the events of each streaming route; `wrap` makes an event of its data."""
    never = asyncio.Event()

    async def stream(
        events: int, burst: int, length: int = 1, pause: int = 0
    ) -> AsyncIterator[Any]:
        event = wrap(DATA * length)
        seconds = pause / 1000
        for number in range(1, events + 1):
            yield event
            if burst and number % burst == 0:
                await asyncio.sleep(seconds)

    async def idle() -> AsyncIterator[Any]:
        yield wrap(DATA)
        await never.wait()

    async def paced(per_second: int) -> AsyncIterator[Any]:
        while True:
            yield wrap(json.dumps({"sent": time.monotonic()}))
            await asyncio.sleep(1 / per_second)

    return {"/stream": stream, "/idle": idle, "/paced": paced}


def starlette(wrap: Wrap = as_bytes, respond: Respond | None = None) -> Starlette:
    """Return a Starlette app; `respond` makes its streaming responses."""

    def plain(events: AsyncIterator[Any]) -> Response:
        return StreamingResponse(events, media_type="text/event-stream")

    def route(path: str, source: Source) -> Route:
        async def endpoint(request: Request) -> Response:
            counts = {name: int(value) for name, value in request.query_params.items()}
            return (respond or plain)(source(**counts))

        return Route(path, endpoint)

    async def answer_json(_: Request) -> Response:
        return JSONResponse(JSON)

    routes = [route(path, source) for path, source in sources(wrap).items()]
    return Starlette(routes=[*routes, Route("/json", answer_json)])


def bare() -> ASGIApp:
    """Return an app that sends ASGI messages without a framework."""
    streams = sources(as_bytes)

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/json":
            await _send_start(send, b"application/json")
            await send({"type": "http.response.body", "body": _compact_json()})
            return
        pairs = [pair.split("=") for pair in scope["query_string"].decode().split("&") if pair]
        await _send_start(send, b"text/event-stream")
        async for event in streams[scope["path"]](**{name: int(value) for name, value in pairs}):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def _send_start(send: Send, media_type: bytes) -> None:
    headers = [(b"content-type", media_type)]
    if media_type == b"application/json":
        headers.append((b"content-length", str(len(_compact_json())).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def _compact_json() -> bytes:
    return json.dumps(JSON, separators=(",", ":")).encode()


def sse_starlette() -> ASGIApp:
    """Return an app that uses sse-starlette's response, with the configured heartbeat interval."""
    from sse_starlette import EventSourceResponse

    ping = float(os.environ[HEARTBEAT_VARIABLE])
    return starlette(
        lambda data: {"data": data}, lambda events: EventSourceResponse(events, ping=ping)
    )


def fastapi() -> ASGIApp:
    """Return an app that uses FastAPI's event streams in their cheapest form: with text."""
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    app = FastAPI()
    for path, source in sources(lambda data: ServerSentEvent(raw_data=data)).items():
        app.get(path, response_class=EventSourceResponse)(source)

    @app.get("/json")
    async def answer_json() -> dict[str, Any]:
        return JSON

    return app


def base_http_middleware() -> ASGIApp:
    """Return the Starlette app in a `BaseHTTPMiddleware` that does nothing."""
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    app = starlette()
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    return app


def correlation_and_instrumentator() -> ASGIApp:
    """Return the Starlette app in the two middlewares most used for trace ids and metrics."""
    from asgi_correlation_id import CorrelationIdMiddleware
    from prometheus_fastapi_instrumentator import Instrumentator

    app = starlette()
    app.add_middleware(CorrelationIdMiddleware)
    Instrumentator().instrument(app)
    return app


def sse_middleware(**options: Any) -> ASGIApp:
    """Return the Starlette app in `SSEMiddleware`, with its defaults except for `options`."""
    from sse_middleware import SSEMiddleware

    app = starlette()
    app.add_middleware(SSEMiddleware, **options)
    return app


def channels() -> ASGIApp:
    """Return an app that streams events from the channels of the middleware."""
    from sse_middleware.channels import subscribe

    def source(name: str) -> AsyncIterator[Any]:
        return subscribe(name, url=os.environ[REDIS_VARIABLE])

    return _named_streams(source)


def pubsub() -> ASGIApp:
    """Return an app that streams events from redis-py's pub/sub, one subscription per stream."""
    from redis.asyncio import Redis

    client = Redis.from_url(os.environ[REDIS_VARIABLE], max_connections=10_000)

    async def source(name: str) -> AsyncIterator[bytes]:
        async with client.pubsub() as subscription:
            await subscription.subscribe(name)
            async for message in subscription.listen():
                is_event = message["type"] == "message"
                yield as_bytes(message["data"].decode()) if is_event else b": subscribed\n\n"

    return _named_streams(source)


def _named_streams(source: Callable[[str], AsyncIterator[Any]]) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        events = source(request.query_params["name"])
        return StreamingResponse(events, media_type="text/event-stream")

    return Starlette(routes=[Route("/channel", endpoint)])


def named() -> ASGIApp:
    """Return an app whose streams have names, so that every client can resume them."""
    from sse_middleware import SSEMiddleware, current_stream

    async def respond(request: Request) -> Response:
        current_stream().name(request.query_params["name"])
        return StreamingResponse(_chunks(request), media_type="text/event-stream")

    app = _resumable(respond)
    app.add_middleware(SSEMiddleware, mark="*")
    return app


def assistant_stream() -> ASGIApp:
    """Return an app whose streams are resumable by assistant-stream."""
    from assistant_stream.resumable import (
        create_redis_resumable_stream_store,
        create_resumable_stream_context,
    )
    from redis.asyncio import Redis

    client = Redis.from_url(os.environ[REDIS_VARIABLE])
    context = create_resumable_stream_context(store=create_redis_resumable_stream_store(client))

    async def respond(request: Request) -> Response:
        chunks = await context.run(request.query_params["name"], partial(_chunks, request))
        return StreamingResponse(chunks, media_type="text/event-stream")

    return _resumable(respond)


def fastapi_resumable_stream() -> ASGIApp:
    """Return an app whose streams are resumable by fastapi-resumable-stream."""
    from fastapi_resumable_stream import (
        ActiveStreamRegistry,
        ResumableStream,
        StopController,
        start_conversation_stream,
    )
    from redis.asyncio import Redis

    client = Redis.from_url(os.environ[REDIS_VARIABLE])
    stop = StopController(client)
    context = ResumableStream(client, stop=stop)
    registry = ActiveStreamRegistry(client)

    async def respond(request: Request) -> Response:
        async def texts() -> AsyncIterator[str]:
            async for chunk in _chunks(request):
                yield chunk.decode()

        name = request.query_params["name"]
        answer: Response = await start_conversation_stream(
            context, registry, stop, name, name, texts
        )
        return answer

    return _resumable(respond)


def _chunks(request: Request) -> AsyncIterator[Any]:
    counts = {name: value for name, value in request.query_params.items() if name != "name"}
    return sources(as_bytes)["/stream"](**{name: int(value) for name, value in counts.items()})


def _resumable(respond: Callable[[Request], Awaitable[Response]]) -> Starlette:
    return Starlette(routes=[Route("/stream", respond)])


RECORDED = "sse_middleware as eventsource"
UNRECORDED = "sse_middleware as eventsource, not kept"
AS_PLAIN = "sse_middleware as plain"
KEPT_PLAIN = "sse_middleware as plain, kept"
UNMARKED = "sse_middleware, unmarked"
MARKED = (RECORDED, UNRECORDED, AS_PLAIN, KEPT_PLAIN)
"""The contestants whose streams are marked."""
OURS = (UNMARKED, *MARKED)
"""The contestants that use the middleware."""
NOT_KEPT = (UNMARKED, UNRECORDED, AS_PLAIN)
"""Those that keep no events. The cost of keeping them has separate budgets."""
CHANNELS = "channels"
PUBSUB = "pub/sub of redis-py"
"""The two contestants of the suite `channels`."""
RESUMABLE = ("sse_middleware", "assistant-stream", "fastapi-resumable-stream")
"""The contestants of the suite `redis-commands`."""
REDIS_VARIABLE = "BENCHMARK_REDIS_URL"
"""The environment variable with the URL of their Redis."""

CONTESTANTS = {
    "bare": Contestant(app=bare, headers=PLAIN),
    "starlette": Contestant(app=starlette, headers=PLAIN),
    "sse-starlette": Contestant(app=sse_starlette, headers=PLAIN, heartbeat=b": ping"),
    "fastapi": Contestant(app=fastapi, headers=PLAIN),
    "BaseHTTPMiddleware": Contestant(app=base_http_middleware, headers=PLAIN),
    "correlation + instrumentator": Contestant(app=correlation_and_instrumentator, headers=PLAIN),
    UNMARKED: Contestant(app=sse_middleware, headers=PLAIN),
    RECORDED: Contestant(
        app=partial(sse_middleware, mark="*"), headers=EVENTSOURCE, heartbeat=b"event: heartbeat"
    ),
    UNRECORDED: Contestant(
        app=partial(sse_middleware, mark="*", replay_max_events=0),
        headers=EVENTSOURCE,
        heartbeat=b"event: heartbeat",
    ),
    AS_PLAIN: Contestant(
        app=partial(sse_middleware, mark="*"), headers=PLAIN, heartbeat=b"\n: heartbeat"
    ),
    KEPT_PLAIN: Contestant(
        app=partial(sse_middleware, mark="*", keep=True),
        headers=WITH_IDENTITY,
        heartbeat=b"\n: heartbeat",
    ),
    CHANNELS: Contestant(app=channels, headers=PLAIN),
    PUBSUB: Contestant(app=pubsub, headers=PLAIN),
    **{
        name: Contestant(app=app, headers=WITH_IDENTITY)
        for name, app in zip(
            RESUMABLE, (named, assistant_stream, fastapi_resumable_stream), strict=True
        )
    },
}
APART = (CHANNELS, PUBSUB, *RESUMABLE)
"""Contestants that only the suites `channels` and `redis-commands` can measure."""
