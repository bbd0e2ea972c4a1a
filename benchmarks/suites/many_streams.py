"""The suite with more streams than a test machine has files and ports: without sockets."""

import json
import subprocess
import sys

from benchmarks.apps import RECORDED
from benchmarks.harness.bench import Bench, Table
from benchmarks.processes import (
    HEARTBEAT_SECONDS,
    ROOT,
    BenchmarkError,
    app_environment,
    cores_argument,
)


def run_many(bench: Bench, _: str) -> list[Table]:
    """Measure memory, lateness of heartbeats and the drain of many streams in one process."""
    number = bench.sizes.many_streams
    interval = min(HEARTBEAT_SECONDS, bench.sizes.seconds / 2)
    note = f"{number:,} streams without a server, a heartbeat each {interval:g} s."
    tables: dict[str, Table] = {}
    for name in bench.turns(1, among=("starlette", RECORDED)):
        for figure, value in _figures(bench, name, number, interval).items():
            table = tables.setdefault(figure, Table(f"many: {figure}", figure, note))
            table.add(name, value)
    return list(tables.values())


def _figures(bench: Bench, name: str, number: int, interval: float) -> dict[str, float]:
    module = "benchmarks.workers.many_streams"
    cores = cores_argument([] if bench.core is None else [bench.core])
    freezes = ["freeze"] if bench.sizes.freezes else []
    run = subprocess.run(
        [sys.executable, "-m", module, name, cores, str(number), *freezes],
        capture_output=True,
        text=True,
        env=app_environment(interval) | {"SSE_DRAIN_SECONDS": str(interval)},
        cwd=ROOT,
        check=False,
    )
    if run.returncode:
        raise BenchmarkError(f"{name} with {number} streams has failed: {run.stderr}")
    figures: dict[str, float] = json.loads(run.stdout)
    return figures
