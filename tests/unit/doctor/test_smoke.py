"""Smoke tests: what counts as an error, percentiles, thresholds, and the record of runs."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sse_middleware.__main__ import main
from sse_middleware.doctor.rollup import read_runs, rollup
from sse_middleware.doctor.smoke import Run, StreamResult, Thresholds, percentile, result_of
from sse_middleware.doctor.smoke_command import visit_all
from sse_middleware.doctor.visit import Ending, Visit
from tests.support.socket_server import answering
from tests.support.visits import HEADERS, MARKED, START, complete, control, frame, visit_of
from tests.support.waiting import HANG_SECONDS

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("visit", "error"),
    [
        (Visit(failure="refused", ending=Ending.FAILED), "no response"),
        (visit_of(status=503), "status 503"),
        (visit_of(status=302), "status 302"),
        (visit_of((0.0, b"{}"), headers={"content-type": "application/json"}), "no event stream"),
        (visit_of((0.0, b"data: 1\n\n"), ending=Ending.CUT), "cut"),
        (visit_of((0.0, b"data: 1\n\n"), ending=Ending.LEFT), "no end in time"),
        (
            visit_of((0.0, b"x"), headers={**HEADERS, "content-encoding": "compress"}),
            "unknown encoding",
        ),
        (visit_of((0.0, START + control("error", error={})), headers=MARKED), "error event"),
        (visit_of((0.0, b"event: error\ndata: no\n\n")), "error event"),
        (visit_of((0.0, b'data: {"error": {"code": 1}}\n\n')), "error event"),
        (visit_of((0.0, b": ping\n\n")), "no event"),
        (visit_of((0.0, START + complete(0.0, total=0)), headers=MARKED), "no event"),
        (visit_of((0.0, b"data: 1\n\n")), ""),
        (visit_of((0.0, b"data: 1\n\n"), ending=Ending.CLOSED), ""),
    ],
)
def test_what_counts_as_an_error(visit: Visit, error: str) -> None:
    assert result_of(visit).error == error


def test_times_are_those_of_the_events_of_the_app() -> None:
    chunks = ((0.1, START), (1.0, frame(1)), (1.5, frame(2)), (4.0, frame(3) + complete(4.0)))
    result = result_of(visit_of(*chunks, headers=MARKED, ended_at=4.2))
    assert result == StreamResult(error="", first_event=1.0, duration=4.2, gap=2.5)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 21)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 10, 19, 20]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.95) == 7.0
    assert math.isnan(percentile([], 0.95))


def run_of(
    *first_events: float, errors: int = 0, at: datetime = NOW, url: str = "http://a/"
) -> Run:
    good = [
        StreamResult(error="", first_event=at, duration=10 * at, gap=at / 2) for at in first_events
    ]
    bad = [StreamResult(error="cut", first_event=None, duration=99.0, gap=None)] * errors
    return Run.of(url, at, [*good, *bad])


def test_the_measures_are_those_of_the_streams_without_an_error() -> None:
    run = run_of(1.0, 2.0, errors=2)
    assert (run.count, run.failed) == (4, 2)
    assert run.duration == [10.0, 20.0]


@pytest.mark.parametrize(
    ("thresholds", "exceeded"),
    [
        (Thresholds(errors=1), []),
        (Thresholds(), ["errors"]),
        (Thresholds(errors=1, first_event=2.0, duration=20.0, gap=1.0), []),
        (Thresholds(errors=1, first_event=1.99), ["first event, p95"]),
        (Thresholds(errors=1, duration=19.9), ["duration, p95"]),
        (Thresholds(errors=1, gap=0.9), ["longest gap"]),
    ],
)
def test_thresholds_are_allowed_values(thresholds: Thresholds, exceeded: list[str]) -> None:
    found = thresholds.exceeded_by(run_of(1.0, 2.0, errors=1))
    assert [line.partition(":")[0] for line in found] == exceeded


def test_a_record_is_one_line_and_is_read_again() -> None:
    run = run_of(1.0, errors=1)
    assert "\n" not in run.to_json()
    assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize(
    "line",
    ["x", "1", "[]", "{}", "null", "[" * 100_000, '{"url": "a"}']
    + [
        json.dumps({**json.loads(run_of(1.0).to_json()), **change})
        for change in (
            {"at": "yesterday"},
            {"url": 1},
            {"errors": [1]},
            {"errors": {"cut": "1"}},
            {"gap": 1},
            {"gap": ["1"]},
            {"gap": [math.nan]},
            {"more": 1},
        )
    ],
)
def test_lines_that_are_no_results_are_counted(line: str) -> None:
    runs, others = read_runs([line, "", run_of(1.0).to_json()])
    assert (len(runs), others) == (1, 1)


def test_the_rollup_has_a_row_for_each_day_of_the_week_and_one_for_all() -> None:
    runs = [
        run_of(float(day), at=NOW - timedelta(days=day), errors=day == 2) for day in (9, 2, 1, 1)
    ]
    table = rollup(runs, NOW, 7)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| day", "| 2026-11-28", "| 2026-11-29", "| **all**"]
    assert [row[1] for row in rows[1:]] == ["1", "2", "3"]
    assert rows[-1][3:7] == ["4", "1", "1.000 s", "2.000 s"]
    assert "Errors: cut 1" in table
    assert rollup([], NOW, 7).endswith("There are no results.")


def test_results_from_elsewhere_cannot_break_the_table() -> None:
    run = run_of(1.0, url="http://a/|b\n# c")
    assert "## http://a/\\|b # c" in rollup([run], NOW, 7).splitlines()


@contextmanager
def stream(*, fails_after: int) -> Iterator[str]:
    """Serve a number of whole streams, and after them streams that are cut."""
    body = b"9\r\ndata: 1\n\n\r\n"
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    def respond(_request: bytes, number: int) -> bytes:
        return head + body + (b"0\r\n\r\n" if number < fails_after else b"")

    with answering(respond) as port:
        yield f"http://127.0.0.1:{port}/stream?token=swordfish"


def test_a_run_is_reported_recorded_and_rolled_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    arguments = ["--count", "6", "--concurrency", "3", "--results", str(results)]
    with stream(fails_after=10) as url:
        assert main(["smoke", url, *arguments]) == 0
        assert "6 streams, 0 with an error" in capsys.readouterr().out
        assert main(["smoke", url, *arguments, "--json"]) == 1
        shown = capsys.readouterr()
        assert main(["smoke", url, "--count", "1", "--max-errors", "1"]) == 0
    record = json.loads(shown.out)
    assert record["errors"] == {"cut": 2}
    assert record["exceeded"] == ["errors: 2 of 6 (cut: 2), allowed 0"]
    assert shown.err.count("… ") == 6
    assert main(["smoke", "--rollup", str(results)]) == 0
    table = capsys.readouterr().out
    assert "| **all** | 2 | 1 | 12 | 2 |" in table
    assert "swordfish" not in table + shown.out + shown.err + results.read_text()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--rollup", "/no/such/file"], ["localhost"], ["http://a/", "--results", "/no/such/file"]],
)
def test_wrong_arguments_have_an_exit_status_of_their_own(arguments: list[str]) -> None:
    assert main(["smoke", *arguments]) == 2


@pytest.mark.parametrize("option", ["--count", "--concurrency", "--days"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_numbers_are_whole_and_above_0(option: str, value: str) -> None:
    with pytest.raises(SystemExit):
        main(["smoke", "http://a/", option, value])


def test_streams_run_at_the_same_time_up_to_the_limit() -> None:
    together = threading.Barrier(3, timeout=HANG_SECONDS)
    running, most = threading.Semaphore(3), threading.Lock()

    def visit() -> StreamResult:
        with most:
            assert running.acquire(blocking=False)
        together.wait()
        running.release()
        return StreamResult(error="", first_event=1.0, duration=1.0, gap=None)

    assert len(visit_all(visit, 6, 3, lambda _: None)) == 6


def test_an_exception_in_a_visit_is_raised_and_does_not_hang() -> None:
    def visit() -> StreamResult:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        visit_all(visit, 3, 2, lambda _: None)
