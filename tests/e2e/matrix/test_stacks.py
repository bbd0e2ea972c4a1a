"""Other middlewares outside and inside of ours, with uvicorn: the same as without ours.

One process has the app with our middleware, one with a cap, and one without it, each in every
stack. All requests are sent at once, and the tests compare the responses.
"""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.matrix.recording_client import Answer, Ask, RecordingClient
from tests.support import needs
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import Server, serving

APP = "tests.e2e.matrix.stacks_app:app"
STACKS = [
    f"{other}-{where}"
    for other in (
        *("alone", "gzip", "brotli", "cors", "base", "two-bases"),
        *("slowapi", "instrumentator", "agents", "all", "nested"),
    )
    for where in ("outside", "inside")
] + ["base-around"]
MODES = {
    "with": {},
    "capped": {"SSE_STREAM_MAX_SECONDS": "1", "SSE_CAP_ACTION": "complete"},
    "unmarked": {"MATRIX_UNMARKED": "1"},
    "without": {"MATRIX_WITHOUT_US": "1"},
}
COMMON = {"SSE_HEARTBEAT_INTERVAL": "0.3", "SSE_LINGER_SECONDS": "0"}

ORIGIN = {"origin": "https://example.org"}
NATIVE = {**EVENTSOURCE, **ORIGIN}
ENDLESS = "n=1000000000&pause=0.05"

ASKS = {
    "plain": Ask(
        "/stream?key={}-plain&n=3&pause=0.4&hold_at=1", headers=ORIGIN, release="/release"
    ),
    "native": Ask(
        "/stream?key={}-native&n=3&pause=0.4&hold_at=1", headers=NATIVE, release="/release"
    ),
    "late plain": Ask(
        "/stream?key={}-late&n=1&pause=0&hold_at=0",
        headers=ORIGIN,
        release="/release",
        released_by="headers",
    ),
    "late native": Ask(
        "/stream?key={}-es-late&n=1&pause=0&hold_at=0", headers=NATIVE, release="/release"
    ),
    "left plain": Ask(f"/stream?key={{}}-left&{ENDLESS}", headers=ORIGIN),
    "left native": Ask(f"/stream?key={{}}-es-left&{ENDLESS}", headers=NATIVE),
    "json": Ask("/json", headers=ORIGIN),
}
CAPPED = {
    "busy": Ask(f"/stream?key={{}}-busy&{ENDLESS}", headers=NATIVE),
    "silent": Ask("/stream?key={}-silent&n=2&pause=1000", headers=NATIVE),
}
UNMARKED_HEADERS = ("x-trace-id", "x-stream-id", "x-accel-buffering", "cache-control")
Answers = dict[tuple[str, str], Answer]


async def observe(server: Server, notes: Path, asks: dict[str, Ask]) -> Answers:
    answers: Answers = {}
    few = asyncio.Semaphore(32)

    async def keep(stack: str, name: str, answer: Awaitable[Answer]) -> None:
        async with few:
            answers[stack, name] = await answer

    async with asyncio.TaskGroup() as tasks:
        client = RecordingClient(server, notes)
        for stack in STACKS:
            for name, ask in asks.items():
                leave_after = b"data: 1 " if name.startswith("left") else None
                asked = replace(
                    ask,
                    path=f"/{stack}{ask.path.format(stack)}",
                    release=f"/{stack}{ask.release}" if ask.release else "",
                )
                tasks.create_task(keep(stack, name, client.ask(asked, leave_after=leave_after)))
            if asks is ASKS:
                tasks.create_task(keep(stack, "second", come_back(client, stack)))
    return answers


async def come_back(client: RecordingClient, stack: str) -> Answer:
    """Send two requests, the second one with the session cookie of the first."""
    path = f"/{stack}/stream?key={stack}-session&n=1&pause=0"
    first = await client.ask(Ask(path, headers=NATIVE))
    cookie = (first.header("set-cookie") or "").partition(";")[0]
    return await client.ask(Ask(path, headers={**NATIVE, "cookie": cookie}))


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Answers]]:
    packages = (
        *("asgi_correlation_id", "brotli_asgi", "fastapi", "itsdangerous", "sentry_sdk"),
        *("prometheus_fastapi_instrumentator", "slowapi"),
    )
    for module in (*packages, "opentelemetry.instrumentation.asgi", "uvicorn"):
        needs.module(module)
    directory = tmp_path_factory.mktemp("stacks")

    def run(mode: str) -> Answers:
        return run_mode(mode, directory / mode)

    with ThreadPoolExecutor(len(MODES)) as threads:
        yield dict(zip(MODES, threads.map(run, MODES), strict=True))


