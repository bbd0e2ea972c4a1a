"""Settings that are not allowed stop the start-up; the object can be copied to other processes."""

import asyncio
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import ConfigurationError, SSEMiddleware, plugin, streaming
from tests.support.asgi import body, handle, stream_start
from tests.support.middleware import marking

Wrap = Callable[[], Any]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    await send(body(b"data: 1\n\n", more=False))


def layered(**arguments: Any) -> Starlette:
    """Return an app whose layers Starlette creates when its lifespan begins."""
    inner = Starlette()
    inner.add_middleware(SSEMiddleware, **arguments)
    return inner


WRONG: dict[str, tuple[Wrap, tuple[str, ...]]] = {
    "variable": (lambda: marking(app), ("SSE_HEARTBEAT_INTERVAL", "'0'", "off")),
    "variable, layer": (layered, ("SSE_HEARTBEAT_INTERVAL", "'0'", "off")),
    "argument": (lambda: layered(stream_max_seconds=0), ("stream_max_seconds", "0", "off")),
    "unknown argument": (lambda: layered(heartbeats=1), ("heartbeats", "heartbeat_interval")),
    "mark": (lambda: layered(marks={"chat": streaming()}), ("marks", "'chat'")),
    "no mark": (lambda: layered(marks={"/chat": None}), ("/chat", "streaming(...)")),
}
EACH_MISTAKE = pytest.mark.parametrize("mistake", WRONG)


@pytest.fixture(autouse=True)
def variable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "variable" in request.node.name:
        monkeypatch.setenv("SSE_HEARTBEAT_INTERVAL", "0")


@EACH_MISTAKE
def test_a_setting_that_is_not_allowed_stops_the_start_up_and_is_raised(mistake: str) -> None:
    make, words = WRONG[mistake]
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    wrapped = make()
    with pytest.raises((ConfigurationError, TypeError)) as raised:
        asyncio.run(wrapped({"type": "lifespan"}, receive, send))
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert "\n" not in message["message"]
    for word in ("SSEMiddleware", *words):
        assert word in message["message"]
        assert word in str(raised.value) or word == "SSEMiddleware"
    with pytest.raises((ConfigurationError, TypeError)):  # a server without lifespans
        asyncio.run(handle(wrapped))


@EACH_MISTAKE
@pytest.mark.timeout(20)
def test_starlettes_test_client_raises_at_its_start_and_does_not_hang(mistake: str) -> None:
    try:
        from starlette.testclient import TestClient  # noqa: PLC0415 - needs httpx
    except (ImportError, RuntimeError):
        pytest.skip("the minimal environment has no httpx")
    wrapped = WRONG[mistake][0]()
    with pytest.raises((ConfigurationError, TypeError)), TestClient(wrapped):
        pass


def test_an_argument_raises_at_once_where_no_event_loop_runs() -> None:
    with pytest.raises(ConfigurationError):
        SSEMiddleware(app, stream_max_seconds=0)
    with pytest.raises(TypeError, match="heartbeats"):
        marking(app, heartbeats=1)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_the_middleware_can_be_pickled_with_its_arguments(protocol: int) -> None:
    marks = {"/chat/*": streaming(stream_max_seconds=9)}
    original = SSEMiddleware(app, marks=marks, identify=str, mark="/feed")
    copy = pickle.loads(pickle.dumps(original, protocol))
    assert type(copy) is SSEMiddleware
    assert copy.app is app
    capped = asyncio.run(handle(copy, path="/chat/1"))
    assert capped.headers[b"x-stream-max-seconds"] == b"9"
    assert b"x-heartbeat-interval" in asyncio.run(handle(copy, path="/feed")).headers
    assert b"x-heartbeat-interval" not in asyncio.run(handle(copy, path="/")).headers


class Proxy:
    """A wrapper of a class as New Relic's agent makes it: it is equal to it, but not identical."""

    def __init__(self, wrapped: Any) -> None:
        functools.update_wrapper(self, wrapped, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]


class OwnCORS(CORSMiddleware):
    """A subclass."""


@pytest.mark.parametrize("cors", [CORSMiddleware, Proxy(CORSMiddleware), OwnCORS])
def test_install_places_the_middleware_inside_cors_also_if_an_agent_wraps_the_class(
    cors: Any,
) -> None:
    inner = Starlette()
    inner.add_middleware(GZipMiddleware)
    inner.add_middleware(cors, allow_origins=["https://app.example"])
    for _ in range(2):
        plugin.install(inner)
    layers = [layer.cls for layer in inner.user_middleware]
    assert layers == [cors, SSEMiddleware, GZipMiddleware]


def test_install_finds_its_own_layer_in_a_proxy() -> None:
    inner = Starlette()
    inner.add_middleware(Proxy(SSEMiddleware))
    plugin.install(inner)
    assert len(inner.user_middleware) == 1
