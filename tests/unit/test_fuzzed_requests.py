"""Random requests and responses: nothing is injected, nothing breaks, nothing stays."""

import asyncio
import gc
import logging
import re
from importlib.util import find_spec
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.types import Receive, Scope, Send

from sse_middleware import EndInfo, Event, OnEnd, SSEMiddleware, resume_endpoint, streaming
from tests.support.fuzzing import (
    EVIL,
    PRINTABLE,
    AppError,
    Fuzzer,
    Sent,
    app_events,
    dispatched,
)
from tests.support.resuming import memory
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio

ADDED = {
    *(b"x-trace-id", b"x-stream-id", b"x-accel-buffering", b"cache-control", b"vary"),
    *(b"x-stream-max-seconds", b"x-heartbeat-interval", b"x-silence-threshold"),
    *(b"retry-after", b"x-stream-cache", b"content-type", b"content-length", b"allow"),
    *(b"content-encoding", b"access-control-allow-origin"),
}
"""The headers that the middleware may add to a response, or sends in one of its own."""


def user(scope: Scope) -> str | None:
    return dict(scope["headers"]).get(b"x-user", b"").decode("latin-1") or None


def wrap(fuzzer: Fuzzer, registry: CollectorRegistry, on_end: OnEnd) -> SSEMiddleware:
    """Return a middleware with all that handles requests."""
    live = resume_endpoint("a", finished="replay")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inner = live if scope["path"] == "/live" else fuzzer.app
        await inner(scope, receive, send)

    return SSEMiddleware(
        app,
        marks={
            "/chat*": streaming(stream_max_seconds=20, linger_seconds=3, keep=True, on_end=on_end),
            "/attached*": streaming(attach="kept"),
            "/openai*": streaming(family="openai"),
            "/ids*": streaming(ids="app", stream_key=lambda scope: str(scope["path"])),
        },
        registry=registry,
        store=memory(),
        identify=user,
        identity_cookies=("session",),
        max_streams=50,
        max_readers=2,
        trusted_proxies=["127.0.0.1"],
        open_rate="100000/minute" if find_spec("limits") is not None else "",
        metrics_path="/metrics",
    )


async def fuzz(seed: int, count: int) -> list[str]:
    """Send requests of a seed, and return what is wrong."""
    fuzzer, registry = Fuzzer(seed), CollectorRegistry()
    ended: list[str] = []
    owners: dict[bytes, str | None] = {}

    async def on_end(info: EndInfo, _: list[Event]) -> None:
        ended.append(info.stream_id)

    wrapped = wrap(fuzzer, registry, on_end)
    store: Any = wrapped._context.store
    before = asyncio.all_tasks()
    problems: list[str] = []
    for _ in range(max(1, count // 20)):
        batch = [fuzzer.request() for _ in range(20)]
        await asyncio.gather(*[fuzzer.send(wrapped, sent) for sent in batch])
        for sent in batch:
            found = check(sent) + check_endpoint(sent, owners)
            problems += [f"{problem}: {describe(sent)}" for problem in found]
    await asyncio.sleep(200)  # streams linger, logs are kept
    gc.collect()
    tasks = [task for task in asyncio.all_tasks() - before if "BackgroundWriter" not in str(task)]
    left = {
        "tasks": len(tasks),
        "logs": len(store),
        "names": len(store._names),
        "claims": len(store._claims),
        "lingering": len(wrapped._context.linger_queue),
        "readers": len(wrapped._context.readers),
        "calls of on_end": len(wrapped._context.end_calls._tasks()),
    }
    problems += [f"{number} {name} are left" for name, number in left.items() if number]
    if len(ended) != len(set(ended)):
        problems.append("on_end was called twice for a stream")
    if EVIL in generate_latest(registry):
        problems.append("a metric has a value of a request")
    return problems


def check(sent: Sent) -> list[str]:
    """Return what is wrong with the response to one request."""
    exchange, problems = sent.exchange, list[str]()
    if sent.failure is not None and not isinstance(sent.failure, AppError | OSError):
        problems.append(f"the middleware raises {sent.failure!r}")
    if isinstance(sent.failure, OSError) and exchange.refusal is None:
        problems.append(f"the middleware raises {sent.failure!r}")
    if exchange.overlaps:
        problems.append("two writes at the same time")
    starts = [message for _, message in exchange.messages if "status" in message]
    if len(starts) > 1:
        problems.append("two response starts")
    if not starts:
        return problems
    run = sent.runs[0] if sent.runs else None
    own = [] if run is None else run.headers
    for name, value in starts[0]["headers"]:
        if (name, value) in own:
            continue
        if name.lower() not in ADDED or not {*name, *value} <= PRINTABLE:
            problems.append(f"a header {name!r}: {value!r}")
    rest = re.sub(rb"(?m)^id: .*$", b"", exchange.body)  # the client keeps an id of the app
    if EVIL in b"".join(value for _, value in starts[0]["headers"]) + rest:
        problems.append("a value of the request is in the response")
    if run is not None and run.is_stream and run.status == 200:
        problems += check_stream(sent)
    elif run is not None and starts[0]["status"] == run.status and exchange.refusal is None:
        sent_bytes = exchange.body
        if not run.body.startswith(sent_bytes):
            problems.append("the body of a response that is no stream is changed")
    return problems


def check_endpoint(sent: Sent, owners: dict[bytes, str | None]) -> list[str]:
    """Return what is wrong with a response of the resume endpoint: each user has own streams."""
    exchange, problems = sent.exchange, list[str]()
    if not any("status" in message for _, message in exchange.messages):
        return problems
    public_id, requested_by = exchange.headers.get(b"x-stream-id", b""), user(exchange.scope)
    if sent.runs and public_id:
        owners.setdefault(public_id, requested_by)
    if sent.runs or exchange.scope["path"] != "/live":
        return problems
    if owners.get(public_id, requested_by) != requested_by:
        problems.append(f"the stream of {owners[public_id]!r}")
    if exchange.scope["method"] in ("HEAD", "OPTIONS") and exchange.body:
        problems.append("the response to a HEAD has a body")
    return problems


def check_stream(sent: Sent) -> list[str]:
    """Return what is wrong with a stream: a client gets the events of the app, in order."""
    exchange, run = sent.exchange, sent.runs[0]
    if exchange.status != run.status or b"x-stream-id" not in exchange.headers:
        return []  # it was rejected
    path = exchange.scope["path"]
    if path.startswith(("/unmarked", "/metrics")) or path == "/":
        return [] if run.body.startswith(exchange.body) else ["an unmarked stream is changed"]
    got = [(event.event, event.data) for event in app_events(exchange)]
    wanted = dispatched(run.body)
    return [] if wanted[: len(got)] == got else [f"the events {got}, not {wanted}"]


def describe(sent: Sent) -> str:
    scope = sent.exchange.scope
    shown = {name: scope.get(name) for name in ("method", "path", "query_string", "headers")}
    return f"{shown} {sent.runs} {[message for _, message in sent.exchange.messages]}"[:3000]


@pytest.mark.parametrize("seed", range(sampled(10)))
async def test_nothing_is_injected_breaks_or_stays(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert await fuzz(seed, 200) == []
    assert EVIL.decode() not in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("thousand", range(10, 1010))
async def test_a_million_requests(thousand: int) -> None:
    assert await fuzz(thousand, 1000) == []