def run_mode(mode: str, directory: Path) -> Answers:
    notes = directory / "notes"
    notes.mkdir(parents=True)
    environ = {**COMMON, **MODES[mode], "MATRIX_NOTES": str(notes)}
    with serving("uvicorn-httptools", APP, directory, environ) as server:
        return asyncio.run(observe(server, notes, CAPPED if mode == "capped" else ASKS))


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def ways_out(answer: Answer) -> list[str]:
    """Return the ways out that were taken, in any order; see `test_matrix.py: ways_out`."""
    return sorted({"cancelled" if what == "closed" else what for what in answer.noted})


def headers_of(answer: Answer, *without: str) -> list[tuple[str, str]]:
    """Return the headers, without the time in the cookie of a session."""
    return [
        (name, value.partition("; ")[2] if name == "set-cookie" else value)
        for name, value in answer.headers
        if name not in {"date", *without}
    ]


def test_a_plain_stream_is_the_same(observed: dict[str, Answers], stack: str) -> None:
    ours, bare = observed["with"][stack, "plain"], observed["without"][stack, "plain"]
    assert (ours.error, bare.error) == ("", "")
    assert ours.messages == bare.messages
    assert len(ours.messages) == 3
    assert ours.noted == bare.noted
    assert ours.noted[-2:] == ["dependency", "app returned"]
    for name in ("access-control-allow-origin", "x-dispatched", "content-encoding", "vary"):
        assert ours.header(name) == bare.header(name)


def test_an_eventsource_receives_its_whole_stream(observed: dict[str, Answers], stack: str) -> None:
    ours, bare = observed["with"][stack, "native"], observed["without"][stack, "native"]
    assert (ours.names[0], ours.names[-1]) == ("start", "complete")
    assert "heartbeat" in ours.names
    assert ours.messages == bare.messages
    assert ours.noted == bare.noted


@pytest.mark.parametrize("name", ASKS)
def test_without_a_mark_a_stream_has_headers_more_and_nothing_else(
    observed: dict[str, Answers], stack: str, name: str
) -> None:
    ours, bare = observed["unmarked"][stack, name], observed["without"][stack, name]
    assert (ours.status, ours.error, ours.is_held) == (bare.status, bare.error, bare.is_held)
    assert ways_out(ours) == ways_out(bare)
    if not name.startswith("left"):
        assert ours.body == bare.body
        assert ours.noted == bare.noted
    added = UNMARKED_HEADERS if "stream" in ASKS[name].path else ()
    assert sorted(headers_of(ours, *added)) == sorted(headers_of(bare, *added))
    assert all(ours.header(header) for header in added)


def test_context_variables_reach_the_generator_and_the_background(
    observed: dict[str, Answers], stack: str
) -> None:
    answer = observed["with"][stack, "native"]
    dispatched = "dispatched" if "base" in stack or "all" in stack else "unset"
    assert answer.messages == [f"{number} outer {dispatched} 1" for number in range(3)]
    assert f"background outer {dispatched}" in answer.noted


def test_the_first_bytes_are_not_held_back(observed: dict[str, Answers], stack: str) -> None:
    assert not observed["with"][stack, "plain"].is_held
    assert not observed["with"][stack, "native"].is_held


def test_the_start_does_not_wait_for_the_first_event(
    observed: dict[str, Answers], stack: str
) -> None:
    plain, native = observed["with"][stack, "late plain"], observed["with"][stack, "late native"]
    # An old GZipMiddleware holds any response start until the body begins; so it does without us.
    held = observed["without"][stack, "late plain"].is_held
    assert plain.is_held == held
    assert native.is_held == (held and "inside" in stack)


def test_a_session_survives_a_stream(observed: dict[str, Answers], stack: str) -> None:
    for mode in ("with", "without"):
        assert [data[-1] for data in observed[mode][stack, "second"].messages] == ["2"]


def test_a_disconnect_stops_the_app_and_runs_its_cleanup(
    observed: dict[str, Answers], stack: str
) -> None:
    for name in ("left plain", "left native"):
        ours, bare = observed["with"][stack, name], observed["without"][stack, name]
        assert ways_out(ours) == ways_out(bare)
        assert {"finally", "dependency"} <= set(bare.noted)


def test_the_cap_stops_the_app_and_runs_its_cleanup(
    observed: dict[str, Answers], stack: str
) -> None:
    for name in ("busy", "silent"):
        ours, bare = observed["capped"][stack, name], observed["without"][stack, "left native"]
        assert (ours.names[0], ours.names[-1], ours.error) == ("start", "complete", "")
        assert json.loads(ours.events[-1].data)["reason"] == "duration_cap"
        assert ways_out(ours) == ways_out(bare)


def test_other_responses_are_the_same(observed: dict[str, Answers], stack: str) -> None:
    ours, bare = observed["with"][stack, "json"], observed["without"][stack, "json"]
    assert headers_of(ours) == headers_of(bare)
    if ours.header("content-encoding") == "gzip":
        assert gzip.decompress(ours.body) == gzip.decompress(bare.body)
    else:
        assert ours.body == bare.body
