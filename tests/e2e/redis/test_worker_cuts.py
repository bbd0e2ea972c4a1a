"""A client whose connection is cut, and which resumes at another worker, receives the whole
response: each event once and in order, from one run of the app."""

import itertools
from collections.abc import Iterator, Sequence

import pytest

from tests.support.cut_cases import (
    ENVIRON,
    SHAPES,
    Case,
    complaints,
    length_of,
    one_case_each,
    path_of,
    report,
    sampled_cases,
    sweep,
)
from tests.support.cut_proxy import Cut
from tests.support.redis_server import RedisServer
from tests.support.servers import Server
from tests.support.workers import working

APP = "tests.support.scripted_app:app"
WORKERS = 3
SAMPLE = 60


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Server]]:
    directory = tmp_path_factory.mktemp("workers")
    with (
        RedisServer(directory) as redis,
        working(APP, WORKERS * [redis.patient_url], directory, ENVIRON) as workers,
    ):
        yield [worker.server for worker in workers]


def test_no_event_is_lost_by_cuts_at_named_places(servers: Sequence[Server]) -> None:
    found = complaints(servers, one_case_each())
    found += complaints(servers, one_case_each("by_path"))
    assert not found, report(found)


def test_no_event_is_lost_by_cuts_at_any_byte(servers: Sequence[Server]) -> None:
    shapes = (*SHAPES, "long")
    lengths = {shape: length_of(servers, path_of(shape, "marked")) for shape in shapes}
    found = complaints(servers, sampled_cases(lengths, SAMPLE))
    assert not found, report(found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_event_is_lost_by_a_cut_at_each_byte(
    servers: Sequence[Server], shape: str, *, held: bool
) -> None:
    found = complaints(servers, sweep(servers, shape, held=held))
    assert not found, report(found)


def test_events_are_lost_if_workers_share_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("strangers")
    cases = [Case(path_of("lf", "marked"), [Cut(rb"data: la")])]
    with working(APP, ["", ""], directory, ENVIRON) as workers:
        servers = [worker.server for worker in workers]
        assert len(complaints(servers, itertools.islice(cases, 1))) == 1
