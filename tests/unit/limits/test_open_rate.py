"""The rate of openings: which requests count, and when a client may try again."""

import builtins
import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sse_middleware import ConfigurationError, Options, SSEMiddleware
from tests.support.asgi import Exchange, handle, http_scope, running, stream_of
from tests.support.limiting import ANY, PLAIN, answer, asked, limited, steady_rate, tab
from tests.support.resuming import Counting, resume, value

pytestmark = pytest.mark.anyio

LET_IN = (200, "")
OFTEN = (429, "open_rate_exceeded")

GOOD = [
    *("30/minute", "1/second", "5/10 seconds", "100 per 2 hours", "3 per day", "999999/day"),
    *("1 / minute", "2/minutes"),
]
BAD = [
    *(
        "0/minute",
        "-1/minute",
        "minute",
        "30",
        "30/",
        "30/week",
        "30/minute;1/second",
        "1.5/minute",
    ),
    *("1000000/day", "30/0 minutes", "30/minute\n", "\u0663/minute", "30/MINUTE"),
]


@pytest.mark.parametrize("text", GOOD)
def test_a_rate_is_taken(text: str) -> None:
    pytest.importorskip("limits")
    assert Options.from_environ({"SSE_OPEN_RATE": text}).open_rate == text
    assert SSEMiddleware(stream_of(), open_rate=text)._misconfigured is None


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_rate_stops_the_start_up(text: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed is a number per second"):
        Options.from_environ({}, open_rate=text)


async def test_without_the_library_the_start_up_stops_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "limits":
            raise ImportError(name)
        return whole(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "sse_middleware.limits.open_rate", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("SSE_OPEN_RATE", "30/minute")
    lifespan = Exchange({**http_scope(), "type": "lifespan"})
    async with running(SSEMiddleware(stream_of()), lifespan) as exchange:
        assert exchange.task is not None
        with pytest.raises(ConfigurationError):
            await exchange.task
    ((_, message),) = exchange.messages
    assert message["type"] == "lifespan.startup.failed"
    assert "SSE_OPEN_RATE is '30/minute'" in message["message"]
    assert "sse-middleware[limits]" in message["message"]


def test_redis_py_too_old_for_the_library_stops_the_start_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("limits")
    redis = pytest.importorskip("redis")
    monkeypatch.setattr(redis, "__version__", "5.1.1")
    app = SSEMiddleware(stream_of(), open_rate="9/hour", redis_url="redis://127.0.0.1:1/0")
    assert isinstance(app._misconfigured, ConfigurationError)
    assert "SSE_OPEN_RATE is '9/hour'" in str(app._misconfigured)
    assert "redis>=5.2" in str(app._misconfigured)


@pytest.mark.parametrize("headers", [PLAIN, ANY])
async def test_so_many_openings_are_let_in_and_others_have_theirs(
    headers: list[tuple[bytes, bytes]],
) -> None:
    pytest.importorskip("limits")
    counting, registry = Counting(1), CollectorRegistry()
    app = limited(counting, open_rate=steady_rate(3), registry=registry)
    got = []
    for _ in range(5):
        async with asked(app, headers) as exchange:
            got.append(await answer(exchange))
            wait = int(exchange.headers.get(b"retry-after", 1))
            assert 1 <= wait <= 86_400
    assert got == [LET_IN] * 3 + [OFTEN] * 2
    assert len(counting.scopes) == (3 if headers is PLAIN else 5)
    async with asked(app, headers, address="192.0.2.2") as other:
        assert await answer(other) == LET_IN
    labels = {"route": "unmatched", "reason": "rate"}
    assert value(registry, "sse_rejected_total", **labels) == 2


async def test_an_eventsource_is_put_off_and_not_stopped_for_good() -> None:
    pytest.importorskip("limits")
    counting = Counting(1)
    app = limited(counting, open_rate=steady_rate(1))
    async with tab(app) as one:
        await one.until("complete")
    async with tab(app) as two:
        await two.until_end()
        assert (two.status, two.names) == (200, ["start"])
        assert int(two.retry or 0) >= 1000
    assert len(counting.scopes) == 1
    rejecting = limited(counting, open_rate=steady_rate(1), limit_action="reject")
    async with tab(rejecting) as three, tab(rejecting) as four:
        assert await answer(three) == LET_IN
        assert await answer(four) == OFTEN


async def test_neither_what_is_no_stream_nor_a_resume_counts() -> None:
    pytest.importorskip("limits")

    async def page(request: Request) -> Response:
        return JSONResponse({})

    app = limited(
        Starlette(routes=[Route("/page", page), Route("/", Counting(3))]),
        open_rate=steady_rate(2),
    )
    for headers in (PLAIN, ANY) * 3:
        assert (await handle(app, headers=headers, path="/page")).status == 200
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(tab(app, client=("127.0.0.1", 1)))
        await one.until("message")
        held = one.last_event_id
        for _ in range(3):
            assert (await resume(app, held)).names[-1] == "complete"
        two = await stack.enter_async_context(tab(app, client=("127.0.0.1", 1)))
        await two.until("message")
        three = await stack.enter_async_context(tab(app, client=("127.0.0.1", 1)))
        await three.until_end()
        assert three.names == ["start"]
