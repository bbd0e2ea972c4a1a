"""The programs of docs/migration.md: what clients receive before and after, on a virtual clock."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.types import ASGIApp

from sse_middleware import Event, SSEMiddleware
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
SECTIONS = {
    "From sse-starlette": "sse_starlette",
    "From FastAPI's own streams": "fastapi",
    "From your own code": "starlette",
}
"""The package that each section needs."""
PERCENT = [0, 50, 100]
PLAIN = [(b"accept", b"*/*")]
CONTROLS = {"start", "heartbeat", "complete"}


class Programs(NamedTuple):
    """The two programs of a section."""

    before: str
    after: str


def programs(heading: str) -> Programs:
    pytest.importorskip(SECTIONS[heading], reason=f"this environment has no {SECTIONS[heading]}")
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(
        r"^(?:Before|After):\n\n```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE
    )
    return Programs(*found)


def app_of(program: str, pause: float = 1) -> ASGIApp:
    """Run a program in the event loop of the test, and return its app."""
    assert "asyncio.sleep(1)" in program
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(program.replace("asyncio.sleep(1)", f"asyncio.sleep({pause})"), names)
    app: ASGIApp = names["app"]
    return app


def percent(events: list[Event]) -> list[int]:
    """Return the numbers in the events of the app."""
    return [json.loads(event.data)["percent"] for event in events if event.event not in CONTROLS]


async def after_a_cut(app: ASGIApp) -> list[int]:
    """Read one event as an `EventSource`; return the numbers that it receives after a cut."""
    exchange = Exchange(http_scope(path="/progress", headers=EVENTSOURCE))
    async with running(app, exchange):
        while not percent(exchange.events):
            await exchange.until_count(len(exchange.events) + 1)
        async with running(app, exchange.reconnect()) as again:
            await again.until_end()
    return percent(again.events)


@pytest.mark.parametrize("heading", SECTIONS)
async def test_a_plain_client_receives_the_same_events(heading: str) -> None:
    before, after = [
        await handle(app_of(program), path="/progress", headers=PLAIN)
        for program in programs(heading)
    ]
    assert percent(before.events) == PERCENT
    assert [(event.event, event.data) for event in before.events] == [
        (event.event, event.data) for event in after.events
    ]


@pytest.mark.parametrize("heading", SECTIONS)
async def test_an_eventsource_also_receives_control_events_and_ids(heading: str) -> None:
    before, after = [
        await handle(app_of(program), path="/progress", headers=EVENTSOURCE)
        for program in programs(heading)
    ]
    assert [name for name in after.names if name not in CONTROLS] == before.names
    assert (after.names[0], after.names[-1]) == ("start", "complete")
    has_own_ids = heading == "From your own code"
    assert all(bool(event.id) == has_own_ids for event in before.events)
    assert all(re.fullmatch(r"[\w-]{22}-\d+(\.end)?", event.id or "") for event in after.events)


@pytest.mark.parametrize("heading", SECTIONS)
async def test_a_client_that_was_cut_receives_the_rest_only(heading: str) -> None:
    for number, program in enumerate(programs(heading)):
        resumes = number == 1 or heading == "From your own code"
        assert await after_a_cut(app_of(program)) == (PERCENT[1:] if resumes else PERCENT)


@pytest.mark.parametrize("heading", SECTIONS)
async def test_the_end_is_final_for_a_client_with_its_id(heading: str) -> None:
    app = app_of(programs(heading).after)
    ended = await handle(app, path="/progress", headers=EVENTSOURCE)
    headers = [*EVENTSOURCE, (b"last-event-id", ended.last_event_id.encode())]
    assert (await handle(app, path="/progress", headers=headers)).status == 204


@pytest.mark.parametrize("heading", SECTIONS)
async def test_a_long_silence_has_comments(heading: str) -> None:
    before, after = [
        await handle(app_of(program, pause=40), path="/progress", headers=PLAIN)
        for program in programs(heading)
    ]
    assert b": ping" in before.body
    assert (b": ping" in after.body) == (heading == "From FastAPI's own streams")
    assert b": heartbeat" in after.body


@pytest.mark.parametrize("heading", SECTIONS)
async def test_the_cap_ends_the_stream_of_an_eventsource(heading: str) -> None:
    app = app_of(programs(heading).after, pause=40)
    capped = await handle(app, path="/progress", headers=EVENTSOURCE)
    assert json.loads(capped.events[-1].data)["reason"] == "duration_cap"


async def test_an_id_of_the_old_code_starts_the_answer_anew() -> None:
    app = app_of(programs("From your own code").after)
    headers = [*EVENTSOURCE, (b"last-event-id", b"1")]
    again = await handle(app, path="/progress", headers=headers)
    assert percent(again.events) == PERCENT
    assert again.names[0] == "start"


async def test_sse_starlettes_response_works_inside_of_the_middleware() -> None:
    app = app_of(programs("From sse-starlette").before)
    assert await after_a_cut(SSEMiddleware(app, mark="/progress")) == PERCENT[1:]
