"""The robustness that the example gets by one line, with its defaults, on a virtual clock."""

from __future__ import annotations

import itertools
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from asgi_lifespan import LifespanManager

from example_app.app import create_app
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running
from tests.support.clock import VirtualClockLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualClockLoop}


QUERY = b"query=What+is+the+global+interpreter+lock%3F"
FIELDS = {
    "stream_id",
    "timestamp",
    "uptime_seconds",
    "total_chunks",
    "total_tokens",
    "heartbeat_count",
    "remaining_seconds",
    "max_duration",
    "trace_id",
}


@asynccontextmanager
async def example(delay_seconds: float) -> AsyncIterator[ASGIApp]:
    """Run the example, with a pause after each word."""
    app = create_app(token_delay_seconds=delay_seconds)
    async with LifespanManager(app):
        yield app


def request(**more: Any) -> dict[str, Any]:
    headers = [*EVENTSOURCE, *more.pop("headers", ())]
    return {"path": "/stream/search", "query_string": QUERY, "headers": headers, **more}


def times_of(exchange: Exchange, name: str) -> list[float]:
    """Return the seconds from the response start to each event of a type."""
    begin = exchange.messages[0][0]
    mark = b"event: %b\n" % name.encode()
    return [
        at - begin
        for at, message in exchange.messages
        for _ in range(message.get("body", b"").count(mark))
    ]


async def test_a_heartbeat_with_its_numbers_is_sent_every_five_seconds() -> None:
    async with example(0.5) as app:
        exchange = await handle(app, **request())
    times = times_of(exchange, "heartbeat")
    beats = [json.loads(event.data) for event in exchange.events if event.event == "heartbeat"]
    assert len(times) >= 5
    # The first one of a stream may be up to a sixteenth of a second early.
    assert times[0] == pytest.approx(5, abs=1 / 16)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == pytest.approx([5] * len(gaps), abs=0.01)
    assert all(beat.keys() == FIELDS for beat in beats)
    assert [beat["heartbeat_count"] for beat in beats] == list(range(1, len(beats) + 1))
    assert [beat["total_tokens"] for beat in beats] == [beat["total_chunks"] for beat in beats]
    assert [round(beat["remaining_seconds"]) for beat in beats] == [
        55 - 5 * number for number in range(len(beats))
    ]


async def test_a_stream_ends_after_sixty_seconds() -> None:
    async with example(10) as app:
        exchange = await handle(app, **request())
    last = exchange.events[-1]
    assert (last.event, json.loads(last.data)["reason"]) == ("complete", "duration_cap")
    assert times_of(exchange, "complete") == pytest.approx([60], abs=0.01)
    assert json.loads(last.data)["duration"] == pytest.approx(60, abs=0.01)


@pytest.mark.parametrize("cut_after", [1, 10, 40])
async def test_an_answer_is_complete_after_an_interruption(cut_after: int) -> None:
    async with example(0.3) as app:
        whole = await handle(app, **request())
        async with running(app, Exchange(http_scope(**request()))) as exchange:
            await exchange.until_count(cut_after, "content_chunk")
            exchange.disconnect()
            exchange.refusal = OSError("the network is gone")
            last_id = exchange.last_event_id.encode()
            rest = await handle(app, **request(headers=[(b"last-event-id", last_id)]))
    assert json.loads(rest.events[0].data)["resumed"] is True

    def answer(*exchanges: Exchange) -> list[tuple[str, str]]:
        events = [event for one in exchanges for event in one.events]
        return [(e.event, e.data) for e in events if e.event in ("content_chunk", "complete")]

    assert answer(exchange, rest) == answer(whole)
    ids = [event.id for one in (exchange, rest) for event in one.events if event.id]
    numbers = [int(found.rpartition("-")[2].partition(".")[0]) for found in ids]
    assert sorted(set(numbers)) == list(range(max(numbers) + 1))


async def test_the_headers_announce_the_limits_of_the_stream() -> None:
    async with example(0) as app:
        headers = (await handle(app, **request())).headers
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert re.fullmatch(rb"[0-9a-f]{32}", headers[b"x-trace-id"])
    assert headers[b"x-stream-max-seconds"] == b"60"
    assert headers[b"x-heartbeat-interval"] == b"5"
    assert headers[b"x-silence-threshold"] == b"15"
    assert headers[b"x-accel-buffering"] == b"no"


async def test_the_trace_id_of_a_request_is_in_all_events_of_the_middleware() -> None:
    async with example(0.5) as app:
        trace_id = b"4ad1" * 8
        exchange = await handle(app, **request(headers=[(b"x-trace-id", trace_id)]))
    found = {
        json.loads(event.data)["trace_id"]
        for event in exchange.events
        if event.event in ("start", "heartbeat")
    }
    assert found == {trace_id.decode()}
    assert exchange.headers[b"x-trace-id"] == trace_id


async def test_an_exception_is_an_error_event_without_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with example(0) as app:

        def fail(*_: object) -> None:
            raise ValueError("swordfish")

        monkeypatch.setattr("example_app.search_endpoints.asdict", fail)
        exchange = Exchange(http_scope(**request()))
        with pytest.raises(ValueError, match="swordfish"):
            await app(exchange.scope, exchange.receive, exchange.send)
    last = exchange.events[-1]
    assert last.event == "error"
    assert json.loads(last.data)["error"]["code"]
    assert b"swordfish" not in exchange.body
