"""The recipes whose packages are in the extra `recipes`, each with the real package."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from tests.support.log_records import stream_fields
from tests.support.recipes import NAMED, PAGE, PROGRAMS, request, run_program, types_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_each_recipe_is_short() -> None:
    assert len(PROGRAMS) == 6
    for heading, program in PROGRAMS.items():
        lines = [line for line in program.splitlines() if line.strip()]
        assert len(lines) < 25, heading
        assert f"](#{heading.lower().replace(' ', '-')})" in PAGE


async def test_pydantic_ai(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    app = run_program("Pydantic AI", "pydantic_ai")["app"]
    exchange = await request(app, "GET", "/chat", query=b"question=Why%3F")
    assert set(types_of(exchange)) == {"token"}
    assert "".join(event.data for event in exchange.events) == "success (no tool calls)"
    exchange = await request(app, "GET", "/chat", query=b"question=Why%3F", accept=NAMED)
    names = types_of(exchange)
    assert (names[0], names[-1]) == ("start", "complete")
    assert all(fields["tokens"] > 0 for fields in stream_fields(caplog))


async def test_langgraph() -> None:
    app = run_program("LangGraph", "langgraph")["app"]
    exchange = await request(app, "POST", "/threads/1/runs", query=b"question=Why%3F")
    found = [(event.event, json.loads(event.data)) for event in exchange.events]
    assert found == [
        ("custom", {"token": "to "}),
        ("custom", {"token": "be"}),
        ("updates", {"answer": None}),
    ]


async def test_a_run_of_langgraph_is_joined_by_its_thread() -> None:
    pytest.importorskip("langgraph", reason="langgraph is not installed")
    names = run_program("LangGraph", "langgraph")
    begun, release = asyncio.Event(), asyncio.Event()

    async def answer(state: object) -> None:
        names["get_stream_writer"]()({"token": "to "})
        begun.set()
        await release.wait()

    graph = names["StateGraph"](names["MessagesState"]).add_node(answer)
    names["graph"] = graph.add_edge(names["START"], "answer").compile()
    app = names["app"]
    run = asyncio.ensure_future(request(app, "POST", "/threads/1/runs", query=b"question=Why%3F"))
    await begun.wait()
    join = asyncio.ensure_future(request(app, "GET", "/threads/1/live"))
    await asyncio.sleep(0.05)
    assert not join.done()
    release.set()
    assert (await join).body == (await run).body
    assert types_of(await join) == ["custom", "updates"]
    assert (await request(app, "GET", "/threads/1/live")).status == 204


async def test_ag_ui() -> None:
    app = run_program("AG-UI", "ag_ui")["app"]
    run: dict[str, Any] = {
        "threadId": "t",
        "runId": "r",
        "state": {},
        "messages": [],
        "tools": [],
        "context": [],
    }
    exchange = await request(app, "POST", "/agent", **run, forwardedProps={})
    assert types_of(exchange) == ["message"] * 6
    events = [json.loads(event.data) for event in exchange.events]
    assert [event["type"] for event in events] == [
        "RUN_STARTED",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "RUN_FINISHED",
    ]
    assert "".join(event.get("delta", "") for event in events) == "to be"
    assert {event.get("threadId", "t") for event in events} == {"t"}
    again = await request(app, "GET", "/agent/t/live", query=b"after=1")
    assert [json.loads(event.data) for event in again.events] == events[1:]


async def test_datastar() -> None:
    app = run_program("Datastar", "datastar_py")["app"]
    first, second = await asyncio.gather(
        *(request(app, "GET", "/answer", accept=b"text/event-stream, text/html") for _ in range(2))
    )
    assert types_of(first) == ["datastar-patch-elements"] * 3
    assert first.events[-1].data == 'elements <p id="answer">to be continued</p>'
    assert second.body == first.body
    caches = {one.headers.get(b"x-stream-cache") for one in (first, second)}
    assert caches == {None, b"coalesced"}
