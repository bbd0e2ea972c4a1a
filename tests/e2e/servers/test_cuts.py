"""A client whose connection is cut anywhere in a response receives the whole response.

It receives each event once and in order, from one run of the app. A failure prints the seed of its
sample; the variable `CUTS_SEED` repeats it. `-m slow` cuts at each byte.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.cut_cases import (
    AFTER_START,
    ENVIRON,
    HASTES,
    MARKS,
    PLACES,
    SEED,
    SHAPES,
    Case,
    all_cuts,
    complaint,
    complaints,
    length_of,
    one_case_each,
    path_of,
    play_all,
    random_cut,
    report,
    sampled_cases,
    sweep,
)
from tests.support.cut_proxy import Cut, How
from tests.support.event_source import events_in
from tests.support.redis_server import RedisServer
from tests.support.servers import SERVERS, Server, serving
from tests.support.waiting import HANG_SECONDS

APP = "tests.support.scripted_app:app"
EXAMPLE = "example_app.app:app"
SEARCH = "/stream/search?query=What+is+an+event+loop%3F&delay_ms="
SAMPLE = 60


# The scripted app


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serving(request.param, APP, tmp_path_factory.mktemp("server"), ENVIRON) as running:
        yield running
        assert "Traceback" not in running.log_text()


def named_cases() -> Iterator[Case]:
    rng = random.Random(SEED)
    for (shape, places), how in itertools.product(PLACES.values(), How):
        cuts = [Cut(place, how, rng.choice((False, True))) for place in places]
        yield Case(path_of(shape, rng.choice(MARKS)), cuts, rng.choice(HASTES))


def test_no_event_is_lost_by_cuts_at_named_places(server: Server) -> None:
    found = complaints([server], named_cases(), all_made=True)
    assert not found, report(found)


def test_no_event_is_lost_by_cuts_at_any_byte(server: Server) -> None:
    lengths = {shape: length_of([server], path_of(shape, "marked")) for shape in SHAPES}
    found = complaints([server], sampled_cases(lengths, SAMPLE))
    assert not found, report(found)


def test_no_event_is_lost_by_cuts_of_a_long_response(server: Server) -> None:
    length = length_of([server], path_of("long", "marked"))
    found = complaints([server], sampled_cases({"long": length}, SAMPLE // 4))
    assert not found, report(found)


def test_a_page_that_ignores_the_end_is_stopped_by_a_204(server: Server) -> None:
    found = complaints([server], one_case_each(closes=False))
    assert not found, report(found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_event_is_lost_by_a_cut_at_each_byte(server: Server, shape: str, *, held: bool) -> None:
    found = complaints([server], sweep([server], shape, held=held))
    assert not found, report(found)


def test_no_event_is_lost_by_cuts_of_a_response_that_fails(tmp_path: Path) -> None:
    cases = (replace(case, path=f"{case.path}&fails=1") for case in one_case_each(end="error"))
    with serving("uvicorn-httptools", APP, tmp_path, ENVIRON) as running:
        found = complaints([running], cases)
    assert not found, report(found)


def test_no_event_is_lost_by_cuts_between_rotations(tmp_path: Path) -> None:
    environ = ENVIRON | {"SSE_STREAM_MAX_SECONDS": "0.1", "SSE_CAP_ACTION": "rotate"}
    with serving("uvicorn-httptools", APP, tmp_path, environ) as running:
        found = complaints([running], one_case_each("by_path", comes_often=True))
    assert not found, report(found)


@pytest.mark.parametrize("environ", [{"SSE_BATCH": "0"}, {"SSE_CHUNK_DELAY_MS": "2"}])
def test_no_event_is_lost_by_cuts_of_a_paced_stream(
    environ: dict[str, str], tmp_path: Path
) -> None:
    with serving("uvicorn-httptools", APP, tmp_path, ENVIRON | environ) as running:
        found = complaints([running], one_case_each())
    assert not found, report(found)


@pytest.mark.parametrize("environ", [{"SSE_ENABLED": "0"}, {"SSE_REPLAY_MAX_EVENTS": "0"}])
def test_events_are_lost_without_resume(environ: dict[str, str], tmp_path: Path) -> None:
    shape, places = PLACES["in the last event"]
    cases = [Case(path_of(shape, "marked"), [Cut(place) for place in places])]
    with serving("uvicorn-httptools", APP, tmp_path, ENVIRON | environ) as running:
        assert len(complaints([running], cases)) == len(cases)


# The example


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("example")
    with serving("uvicorn-httptools", EXAMPLE, directory, ENVIRON) as running:
        yield running


def complaints_of_example(server: Server, cases: Iterable[Case]) -> list[str]:
    """Play cases on the example, and compare with the response to a plain client."""
    response = httpx.get(f"{server.url}{SEARCH}0", timeout=HANG_SECONDS).raise_for_status()
    expected = events_in(response.content)
    assert len(expected) > 20
    outcomes = play_all([server], cases).values()
    problems = {repr(outcome.case): complaint(outcome, expected) for outcome in outcomes}
    return [f"{case}: {problem}" for case, problem in problems.items() if problem]


def test_no_event_of_the_example_is_lost_by_cuts(example: Server) -> None:
    rng = random.Random(SEED)
    length = length_of([example], f"{SEARCH}5")
    cases = [
        Case(f"{SEARCH}{delay}", [random_cut(rng, length), *again], rng.choice(HASTES))
        for delay in (0, 5)
        for again in ([], [random_cut(rng, length)])
        for _ in range(SAMPLE // 4)
    ]
    cases += [Case(f"{SEARCH}5", [Cut(AFTER_START, how)]) for how in How]
    found = complaints_of_example(example, cases)
    assert not found, report(found)


def test_no_event_of_the_example_is_lost_by_cuts_with_four_workers(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with RedisServer(tmp_path) as redis:
        environ = ENVIRON | {"SSE_REDIS_URL": redis.patient_url}
        with serving("uvicorn-httptools", EXAMPLE, tmp_path, environ, "--workers", "4") as running:
            length = length_of([running], f"{SEARCH}5")
            cuts = [[random_cut(rng, length) for _ in range(3)] for _ in range(SAMPLE // 3)]
            cuts += [[Cut(AFTER_START, how)] for how in How for _ in range(SAMPLE // 6)]
            cases = [
                Case(f"{SEARCH}5", some, rng.choice(HASTES), may_be_too_soon=True) for some in cuts
            ]
            found = complaints_of_example(running, cases)
            leases = [key for key in redis.all_keys() if key.endswith(":lease")]
    assert not found, report(found)
    assert len(leases) > 1, "one worker has served them all"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("held", [False, True])
def test_no_event_of_the_example_is_lost_by_a_cut_at_each_byte(
    example: Server, *, held: bool
) -> None:
    rng = random.Random(SEED)
    length = length_of([example], f"{SEARCH}5")
    path = f"{SEARCH}{0 if held else 5}"
    cases = (Case(path, cuts, rng.choice(HASTES)) for cuts in all_cuts(rng, length, held=held))
    found = complaints_of_example(example, cases)
    assert not found, report(found)
