"""The middleware costs an ordinary request a few calls; these are counted, and not timed."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

import sse_middleware
from sse_middleware import SSEMiddleware
from sse_middleware.stream.shutdown import SHUTDOWN
from tests.support.asgi import Exchange, http_scope
from tests.support.resuming import Listening, left

pytestmark = pytest.mark.anyio

PACKAGE = str(Path(sse_middleware.__file__).parent)


@pytest.fixture(autouse=True)
def _no_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo a drain of another test in this process, since requests are then handled differently."""
    monkeypatch.setattr(SHUTDOWN, "is_draining", False)


async def json_app(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


async def calls_of(app: SSEMiddleware, scope: Scope) -> list[str]:
    """Return the functions of the package that a request calls, in order."""
    exchange, names = Exchange(scope), list[str]()

    def on_event(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and "testing" not in file:
            names.append(frame.f_code.co_qualname)

    await app(exchange.scope, exchange.receive, exchange.send)  # caches are filled
    sys.setprofile(on_event)
    try:
        await app(exchange.scope, exchange.receive, exchange.send)
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.parametrize(
    "options",
    [{}, {"ready_path": "/ready", "client_path": "/sse-client.js"}],
    ids=["bare", "pages"],
)
async def test_a_json_request_costs_six_calls(options: dict[str, Any]) -> None:
    app = SSEMiddleware(json_app, **options)
    names = await calls_of(app, http_scope(path="/items", headers=[(b"accept", b"*/*")]))
    assert names == [
        "SSEMiddleware.__call__",
        "may_have_event_id",
        "Responder.__init__",
        "Responder.send",
        "is_not_event_stream",
        "Responder.send",
    ]


async def test_lingering_streams_add_one_call_to_the_requests_for_other_paths() -> None:
    listening = Listening()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (json_app if scope["path"] == "/items" else listening)(scope, receive, send)

    kept = SSEMiddleware(app, mark="/stream", registry=CollectorRegistry())
    alice = (b"authorization", b"Bearer alice")
    request = http_scope(path="/items", headers=[alice])
    control = await calls_of(kept, request)
    async with left(kept, 1, alice, path="/stream"):
        assert await calls_of(kept, request) == [*control[:2], "request_path", *control[2:]]
    assert await calls_of(kept, request) == control


@pytest.mark.parametrize(
    ("method", "accept", "most"),
    [("GET", b"*/*", 21), ("GET", b"application/json", 14), ("OPTIONS", b"*/*", 14)],
)
async def test_limits_add_calls_only_if_the_response_may_be_a_stream(
    method: str, accept: bytes, most: int
) -> None:
    app = SSEMiddleware(json_app, max_streams=100)
    scope = http_scope(method=method, path="/items", headers=[(b"accept", accept)])
    names = await calls_of(app, scope)
    assert len(names) <= most, names
    assert ("Context.match_route" in names) is (most > 14)
