"""The metrics of Prometheus, and the path that serves them."""

import asyncio
from typing import Any

import pytest
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

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
    route = {"route": "/items/{id}", "family": "eventsource"}
    assert value(registry, "sse_streams_total", **route, outcome="finished") == 2
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
            counted = value(registry, "sse_events_total", route="unmatched", family="eventsource")
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
    assert value(registry, "sse_events_total", route="unmatched", family="plain") == 50
    assert b"hostile" not in generate_latest(registry)


async def test_ten_thousand_paths_and_clients_add_no_series() -> None:
    registry = CollectorRegistry()
    app = marking(stream_of(b"data: x\n\n"), registry=registry, mark=("/marked/*",))

    def series() -> int:
        return sum(len(metric.samples) for metric in registry.collect())

    async def requests(first: int, last: int) -> None:
        for number in range(first, last):
            text = b"%d" % number
            await handle(
                app,
                method=("GET", "POST")[number % 2],
                path=f"/{('marked', 'other', text.decode())[number % 3]}/{number}",
                query_string=text,
                client=(f"10.0.{number >> 8}.{number & 255}", number),
                headers=[
                    (b"authorization", text),
                    (b"x-trace-id", text),
                    (b"idempotency-key", text),
                    *EVENTSOURCE[: number % 4],
                ],
            )

    await requests(0, 12)
    expected = series()
    await requests(12, 10_012)
    assert series() == expected
    assert value(registry, "sse_streams_active") == 0


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
    assert (
        value(registry, "sse_stream_duration_seconds_count", route="unmatched", family="plain") == 2
    )


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


async def test_no_name_of_a_route_can_break_a_scrape() -> None:
    registry = CollectorRegistry()
    app = marking(stream_of(b"data: 1\n\n"), registry=registry)
    for observer in app._context.observers:
        observer.resumed("/\ud800", "resumed", 0)
        observer.rejected("/\ud800", "draining")
    await handle(app, path_template="/\ud800")
    assert b'route="/?"' in generate_latest(registry)
