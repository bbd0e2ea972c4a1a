"""The path that serves the metrics."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Metric
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running, stream_of
from tests.support.middleware import marking
from tests.support.resuming import REFUSING
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run on real time, because the metrics are made in a thread."""
    return "asyncio"


async def plain_app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("no", 404)(scope, receive, send)


async def scrape(app: ASGIApp, path: str = "/metrics", **scope: Any) -> Exchange:
    return await handle(app, path=path, **scope)


async def test_metrics_are_served_if_the_app_does_not_serve_the_path() -> None:
    app = SSEMiddleware(plain_app, registry=CollectorRegistry())
    exchange = await scrape(app)
    assert exchange.start["status"] == 200
    assert b"sse_streams_active 0.0" in exchange.body
    assert len(exchange.messages) == 2
    assert (await scrape(app, "/other")).start["status"] == 404
    assert (await scrape(app, method="POST")).start["status"] == 404


async def test_metrics_are_sent_after_an_app_has_received_the_request_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await plain_app(scope, receive, send)

    exchange = await scrape(SSEMiddleware(app, registry=CollectorRegistry()))
    assert exchange.start["status"] == 200
    assert b"sse_streams_active" in exchange.body


async def test_metrics_replace_the_404_of_a_path_that_is_left_out() -> None:
    app = SSEMiddleware(plain_app, registry=CollectorRegistry(), exclude=("/*",))
    assert b"sse_streams_active" in (await scrape(app)).body
    assert (await scrape(app, "/other")).body == b"no"


async def test_an_app_that_serves_the_path_keeps_it_and_one_line_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("mine")(scope, receive, send)

    wrapped = SSEMiddleware(app, registry=CollectorRegistry())
    assert [(await scrape(wrapped)).body for _ in range(2)] == [b"mine"] * 2
    assert sum("SSE_METRICS_PATH" in r.getMessage() for r in caplog.records) == 1
    monkeypatch.setenv("SSE_METRICS_PATH", "/metrics")
    explicit = SSEMiddleware(app, registry=CollectorRegistry())
    assert b"sse_streams_active" in (await scrape(explicit)).body


async def test_metrics_do_not_wait_for_the_body_of_the_response_of_the_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        assert (await receive())["type"] == "http.request"
        await asyncio.Event().wait()

    exchange = Exchange(http_scope(path="/metrics"))
    async with running(SSEMiddleware(app, registry=CollectorRegistry()), exchange):
        await until(lambda: len(exchange.messages) == 2, "the metrics are not sent")
        assert b"sse_streams_active" in exchange.body


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_failure_of_the_app_does_not_end_the_metrics(status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", status)(scope, receive, send)

    wrapped = SSEMiddleware(app, registry=CollectorRegistry())
    for _ in range(3):
        exchange = await scrape(wrapped)
        assert exchange.status == 200
        assert b"sse_streams_active" in exchange.body


async def test_metrics_are_served_to_a_host_that_the_app_rejects() -> None:
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["example.org"])
    app = Starlette(middleware=[hosts], exception_handlers=REFUSING)
    wrapped = SSEMiddleware(app, registry=CollectorRegistry())
    for host in (b"evil", b"example.org", b"evil"):
        exchange = await scrape(wrapped, headers=[(b"host", host)])
        assert exchange.status == 200
        assert b"sse_streams_active" in exchange.body


async def test_metrics_that_the_app_mounts_are_found_where_it_redirects() -> None:
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("of the app")(scope, receive, send)

    app = Starlette(routes=[Mount("/metrics", mounted)])
    wrapped = SSEMiddleware(app, registry=CollectorRegistry())
    exchange = await scrape(wrapped)
    assert exchange.status == 307
    assert (await scrape(wrapped, "/metrics/")).body == b"of the app"


async def test_a_scrape_runs_in_a_thread_so_that_streams_continue() -> None:
    threads = list[bool]()

    class Slow:
        def collect(self) -> list[Metric]:
            threads.append(threading.current_thread() is threading.main_thread())
            return []

    registry = CollectorRegistry()
    registry.register(Slow())
    threads.clear()
    wrapped = SSEMiddleware(plain_app, registry=registry)
    assert (await scrape(wrapped)).status == 200
    assert threads == [False]


