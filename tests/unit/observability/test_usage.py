"""Usage and cost: in heartbeats, in the log record, in metrics, and in the call at the end."""

import asyncio
import importlib
import json
import logging
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from sse_middleware import EndInfo, Event, SSEMiddleware, current_stream, streaming
from sse_middleware.observability.source_metrics import SourceMetrics
from sse_middleware.observability.source_record import ModelCall, SourceRecord, TokenUsage
from tests.support.asgi import EVENTSOURCE, Exchange, body, handle, stream_start
from tests.support.log_records import stream_fields
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

Report = tuple[object, dict[str, Any]]


def chunk(prompt: int, completion: int, model: str = "gpt-4o") -> Event:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return Event(json.dumps({"model": model, "usage": usage}))


async def ask(*reports: Report, mark: Any = None, **options: Any) -> Exchange:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for report, arguments in reports:
            current_stream().usage(report, **arguments)
            await send(body(b"data: 1\n\n"))
            await asyncio.sleep(6)
        await send(body(b"", more=False))

    marks = {"/": mark or streaming(name="chat")}
    return await handle(SSEMiddleware(app, marks=marks, **options), headers=EVENTSOURCE)


def numbers(exchange: Exchange, name: str) -> list[int]:
    return [json.loads(e.data)["total_tokens"] for e in exchange.events if e.event == name]


async def test_heartbeats_and_the_end_have_the_tokens_so_far() -> None:
    exchange = await ask((Event("no usage"), {}), (chunk(10, 1), {}), (chunk(10, 5), {}))
    assert numbers(exchange, "heartbeat") == [0, 11, 15]
    assert numbers(exchange, "complete") == [15]


async def test_calls_with_keys_of_their_own_add_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    ended: list[EndInfo] = []
    registry = CollectorRegistry()
    exchange = await ask(
        (chunk(10, 5), {"call": "plan"}),
        (chunk(20, 5), {"call": "answer", "model": "small", "cost": Decimal("0.5")}),
        ({"cache_read_input_tokens": 30}, {"call": "answer"}),
        mark=streaming(name="chat", on_end=lambda info, _: ended.append(info)),
        registry=registry,
    )
    assert numbers(exchange, "complete") == [50]
    await until(lambda: bool(ended), "on_end was not called")
    assert (ended[0].tokens, ended[0].usage) == (50, TokenUsage(40, 10, 30))
    (record,) = [fields for fields in stream_fields(caplog) if "models" in fields]
    assert (record["models"], record["input_tokens"]) == (["gpt-4o", "small"], 40)
    assert record["cost_usd"] is None  # that of one call is not known

    def tokens(model: str, kind: str) -> float | None:
        labels = {"route": "chat", "model": model, "kind": kind}
        return registry.get_sample_value("sse_tokens_total", labels)

    assert [tokens("gpt-4o", kind) for kind in ("input", "cached_input", "output")] == [10, None, 5]
    assert [tokens("small", kind) for kind in ("input", "cached_input", "output")] == [None, 30, 5]
    cost = registry.get_sample_value("sse_cost_total", {"route": "chat", "model": "small"})
    assert cost == 0.5


async def test_usage_is_priced_if_the_option_is_set(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("genai_prices", reason="the extra usage is not installed")
    caplog.set_level(logging.INFO, "sse_middleware")
    registry = CollectorRegistry()
    for model in ("gpt-4o", "qwen3-max", "unheard of", "unheard of"):
        await ask((chunk(1000, 500, model), {}), registry=registry, usage_cost=True)
    costs = [fields["cost_usd"] for fields in stream_fields(caplog) if "cost_usd" in fields]
    assert costs[2:] == [None, None]
    for cost, model in zip(costs, ("gpt-4o", "qwen3-max"), strict=False):
        assert 0.001 < cost < 0.1
        labels = {"route": "chat", "model": model}
        assert registry.get_sample_value("sse_cost_total", labels) == pytest.approx(cost)


async def test_an_unknown_price_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("genai_prices", reason="the extra usage is not installed")
    prices = importlib.import_module("sse_middleware.observability.prices")
    observer = prices.Prices()
    for _ in range(2):
        call = ModelCall("unheard of", usage=TokenUsage(1, 1))
        record = type("Record", (), {"sources": SourceRecord(calls={"": call}), "route": "chat"})
        observer.ended(record)
        assert call.cost is None
    (warning,) = caplog.messages
    assert warning.startswith("the price of model 'unheard of' of route chat is not known")


async def test_numbers_that_contradict_each_other_are_no_error() -> None:
    pytest.importorskip("genai_prices", reason="the extra usage is not installed")
    prices = importlib.import_module("sse_middleware.observability.prices")
    assert prices.price_of(TokenUsage(10, 0, 1000), "gpt-4o") >= 0
    assert prices.price_of(TokenUsage(10, 0, 10, 10), "claude-sonnet-4-5") is None


def test_the_names_of_models_are_bounded() -> None:
    registry = CollectorRegistry()
    metrics = SourceMetrics(registry)
    for number in range(150):
        call = ModelCall(f"model {number}", usage=TokenUsage(1, 0))
        metrics.count_end("chat", SourceRecord(calls={"": call}))
    metrics.count_end(
        "chat", SourceRecord(calls={"": ModelCall("x" * 101, usage=TokenUsage(1, 0))})
    )
    labels = {"route": "chat", "model": "other", "kind": "input"}
    assert registry.get_sample_value("sse_tokens_total", labels) == 51


def test_outside_of_a_request_usage_has_no_effect() -> None:
    current_stream().usage(chunk(1, 1))
