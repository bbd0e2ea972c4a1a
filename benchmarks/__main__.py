"""Measure the costs of an event stream with and without the middleware, and print them as markdown.

    python -m benchmarks [SUITE ...] [--rounds N] [--streams N] [--only NAME ...] [--quick]
                         [--freeze] [--json FILE] [--baseline FILE]

The suite `instructions` counts instructions, so that other work on the machine has no influence.
Use it to compare two versions: write the counts of one with `--json`, and pass the file to the
other as `--baseline`. The other suites measure times. Their ratios are taken within a round, in
which the contestants take short turns; the median ratio is given with the minimum and the maximum.

`recording`, `resume`, `redis-*`, `channels` and a few more have fixed contestants; `--only` selects
those of the other suites. This is no test: a missed budget is no error, but a lost event is. A
quick run shows that everything works; apart from instructions, its figures mean nothing.
"""

import argparse
import dataclasses
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.apps import APART, CONTESTANTS
from benchmarks.harness.bench import FULL, QUICK, Bench, Table
from benchmarks.harness.counts import comparison_text, read_counts, write_counts
from benchmarks.harness.report import budgets_text, heading_text, table_text
from benchmarks.processes import BenchmarkError, SuiteUnavailableError
from benchmarks.suites import (
    channels,
    instructions,
    many_streams,
    open_streams,
    redis_commands,
    redis_store,
    resuming,
    throughput,
)
from benchmarks.workers.cores import pin, usable_cores

SUITES: dict[str, Callable[[Bench, str], list[Table]]] = {
    "instructions": instructions.run_instructions,
    **dict.fromkeys(throughput.CASES, throughput.run_cases),
    "first-byte": throughput.run_first_byte,
    "in-process": throughput.run_in_process,
    "idle": open_streams.run_idle,
    "lateness": open_streams.run_lateness,
    "frozen": open_streams.run_frozen,
    "many": many_streams.run_many,
    "paced": resuming.run_paced,
    "recording": resuming.run_recording,
    "recorded-bytes": resuming.run_recorded_bytes,
    "resume": resuming.run_resume,
    "redis-recording": redis_store.run_redis_recording,
    "redis-replay": redis_store.run_redis_replay,
    "redis-latency": redis_store.run_redis_latency,
    "redis-commands": redis_commands.run_redis_commands,
    "channels": channels.run_channels,
}
BUDGETS = (
    *instructions.BUDGETS,
    *throughput.BUDGETS,
    *open_streams.BUDGETS,
    *resuming.BUDGETS,
    *redis_store.BUDGETS,
    *redis_commands.BUDGETS,
    *channels.BUDGETS,
)
PEERS = tuple(name for name in CONTESTANTS if name not in APART)
LONGEST_RUN_SECONDS = 1800


def main() -> int:
    """Run the chosen suites; return 1 if one of them fails."""
    arguments = _arguments()
    gc.disable()  # a collection in this process would look like a late server
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.alarm(LONGEST_RUN_SECONDS)
    cores = usable_cores()
    measured, own = cores[:2] if len(cores) > 1 else (None, None)
    if own is not None:
        pin([own])
    sizes = QUICK if arguments.quick else FULL
    sizes = dataclasses.replace(
        sizes,
        rounds=arguments.rounds or sizes.rounds,
        streams=arguments.streams or sizes.streams,
        freezes=arguments.freeze,
    )
    chosen = [name for name in CONTESTANTS if name in (arguments.only or PEERS)]
    bench = Bench(sizes, tuple(chosen), measured, cores)
    print(heading_text(), flush=True)
    try:
        tables, failed = _run(bench, arguments.suites or list(SUITES))
    finally:
        bench.close()
    print(budgets_text(BUDGETS, tables), flush=True)
    _handle_counts(arguments, tables)
    return failed


def _run(bench: Bench, suites: list[str]) -> tuple[list[Table], int]:
    tables: list[Table] = []
    failed = 0
    for suite in suites:
        try:
            found = SUITES[suite](bench, suite)
        except SuiteUnavailableError as exc:
            print(f"\n{suite} is left out: {exc}", flush=True)
        except (BenchmarkError, OSError) as exc:
            print(f"\n## {suite}\n\nfailed: {exc}", flush=True)
            failed = 1
            bench.close()  # the next suite gets new servers
        else:
            tables += found
            print(*map(table_text, found), sep="\n", flush=True)
    return tables, failed


def _handle_counts(arguments: argparse.Namespace, tables: list[Table]) -> None:
    sizes = "quick" if arguments.quick else "full"
    if arguments.baseline:
        print(comparison_text("Changes", arguments.baseline, tables, sizes), flush=True)
    if arguments.json:
        write_counts(arguments.json, tables, sizes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    add("--rounds", type=int, help=f"samples of each contestant ({FULL.rounds})")
    add("--streams", type=int, help=f"streams that `idle` opens ({FULL.streams})")
    add("--freeze", action="store_true", help="`lateness` and `many` call `gc.freeze` first")
    add("--only", nargs="+", metavar="NAME", help=", ".join(CONTESTANTS))
    add("--quick", action="store_true", help="only show that everything works")
    add("--json", type=Path, metavar="FILE", help="write the instruction counts to FILE")
    add("--baseline", type=_counts, metavar="FILE", help="compare the counts with those in FILE")
    arguments = parser.parse_args()
    unknown = {*arguments.suites} - {*SUITES} | {*(arguments.only or ())} - {*CONTESTANTS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    counts = arguments.json or arguments.baseline
    if counts and "instructions" not in (arguments.suites or SUITES):
        parser.error("--json and --baseline need the suite instructions")
    return arguments


def _counts(path: str) -> dict[str, Any]:
    try:
        return read_counts(Path(path))
    except (OSError, ValueError) as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _on_alarm(_: int, _frame: FrameType | None) -> None:
    raise SystemExit(f"the run has taken more than {LONGEST_RUN_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
