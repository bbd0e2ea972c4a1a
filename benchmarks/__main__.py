"""Measure what a stream costs with us, without us and by others, and print it as markdown.

    python -m benchmarks [SUITE ...] [--rounds N] [--streams N] [--only NAME ...] [--quick]

Ratios are taken within a round, in which the contestants take short turns, and their median is
given with the least and the greatest: a machine that is busy with something else slows them all.
Who takes part where events are kept, and in `channels`, is set; `--only` is for the other suites.
It is no test: a missed budget is no error, a contestant that drops an event is one. A quick run
proves that all of this works; its figures mean nothing.
"""

import argparse
import dataclasses
import gc
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from benchmarks.apps import APART, CONTESTANTS
from benchmarks.harness.bench import FULL, QUICK, Bench, Table
from benchmarks.harness.report import budgets_text, table_text, versions
from benchmarks.processes import BenchmarkError, cores
from benchmarks.suites.channels import run_channels
from benchmarks.suites.open_streams import run_frozen, run_idle, run_lateness
from benchmarks.suites.redis_store import run_redis_latency, run_redis_recording, run_redis_replay
from benchmarks.suites.resuming import run_recorded_bytes, run_recording, run_resume
from benchmarks.suites.throughput import CASES, run_cases, run_first_byte, run_in_process

SUITES: dict[str, Callable[[Bench, str], list[Table]]] = {
    **dict.fromkeys(CASES, run_cases),
    "first-byte": run_first_byte,
    "in-process": run_in_process,
    "idle": run_idle,
    "lateness": run_lateness,
    "frozen": run_frozen,
    "recording": run_recording,
    "recorded-bytes": run_recorded_bytes,
    "resume": run_resume,
    "redis-recording": run_redis_recording,
    "redis-replay": run_redis_replay,
    "redis-latency": run_redis_latency,
    "channels": run_channels,
}
PEERS = tuple(name for name in CONTESTANTS if name not in APART)
LONGEST_RUN = 1800  # seconds


def main() -> int:
    """Run the suites that are asked for; 1 if one of them could not run."""
    arguments = _parsed()
    gc.disable()  # our own collections would look like a late server
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LONGEST_RUN)
    measured, own = cores() or (None, None)
    if own is not None:
        os.sched_setaffinity(0, {int(own)})
    sizes = QUICK if arguments.quick else FULL
    sizes = dataclasses.replace(
        sizes,
        rounds=arguments.rounds or sizes.rounds,
        streams=arguments.streams or sizes.streams,
    )
    chosen = [name for name in CONTESTANTS if name in (arguments.only or PEERS)]
    bench = Bench(sizes, tuple(chosen), measured)
    print(versions(), flush=True)
    try:
        return _run(bench, arguments.suites or list(SUITES))
    finally:
        bench.close()


def _run(bench: Bench, suites: list[str]) -> int:
    tables: list[Table] = []
    failed = 0
    for suite in suites:
        try:
            found = SUITES[suite](bench, suite)
        except (BenchmarkError, OSError) as exc:
            print(f"\n## {suite}\n\ncould not run: {exc}", flush=True)
            failed = 1
            bench.close()  # whatever is wrong with a server is not to befall the next suite
        else:
            tables += found
            print(*map(table_text, found), sep="\n", flush=True)
    print(budgets_text(tables), flush=True)
    return failed


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--rounds", type=int, help=f"how often each runs ({FULL.rounds})")
    parser.add_argument("--streams", type=int, help=f"open in `idle` ({FULL.streams})")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--quick", action="store_true", help="prove that it works, no more")
    arguments = parser.parse_args()
    unknown = {*arguments.suites} - {*SUITES} | {*(arguments.only or ())} - {*CONTESTANTS}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    return arguments


def _give_up(_: int, _frame: FrameType | None) -> None:
    raise SystemExit(f"it has taken more than {LONGEST_RUN} s")


if __name__ == "__main__":
    sys.exit(main())
