"""The command `smoke`: opens many streams, and compares their numbers with thresholds."""

import argparse
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sse_middleware.doctor.client import Target, fetch
from sse_middleware.doctor.command import (
    FOUND,
    UNUSABLE,
    add_request,
    positive,
    show_progress,
    targets,
)
from sse_middleware.doctor.rollup import read_runs, rollup
from sse_middleware.doctor.smoke import Run, StreamResult, Thresholds, result_of, summary
from sse_middleware.doctor.visit import EVENT_STREAM

_HEADERS: Final = {
    "accept": EVENT_STREAM,
    "cache-control": "no-cache",
    "user-agent": "sse_middleware smoke",
}


def add_smoke(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `python -m sse_middleware`."""
    parser = commands.add_parser(
        "smoke",
        help="open many streams, and measure them",
        description="Open streams as an SDK does, read each to its end, and report times and "
        "errors. Exit status: 0 if no threshold is exceeded, 1 if one is, 2 for wrong arguments.",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="the stream")
    add_request(parser)
    parser.add_argument("--count", type=_whole, default=20, help="how many streams (20)")
    parser.add_argument("--concurrency", type=_whole, default=5, help="how many at a time (5)")
    parser.add_argument(
        "--seconds", type=positive, default=120.0, help="the time for one stream (120)"
    )
    for name, meaning in (
        ("first-event", "95th percentile of the time to the first event"),
        ("duration", "95th percentile of the duration"),
        ("gap", "longest time between two events"),
    ):
        parser.add_argument(f"--max-{name}", type=positive, metavar="SECONDS", help=meaning)
    parser.add_argument(
        "--max-errors", type=_natural, default=0, metavar="N", help="streams with an error (0)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--results", type=Path, metavar="FILE", help="append the results to FILE")
    parser.add_argument(
        "--rollup",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="print the results in FILEs as Markdown, and open no stream",
    )
    parser.add_argument("--days", type=_whole, default=7, help="the days of --rollup (7)")
    parser.set_defaults(run=run_smoke)


def run_smoke(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    if arguments.url is None and not arguments.rollup:
        print("smoke: give a URL, or --rollup FILE", file=sys.stderr)  # noqa: T201 - as below
        return UNUSABLE
    try:
        if arguments.rollup:
            _show_rollup(arguments.rollup, arguments.days)
            return 0
        (target,) = targets(arguments, [arguments.url])
        if arguments.results is not None:
            arguments.results.open("a").close()  # fails before the streams are opened
        run = _measure(target, arguments)
        if arguments.results is not None:
            with arguments.results.open("a") as results:
                results.write(f"{run.to_json()}\n")
    except (ValueError, OSError) as exc:
        print(f"smoke: {exc}", file=sys.stderr)  # noqa: T201 - what a command is for
        return UNUSABLE
    print(run.to_json() if arguments.json else summary(run))  # noqa: T201
    return FOUND if run.exceeded else 0


def _measure(target: Target, arguments: argparse.Namespace) -> Run:
    began_at = datetime.now(UTC)

    def visit() -> StreamResult:
        return result_of(fetch(target, _HEADERS, seconds=arguments.seconds))

    results = visit_all(visit, arguments.count, arguments.concurrency, show_progress)
    run = Run.of(target.shown, began_at, results)
    thresholds = Thresholds(
        first_event=arguments.max_first_event,
        duration=arguments.max_duration,
        gap=arguments.max_gap,
        errors=arguments.max_errors,
    )
    return replace(run, exceeded=thresholds.exceeded_by(run))


def visit_all(
    visit: Callable[[], StreamResult],
    count: int,
    concurrency: int,
    progress: Callable[[str], None],
) -> list[StreamResult]:
    """Call `visit` a number of times, in as many threads as may run at a time.

    The threads are daemons, so that an interrupted command does not wait for them.
    """
    turns, results = queue.SimpleQueue[None](), queue.SimpleQueue[StreamResult | BaseException]()
    for _ in range(count):
        turns.put(None)

    def work() -> None:
        while True:
            try:
                turns.get_nowait()
            except queue.Empty:
                return
            try:
                results.put(visit())
            except BaseException as exc:  # noqa: BLE001 - raised by the main thread
                results.put(exc)

    for _ in range(min(count, concurrency)):
        threading.Thread(target=work, daemon=True).start()
    found: list[StreamResult] = []
    while len(found) < count:
        result = results.get()
        if isinstance(result, BaseException):
            raise result
        found.append(result)
        progress(f"{len(found)} of {count}: {result.error or f'{result.duration:.2f} s'}")
    return found


def _show_rollup(files: list[Path], days: int) -> None:
    runs, others = list[Run](), 0
    for file in files:
        with file.open(encoding="utf-8", errors="replace") as lines:
            more, invalid = read_runs(lines)
        runs, others = runs + more, others + invalid
    print(rollup(runs, datetime.now(UTC), days))  # noqa: T201
    if others:
        print(f"smoke: {others} lines are no results", file=sys.stderr)  # noqa: T201


def _natural(value: str) -> int:
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{value!r} is below 0")
    return number


def _whole(value: str) -> int:
    number = _natural(value)
    if not number:
        raise argparse.ArgumentTypeError("0 is too few")
    return number