@pytest.mark.parametrize(
    "changes",
    [
        {"query_string": b"\xff=\xff"},
        {"query_string": b"name[]=\xff"},
        {"headers": [(b"accept", b"\xff"), (b"accept-encoding", b"\xff")]},
        {"headers": [(b"\xff", b"\xff")]},
    ],
)
async def test_a_scrape_with_bytes_that_are_no_text_gets_the_metrics(
    changes: dict[str, Any],
) -> None:
    for path in (None, "/metrics"):
        options: dict[str, Any] = {} if path is None else {"metrics_path": path}
        wrapped = SSEMiddleware(plain_app, registry=CollectorRegistry(), **options)
        assert (await scrape(wrapped, **changes)).status == 200


async def test_only_our_metrics_are_served_unless_the_path_or_the_registry_is_set() -> None:
    revenue = Counter("shop_revenue", "A secret of the app.")
    try:
        apps = (
            SSEMiddleware(plain_app),
            SSEMiddleware(plain_app, metrics_path="/metrics"),
            SSEMiddleware(plain_app, registry=REGISTRY),
        )
        shown = [(await scrape(app)).body for app in apps]
    finally:
        REGISTRY.unregister(revenue)
    assert [b"shop_revenue" in body for body in shown] == [False, True, True]
    assert [b"python_info" in body for body in shown] == [False, True, True]
    assert all(b"sse_streams_active" in body for body in shown)
    names = {line.split()[2] for line in shown[0].splitlines() if line.startswith(b"# TYPE")}
    assert all(name.startswith(b"sse_") for name in names)


async def test_a_collector_of_the_app_that_fails_does_not_affect_our_metrics() -> None:
    collector = UnreliableCollector()
    REGISTRY.register(collector)
    collector.fails = True
    try:
        assert b"sse_streams_active" in (await scrape(SSEMiddleware(plain_app))).body
    finally:
        REGISTRY.unregister(collector)


async def test_an_empty_path_serves_them_nowhere() -> None:
    app = SSEMiddleware(plain_app, registry=CollectorRegistry(), metrics_path="")
    assert (await scrape(app)).body == b"no"


async def test_the_path_lies_below_the_root_path() -> None:
    inner = SSEMiddleware(plain_app, registry=CollectorRegistry())
    app = Starlette(routes=[Mount("/sub", inner)])
    assert b"sse_streams_active" in (await scrape(app, "/sub/metrics")).body
    behind_proxy = SSEMiddleware(plain_app, registry=CollectorRegistry())
    for path in ("/api/metrics", "/metrics"):
        assert (await scrape(behind_proxy, path, root_path="/api")).start["status"] == 200


async def test_an_app_that_fails_on_the_path_fails_as_without_us() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await scrape(SSEMiddleware(app, registry=CollectorRegistry()))


class UnreliableCollector:
    """A collector of the app's, which fails while its database is unavailable."""

    def __init__(self) -> None:
        self.fails = False

    def collect(self) -> list[Metric]:
        if self.fails:
            raise ConnectionError("the database is unavailable")
        return []


async def test_a_failed_scrape_gets_the_error_page_of_the_app_and_the_next_one_the_metrics() -> (
    None
):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await PlainTextResponse("not found", 404)(scope, receive, send)
        except ConnectionError:
            await PlainTextResponse("failed", 500)(scope, receive, send)

    registry, collector = CollectorRegistry(), UnreliableCollector()
    registry.register(collector)
    wrapped = SSEMiddleware(app, registry=registry)
    collector.fails = True
    exchange = await scrape(wrapped)
    assert (exchange.status, exchange.body) == (500, b"failed")
    collector.fails = False
    exchange = await scrape(wrapped)
    assert exchange.status == 200
    assert b"sse_streams_active" in exchange.body


@pytest.mark.parametrize("query", [b"last_event_id=%b-1.end", b"last_event_id=%b-5"])
async def test_a_response_of_the_middleware_itself_does_not_end_the_metrics(query: bytes) -> None:
    wrapped = SSEMiddleware(PlainTextResponse("not found", 404), registry=CollectorRegistry())
    await scrape(wrapped, query_string=query % (22 * b"A"))
    assert (await scrape(wrapped)).status == 200


