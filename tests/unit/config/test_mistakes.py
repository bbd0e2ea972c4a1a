"""Mistakes of developers: each message has the value, what is allowed, and the remedy."""

import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import Message

from sse_middleware import MemoryStore, SSEMiddleware, resume_endpoint, streaming
from sse_middleware.channels import BlockingPublisher, Publisher, subscribe
from sse_middleware.config.options import Options
from sse_middleware.http.starlette_routes import warn_of_names
from tests.support.mistakes import Mistake, app, check_explained, mark, wrap

CHANNEL = "1 to 200 visible ASCII characters, without spaces"
JSON = "what JSON and UTF-8 can encode: convert it before you publish it"
MARKS = 'a mapping such as {"/chat/*": streaming()}; for paths alone, use mark="/chat/*"'
GLOBS = "path globs below the root_path, each with a / or * first"
SECONDS = "seconds from 0.05 to 31536000, or off (None)"


def publish(channel: Any = "channel", event: Any = "step", data: Any = None) -> Any:
    return lambda: BlockingPublisher("").publish(channel, event, data)


def endless() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


MISTAKES: dict[str, Mistake] = {
    "an argument that does not exist": (
        wrap(heartbeat_intervall=3),
        "no such option: heartbeat_intervall; did you mean: heartbeat_interval",
    ),
    "the beginning of an argument": (
        mark(heartbeat=3),
        "no such option: heartbeat; did you mean: heartbeat_interval",
    ),
    "an option of the app on a mark": (
        mark(max_streams=3),
        (
            "not an option of one endpoint: max_streams; set it for the app: "
            "SSEMiddleware(app, max_streams=...), or SSE_MAX_STREAMS"
        ),
    ),
    "a number in quotes": (
        wrap(heartbeat_interval="5"),
        f"heartbeat_interval is '5', allowed is {SECONDS}; in Python, that is 5.0",
    ),
    "a number out of its bounds": (
        wrap(heartbeat_interval=0),
        f"heartbeat_interval is 0, allowed is {SECONDS}",
    ),
    "a number in place of text": (
        wrap(mark=5),
        f"mark is 5, allowed is {GLOBS}, separated by commas (or a list)",
    ),
    "a path without a slash": (
        wrap(mark="chat"),
        f"mark is ('chat',), allowed is {GLOBS}, separated by commas (or a list)",
    ),
    "marks without a slash": (
        wrap(marks={"chat": streaming()}),
        f"a path of marks is 'chat', allowed is {GLOBS}",
    ),
    "marks in a list": (
        wrap(marks=["/chat"]),
        f"marks is ['/chat'], allowed is {MARKS}",
    ),
    "options in place of a mark": (
        wrap(marks={"/chat": {}}),
        "the mark of '/chat' is {}, allowed is streaming(...)",
    ),
    "a class of stores": (
        wrap(store=MemoryStore),
        (
            "store is <class 'sse_middleware.stores.memory.MemoryStore'>, allowed is an instance, "
            "such as MemoryStore(...); for a Redis, redis_url is enough"
        ),
    ),
    "the name of a store": (
        wrap(store="redis"),
        (
            "store is 'redis', allowed is an instance, such as RedisStore(...); for a Redis, "
            "redis_url is enough"
        ),
    ),
    "an identity in place of a function": (
        wrap(identify="user"),
        "identify is 'user', allowed is a function, or None",
    ),
    "a cache without attach": (mark(cache_ttl=5), 'cache_ttl needs attach="kept"'),
    "an unknown attach": (
        mark(attach="yes"),
        "attach is 'yes', allowed is never or running or kept",
    ),
    "a channel with a space": (
        publish(channel="my channel"),
        f"channel is 10 characters long, with a space at position 3, allowed is {CHANNEL}",
    ),
    "a channel with an umlaut": (
        publish(channel="käse"),
        (
            "channel is 4 characters long, with one that is not allowed at position 2, "
            f"allowed is {CHANNEL}"
        ),
    ),
    "a long channel": (
        publish(channel="x" * 201),
        f"channel is 201 characters long, allowed is {CHANNEL}",
    ),
    "a number as a channel": (
        lambda: subscribe(5),  # type: ignore[arg-type]
        f"channel is of the type int, allowed is {CHANNEL}",
    ),
    "an event with a line end": (
        publish(event="a\nb"),
        "event is 'a\\nb', allowed is 1 to 128 characters, none of them a control",
    ),
    "data with a set": (
        publish(data={"a": [1, {"b": {2}}]}),
        f"data is not JSON (a set in data['a'][1]['b']), allowed is {JSON}",
    ),
    "data with a key that is no text": (
        publish(data=[{(1, 2): 3}]),
        f"data is not JSON (a key of the type tuple in data[0]), allowed is {JSON}",
    ),
    "data with a number that JSON lacks": (
        publish(data={"score": float("nan")}),
        f"data is not JSON (nan in data['score']), allowed is {JSON}",
    ),
    "data with half a character": (
        publish(data=["\ud800"]),
        f"data is not JSON (text with a lone surrogate in data[0]), allowed is {JSON}",
    ),
    "data in itself": (
        publish(data=endless()),
        f"data is not JSON (nested more than 100 times, or in itself), allowed is {JSON}",
    ),
    "another name in place of replay": (
        lambda: resume_endpoint("chat", finished="all"),  # type: ignore[arg-type]
        "finished is 'all', allowed is replay",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained(mistake: str) -> None:
    check_explained(MISTAKES[mistake])


def test_the_directory_of_the_metrics_of_processes_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="allowed is an existing directory; create it, empty"):
        SSEMiddleware(app)


def test_a_variable_with_nearly_the_name_of_another_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environ = {"SSE_HEARTBEAT_INTERVALS": "3", "SSE_SOMETHING_OF_ANOTHER_PROGRAM": "1"}
    for _ in range(2):
        Options.from_environ(environ)
    (warning,) = caplog.messages
    assert warning == (
        "There is no setting SSE_HEARTBEAT_INTERVALS, so it has no effect. "
        "Did you mean SSE_HEARTBEAT_INTERVAL?"
    )


def test_a_store_in_memory_beside_a_url_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("redis")
    SSEMiddleware(app, store=MemoryStore(), redis_url="redis://localhost")
    assert "Leave out `store` to keep streams in Redis too" in caplog.text


@streaming(stream_name="chat:{chat.id}:{user}")
async def named(request: Any) -> Any: ...


@streaming(stream_name="chat:{room}")
async def misnamed(request: Any) -> PlainTextResponse:
    return PlainTextResponse("done")


ROUTES = [
    Mount("/users/{user}", routes=[Route("/chats/{chat}", named)]),
    Route("/chats/{chat}", misnamed, methods=["POST"]),
    Route("/live/{chat}", resume_endpoint("chat:{room}:{chat}")),
    Route("/plain", resume_endpoint()),
]


def test_names_with_unknown_fields_are_reported_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_names(SSEMiddleware(Starlette(routes=ROUTES)))
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    first, second = caplog.messages
    allowed = "text with the path parameters of the route in braces: {chat}"
    assert first == (
        f"The name of the streams of /chats/{{chat}} is 'chat:{{room}}', allowed is {allowed}. "
        "Its requests will fail."
    )
    assert second.startswith("The name of the streams of /live/{chat} is 'chat:{room}:{chat}'")


@pytest.mark.anyio
async def test_a_request_for_a_name_with_an_unknown_field_fails_with_an_explanation() -> None:
    scope = {"type": "http", "method": "GET", "path": "/live/5", "headers": [], "query_string": b""}

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(_: Message) -> None: ...

    with pytest.raises(ValueError, match=r"allowed is text with the path parameters .*: \{chat\}$"):
        await Starlette(routes=ROUTES)({**scope, "app": None}, receive, send)


def test_the_publisher_of_a_loop_explains_the_same() -> None:
    with pytest.raises(ValueError, match="with a space at position 3"):
        Publisher("").publish("my channel", "step", 1).send(None)


@pytest.mark.anyio
async def test_an_object_in_place_of_the_class() -> None:
    starlette: Any = Starlette()
    starlette.add_middleware(SSEMiddleware(app))
    with pytest.raises(
        TypeError, match=r"SSEMiddleware.__call__\(\) (missing 2|got an unexpected keyword)"
    ):
        await starlette({"type": "lifespan"}, None, None)
