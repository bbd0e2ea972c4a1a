"""Mistakes in calls: each message has the argument, its value, what is allowed, and the remedy."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from sse_middleware import (
    MemoryStore,
    SSEMiddleware,
    format_sse_event,
    resume_endpoint,
    streaming,
)
from sse_middleware.config.options import OF_APP, OF_MARK
from sse_middleware.stream.current import CurrentStream
from sse_middleware.testing import Exchange, http_scope
from tests.support.mistakes import Mistake, check_explained, mark, wrap

NAMES = "text such as chat:{chat}, with path parameters in braces, or a function of the scope"
ORDER = "two or more names of events, each once, such as ('token', 'done')"
TEXT = "text: str(...), or json.dumps(...) for JSON"


def encode(data: Any = "x", **fields: Any) -> Callable[[], object]:
    return lambda: format_sse_event(data, **fields)


def current(method: str, argument: Any) -> Callable[[], object]:
    return lambda: getattr(CurrentStream(), method)(argument)


def remember(**bounds: Any) -> Callable[[], object]:
    return lambda: MemoryStore(**bounds)


def endpoint_of(name: Any) -> Callable[[], object]:
    return lambda: resume_endpoint(name)


MISTAKES: dict[str, Mistake] = {
    # SSEMiddleware
    "no app": (
        lambda: SSEMiddleware(None),  # type: ignore[arg-type]
        "app is None, allowed is an ASGI app, such as FastAPI()",
    ),
    "the name of a registry": (
        wrap(registry="default"),
        "registry is 'default', allowed is a CollectorRegistry of prometheus_client",
    ),
    "a misspelled function": (
        wrap(identfy=str),
        "no such option: identfy; did you mean: identify",
    ),
    "an option of a mark on the app": (
        wrap(stream_name="chat:{chat}"),
        ("not an option of the app: stream_name; set it on a mark: @streaming(stream_name=...)"),
    ),
    "a path of metrics without a slash": (
        wrap(metrics_path="metrics"),
        "metrics_path is 'metrics', allowed is a path with a / first, or nothing",
    ),
    "a switch in quotes": (
        wrap(enabled="no"),
        (
            "enabled is 'no', allowed is 1, true, yes, on, 0, false, no or off; in Python, that is "
            "False"
        ),
    ),
    # @streaming
    "a path in place of the endpoint": (
        lambda: streaming("/chat/*"),  # type: ignore[call-overload]
        (
            "the endpoint of streaming is '/chat/*', allowed is an endpoint; for paths, "
            'SSEMiddleware(app, mark="/chat/*")'
        ),
    ),
    "a misspelled option of a mark": (
        mark(streamname="chat"),
        "no such option: streamname; did you mean: stream_name",
    ),
    "a function of the app on a mark": (
        mark(identify=str),
        (
            "not an option of one endpoint: identify; set it for the app: "
            "SSEMiddleware(app, identify=...)"
        ),
    ),
    "an unknown kind of clients": (
        mark(family="fetch"),
        "family is 'fetch', allowed is eventsource or plain or openai",
    ),
    "a switch in place of rerun": (
        mark(rerun=False),
        "rerun is False, allowed is always or never",
    ),
    "a switch in place of ids": (mark(ids=True), "ids is True, allowed is app"),
    "ids of the app without a key": (
        mark(ids="app"),
        'ids="app" and stream_key belong together',
    ),
    "the name of a function": (
        mark(on_end="save"),
        "on_end is 'save', allowed is a function of an EndInfo and the events",
    ),
    "one name as the order": (mark(order="done"), f"order is 'done', allowed is {ORDER}"),
    "a result in place of the function that collects": (
        mark(collect=[]),
        "collect is [], allowed is a function of the list of events",
    ),
    "a number as the name of streams": (
        mark(stream_name=5),
        f"the name of streams is 5, allowed is {NAMES}",
    ),
    "no name of streams": (mark(stream_name=""), f"the name of streams is '', allowed is {NAMES}"),
    "a time to keep in quotes": (
        mark(attach="kept", cache_ttl="5"),
        "cache_ttl is '5', allowed is above 0 to 2592000 seconds",
    ),
    # resume_endpoint
    "a brace that is not closed": (
        endpoint_of("chat:{chat"),
        f"the name of streams is 'chat:{{chat', allowed is {NAMES}",
    ),
    "braces without a name": (
        endpoint_of("chat:{}"),
        f"the name of streams is 'chat:{{}}', allowed is {NAMES}",
    ),
    # Handlers
    "a dictionary as the data of an event": (
        encode({"a": 1}),
        f"data is {{'a': 1}}, allowed is {TEXT}",
    ),
    "bytes as the data of an event": (encode(b"a"), "data is b'a', allowed is text: decode it"),
    "a number as the id of an event": (encode(id=5), f"id is 5, allowed is {TEXT}"),
    "a line end in an id": (
        encode(id="a\nb"),
        "id is 'a\\nb', allowed is text without any of '\\r\\n\\x00'",
    ),
    "a time to reconnect in quotes": (
        encode(retry="5"),
        "retry is '5', allowed is a whole number of milliseconds, 0 or more",
    ),
    "an empty event": (
        encode(None),
        "block is '', allowed is at least one of data, event, id, retry, comment",
    ),
    "a number of tokens in quotes": (
        current("add_tokens", "5"),
        "count is '5', allowed is a number, 0 or more",
    ),
    "a number as a name": (current("name", 5), "name is 5, allowed is text: str(...)"),
    # sse_middleware.testing
    "headers of text": (
        lambda: http_scope(headers=[("accept", "*/*")]),  # type: ignore[list-item]
        (
            "headers is [('accept', '*/*')], allowed is a list of pairs of bytes, such as "
            '[(b"accept", b"text/event-stream")]'
        ),
    ),
    "headers in a dictionary": (
        lambda: http_scope(headers={"accept": "*/*"}),  # type: ignore[arg-type]
        (
            "headers is {'accept': '*/*'}, allowed is a list of pairs of bytes, such as "
            '[(b"accept", b"text/event-stream")]'
        ),
    ),
    "a query of text": (
        lambda: http_scope(query_string="a=1"),
        """query_string is 'a=1', allowed is bytes, such as b"a=1\"""",
    ),
    "a path in place of a request": (
        lambda: Exchange("/answers"),  # type: ignore[arg-type]
        "scope is '/answers', allowed is that of a request: http_scope(...)",
    ),
    # Stores
    "a time to live in quotes": (remember(ttl="5"), "ttl is '5', allowed is a number, 0 or more"),
    "a negative bound": (
        remember(max_events=-1),
        "max_events is -1, allowed is a number, 0 or more",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_call_is_explained(mistake: str) -> None:
    check_explained(MISTAKES[mistake])


def test_all_arguments_that_are_no_settings_are_known() -> None:
    for function, known in ((SSEMiddleware.__init__, OF_APP), (streaming, OF_MARK)):
        parameters = inspect.signature(function).parameters.values()
        names = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
        assert names == set(known)
