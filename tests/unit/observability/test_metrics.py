"""The metrics of Prometheus, and the path that serves them."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware.observability.metrics import Metrics
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    handle,
    http_scope,
    running,
    stream_of,
)
from tests.support.middleware import marking
from tests.support.resuming import REFUSING
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def streaming_app() -> Starlette:
    async def endpoint(request: Request) -> Response:
        async def events() -> Any:
            for _ in range(3):
                yield b"data: x\n\n"
                await asyncio.sleep(2)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def failing(request: Request) -> Response:
        async def events() -> Any:
            yield b"data: x\n\n"
            raise ValueError

        return StreamingResponse(events(), media_type="text/event-stream")

    return Starlette(routes=[Route("/items/{id}", endpoint), Route("/failing", failing)])


async def test_the_numbers_of_a_stream_arrive_under_its_route_template() -> None:
    registry = CollectorRegistry()
    app = marking(streaming_app(), registry=registry)
    for number in range(2):
        exchange = await handle(app, path=f"/items/{number}", headers=EVENTSOURCE)
    route = {"route": "/items/{id}"}
    assert (
        value(registry, "sse_streams_total", **route, family="eventsource", outcome="finished") == 2
    )
    assert value(registry, "sse_events_total", **route) == 6
    assert value(registry, "sse_sent_bytes_total") == pytest.approx(2 * len(exchange.body), abs=20)
    assert value(registry, "sse_heartbeats_total") == 2
    assert value(registry, "sse_streams_active") == 0
    assert value(registry, "sse_stream_duration_seconds_sum", **route) == pytest.approx(12)
    assert value(registry, "sse_time_to_first_event_seconds_count", **route) == 2
    assert value(registry, "sse_event_gap_seconds_count", **route) == 4
    assert value(registry, "sse_event_gap_seconds_sum", **route) == pytest.approx(8)
    assert value(registry, "sse_event_gap_seconds_bucket", **route, le="1.0") == 0
    assert value(registry, "sse_event_gap_seconds_bucket", **route, le="2.5") == 4


async def test_a_live_stream_is_counted_while_it_runs() -> None:
    registry = CollectorRegistry()
    began = asyncio.get_running_loop().time()
    app = marking(stream_of(*[b"data: x\n\n"] * 99, pause=1), registry=registry)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))):
        for seconds in (15.5, 10):
            await asyncio.sleep(seconds)
            assert value(registry, "sse_streams_active") == 1
            counted = value(registry, "sse_events_total", route="unmatched")
            now = asyncio.get_running_loop().time() - began
            assert now - 16 <= counted <= now
    assert value(registry, "sse_streams_active") == 0


async def test_failures_disconnects_and_caps_are_outcomes() -> None:
    registry = CollectorRegistry()
    app = marking(streaming_app(), registry=registry, stream_max_seconds=3, cap_action="complete")
    with pytest.raises((ValueError, ExceptionGroup)):  # a group from older Starlettes
        await handle(app, path="/failing", headers=EVENTSOURCE)
    await handle(app, path="/items/1", headers=EVENTSOURCE)
    async with running(app, Exchange(http_scope(path="/items/2", headers=[]))) as exchange:
        await exchange.until("message")
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    for route, family, outcome in (
        ("/failing", "eventsource", "error"),
        ("/items/{id}", "eventsource", "duration_cap"),
        ("/items/{id}", "plain", "disconnected"),
    ):
        labels = {"route": route, "family": family, "outcome": outcome}
        assert value(registry, "sse_streams_total", **labels) == 1
    assert value(registry, "sse_disconnects_total") == 1


async def test_a_path_that_no_route_matches_is_never_a_label() -> None:
    registry = CollectorRegistry()
    app = marking(stream_of(b"data: x\n\n"), registry=registry)
    for number in range(50):
        await handle(app, path=f"/hostile/{number}")
    assert value(registry, "sse_events_total", route="unmatched") == 50
    assert b"hostile" not in generate_latest(registry)


async def test_a_blocked_write_is_a_stall() -> None:
    registry = CollectorRegistry()
    app = marking(stream_of(*[b"data: x\n\n"] * 3, pause=1), registry=registry)
    async with running(app, Exchange(http_scope(headers=EVENTSOURCE))) as exchange:
        await exchange.until("message")
        exchange.block()
        await asyncio.sleep(4)
        exchange.unblock()
        await exchange.until("complete")
    assert value(registry, "sse_send_stall_seconds_count") == 1
    assert value(registry, "sse_send_stall_seconds_sum") == pytest.approx(3)


async def test_clients_outside_the_rollout_are_measured_as_kind_off() -> None:
    registry = CollectorRegistry()
    app = marking(stream_of(b"data: x\n\n"), registry=registry, rollout_percent=0)
    await handle(app, headers=EVENTSOURCE)
    labels = {"route": "unmatched", "family": "off", "outcome": "finished"}
    assert value(registry, "sse_streams_total", **labels) == 1


async def test_trace_ids_are_exemplars_but_never_too_long_ones() -> None:
    registry = CollectorRegistry()
    app = marking(stream_of(b"data: x\n\n"), registry=registry)
    await handle(app, headers=[(b"x-trace-id", b"trace-7")])
    await handle(app, headers=[(b"x-trace-id", b"y" * 128)])
    shown: bytes = openmetrics(registry)  # type: ignore[no-untyped-call]  # it has no types
    assert b'{trace_id="trace-7"}' in shown
    assert value(registry, "sse_stream_duration_seconds_count", route="unmatched") == 2


def test_two_middlewares_share_the_metrics_of_one_registry() -> None:
    registry = CollectorRegistry()
    for _ in range(2):
        SSEMiddleware(stream_of(), registry=registry)
    assert isinstance(Metrics(CollectorRegistry()), Metrics)


async def test_names_that_are_taken_cost_the_metrics_and_not_the_app(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    Gauge("sse_streams_active", "Somebody else's.", registry=registry)
    exchange = await handle(marking(stream_of(b"data: x\n\n"), registry=registry))
    assert exchange.body == b"data: x\n\n"
    assert "Streams are not counted" in caplog.text


# The path of the metrics


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


async def test_no_name_of_a_route_can_break_a_scrape() -> None:
    registry = CollectorRegistry()
    app = marking(stream_of(b"data: 1\n\n"), registry=registry)
    for observer in app._context.observers:
        observer.resumed("/\ud800", "resumed", 0)
        observer.rejected("/\ud800", "draining")
    await handle(app, path_template="/\ud800")
    assert b'route="/?"' in generate_latest(registry)


async def test_metrics_that_the_app_mounts_are_found_where_it_redirects() -> None:
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("of the app")(scope, receive, send)

    app = Starlette(routes=[Mount("/metrics", mounted)])
    wrapped = SSEMiddleware(app, registry=CollectorRegistry())
    exchange = await scrape(wrapped)
    assert exchange.status == 307
    assert (await scrape(wrapped, "/metrics/")).body == b"of the app"


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
    for expected in ("2.0", "4.0"):
        shown = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
        ).stdout
        assert f'sse_events_total{{route="unmatched"}} {expected}' in shown
        assert f'sse_event_gap_seconds_count{{route="unmatched"}} {float(expected) / 2}' in shown
        assert "shop_revenue" not in shown
