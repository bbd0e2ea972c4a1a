"""Adapters between ASGI, WSGI and a function service, with the middleware and without it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx2 as httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import EventParser, SSEMiddleware
from tests.support import needs
from tests.support.raw_http import EVENTSOURCE
from tests.support.waiting import HANG_SECONDS, wait_until

Wrap = Callable[[Any], Any]
EVENTS = [b"data: %d\n\n" % number for number in range(3)]

MODES: dict[str, Wrap] = {
    "bare": lambda app: app,
    "unmarked": SSEMiddleware,
    "marked": lambda app: SSEMiddleware(app, mark="*"),
}
OURS = ("x-trace-id", "x-stream-id", "x-accel-buffering", "cache-control")


def flask_app() -> Any:
    """Return an app of Flask with a stream, a stream that fails, and JSON."""
    flask = needs.module("flask")
    app = flask.Flask("flask_app")
    app.add_url_rule("/json", view_func=lambda: {"a": 1}, endpoint="json")

    def stream() -> Any:
        return flask.Response(iter(EVENTS), mimetype="text/event-stream")

    def failing() -> Any:
        def events() -> Iterator[bytes]:
            yield EVENTS[0]
            raise ValueError("swordfish")

        return flask.Response(events(), mimetype="text/event-stream")

    app.add_url_rule("/stream", view_func=stream)
    app.add_url_rule("/failing", view_func=failing)
    return app


def starlette_app() -> Starlette:
    """Return the same as an app of Starlette."""

    async def events(*, fails: bool) -> Any:
        for event in EVENTS:
            yield event
            if fails:
                raise ValueError("swordfish")

    async def stream(request: Request) -> Response:
        fails = request.url.path == "/failing"
        return StreamingResponse(events(fails=fails), media_type="text/event-stream")

    async def as_json(request: Request) -> Response:
        return JSONResponse({"a": 1})

    return Starlette(
        routes=[Route("/stream", stream), Route("/failing", stream), Route("/json", as_json)]
    )


@contextmanager
def over_uvicorn(app: Any) -> Iterator[str]:
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server does not start")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(HANG_SECONDS)


class QuietHandler(WSGIRequestHandler):
    """Log nothing."""

    def log_message(self, *_: Any) -> None:
        """Do nothing."""


@contextmanager
def over_wsgiref(app: Any) -> Iterator[str]:
    """Serve an app by the server of the standard library, which is strict about headers."""
    a2wsgi = needs.module("a2wsgi")
    wsgi = a2wsgi.ASGIMiddleware(app)
    with make_server("127.0.0.1", 0, wsgi, handler_class=QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(HANG_SECONDS)
            loop = wsgi.loop
            loop.call_soon_threadsafe(loop.stop)
            wait_until(lambda: not loop.is_running(), "the loop of the adapter does not stop")
            loop.close()


def wsgi_to_asgi(wrap: Wrap) -> Any:
    return wrap(needs.module("asgiref.wsgi").WsgiToAsgi(flask_app()))


def a2wsgi_to_asgi(wrap: Wrap) -> Any:
    return wrap(needs.module("a2wsgi").WSGIMiddleware(flask_app()))


def asgi(wrap: Wrap) -> Any:
    return wrap(starlette_app())


ADAPTERS: dict[str, tuple[Callable[[Wrap], Any], Any]] = {
    "asgiref: WSGI in ASGI": (wsgi_to_asgi, over_uvicorn),
    "a2wsgi: WSGI in ASGI": (a2wsgi_to_asgi, over_uvicorn),
    "a2wsgi: ASGI in WSGI": (asgi, over_wsgiref),
}
Answer = tuple[int, dict[str, str], bytes]


def ask(url: str, headers: dict[str, str]) -> Answer:
    """Return status, headers and body; a body that is cut as far as it has come.

    On a new connection: on one that is kept, asgiref itself fails ("CurrentThreadExecutor already
    quit or is broken").
    """
    received = b""
    try:
        with httpx.stream("GET", url, headers=headers, timeout=HANG_SECONDS) as response:
            for chunk in response.iter_raw():
                received += chunk
    except httpx.RemoteProtocolError:
        received += b"(cut)"
    found = {name.lower(): value for name, value in response.headers.items()}
    found.pop("date", None)
    return response.status_code, found, received


def messages(body: bytes) -> list[str]:
    return [event.data for event in EventParser().feed(body) if event.event == "message"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_gives_the_same_with_the_middleware(adapter: str) -> None:
    make, serve = ADAPTERS[adapter]
    answers: dict[tuple[str, str, bool], Answer] = {}
    for mode, wrap in MODES.items():
        with serve(make(wrap)) as url:
            for path in ("/json", "/stream", "/failing"):
                for native in (False, True):
                    headers = EVENTSOURCE if native else {}
                    answers[mode, path, native] = ask(url + path, headers)
    for (mode, path, native), (status, headers, body) in answers.items():
        bare_status, bare_headers, bare_body = answers["bare", path, native]
        assert status == bare_status == 200, (mode, path)
        rest = {name: value for name, value in headers.items() if not name.startswith("x-")}
        if mode == "bare":
            continue
        if path == "/json":
            assert (headers, body) == (bare_headers, bare_body)
        elif mode == "unmarked":
            assert body == bare_body
            assert {**rest, "cache-control": ""} == {**bare_headers, "cache-control": ""}
            assert set(OURS) <= headers.keys()
        else:
            assert messages(body) == messages(bare_body)
            assert rest["cache-control"].startswith("no-cache, no-transform")
            names = [event.event for event in EventParser().feed(body)]
            if native:
                assert names[0] == "start"
                assert names[-1] == ("error" if path == "/failing" else "complete")
            else:
                assert set(names) <= {"message"}
        assert b"swordfish" not in body


def lambda_event(path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return a request as the function service of AWS passes it on."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "example.org", **headers},
        "requestContext": {
            "http": {
                "method": "GET",
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": headers.get("user-agent", ""),
            },
            "stage": "$default",
        },
        "isBase64Encoded": False,
    }


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("mode", ["unmarked", "marked"])
def test_mangum_collects_a_stream_with_the_middleware_as_without(
    mode: str, *, native: bool
) -> None:
    mangum = needs.module("mangum")
    headers = EVENTSOURCE if native else {}
    with asyncio.Runner() as runner:  # it uses the loop of the thread
        asyncio.set_event_loop(runner.get_loop())
        bare, ours = (
            {
                path: mangum.Mangum(MODES[name](starlette_app()), lifespan="off")(
                    lambda_event(path, headers), object()
                )
                for path in ("/stream", "/json")
            }
            for name in ("bare", mode)
        )
    assert ours["/json"] == bare["/json"]
    assert ours["/stream"]["statusCode"] == 200
    assert messages(ours["/stream"]["body"].encode()) == messages(bare["/stream"]["body"].encode())
    if mode == "unmarked":
        assert ours["/stream"]["body"] == bare["/stream"]["body"]