async def test_a_stream_of_the_app_on_the_path_is_still_a_stream_of_ours() -> None:
    app = marking(stream_of(b"data: x\n\n"), registry=CollectorRegistry())
    exchange = await scrape(app, headers=EVENTSOURCE)
    assert exchange.names == ["start", "message", "complete"]


async def test_the_openmetrics_format_is_served_on_request() -> None:
    app = SSEMiddleware(plain_app, registry=CollectorRegistry())
    accept = (b"accept", b"application/openmetrics-text; version=1.0.0")
    exchange = await scrape(app, headers=[accept])
    assert exchange.body.endswith(b"# EOF\n")


def test_in_multi_process_mode_a_scrape_shows_all_processes(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from prometheus_client import Counter
Counter("shop_revenue", "A secret of the app.").inc()
from sse_middleware import SSEMiddleware
from tests.support.asgi import handle, stream_of
async def main():
    async def app(scope, receive, send):
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body"})
        else:
            await stream_of(b"data: x\\n\\n", b"data: y\\n\\n")(scope, receive, send)
    wrapped = SSEMiddleware(app, mark="*")
    await handle(wrapped)
    sys.stdout.write((await handle(wrapped, path="/metrics")).body.decode())
asyncio.run(main())
"""
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    labels = 'family="plain",route="unmatched"'
    for expected in ("2.0", "4.0"):
        shown = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
        ).stdout
        assert f"sse_events_total{{{labels}}} {expected}" in shown
        assert f"sse_event_gap_seconds_count{{{labels}}} {float(expected) / 2}" in shown
        assert "shop_revenue" not in shown


# Several processes

WORKER = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from sse_middleware import SSEMiddleware
from tests.support.asgi import Exchange, handle, http_scope, running, stream_of
endless = SSEMiddleware(stream_of(b"data: x\\n\\n", b"data: y\\n\\n", pause=1e6), mark="*")
async def main():
    exchange = Exchange(http_scope())
    async with running(endless, exchange):
        while not exchange.messages:
            await asyncio.sleep(0)
        print("open", flush=True)
        sys.stdin.readline()
asyncio.run(main())
"""


def printed_by(program: str, directory: Path) -> str:
    """Run a program whose metrics are those of several processes, and return its output."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def active(directory: Path) -> float:
    """Return the open streams of all processes that a new process shows."""
    program = """
import asyncio
from sse_middleware import SSEMiddleware
from starlette.responses import PlainTextResponse
from tests.support.asgi import handle
app = SSEMiddleware(PlainTextResponse("no", 404))
print(asyncio.run(handle(app, path="/metrics")).body.decode())
"""
    shown = printed_by(program, directory)
    (line,) = [line for line in shown.splitlines() if line.startswith("sse_streams_active ")]
    return float(line.split()[1])


def test_the_open_streams_of_a_killed_process_are_not_counted(tmp_path: Path) -> None:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER],
                    env=environ,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for _ in range(2)
        ]
        for worker in workers:
            stack.callback(worker.kill)
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"open\n"
        assert active(tmp_path) == 2
        workers[0].kill()
        workers[0].wait()
        assert active(tmp_path) == 1
        workers[1].kill()
    assert active(tmp_path) == 0
    assert not list(tmp_path.glob(f"gauge_live*_{workers[0].pid}.db"))


def test_a_process_with_the_id_of_a_dead_one_begins_without_open_streams(tmp_path: Path) -> None:
    # The same process id, as after the restart of a container: exec keeps it.
    program = """
import os, sys
from prometheus_client import CollectorRegistry
from sse_middleware.observability.metrics import Metrics
from sse_middleware.observability.stream_record import StreamRecord
metrics = Metrics(CollectorRegistry())
record = StreamRecord("id", "trace", "/", "plain")
for name in tuple(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])):
    assert name.endswith(f"_{os.getpid()}.db"), name
if len(sys.argv) < 2:
    metrics.opened(record)
    metrics.lingering(1)
    os.execv(sys.executable, [*sys.orig_argv, "again"])
metrics.opened(record)
from prometheus_client import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
    shown = printed_by(program, tmp_path)
    assert "sse_streams_active 1.0" in shown
    assert "sse_lingering_streams 0.0" in shown
