"""The suite that counts instructions with callgrind.

The speed of a shared machine changes by half within minutes, and ratios of times change with it.
The number of instructions does not: two runs differ by less than 0.5 %, also under load.

A driver plays the server in the process of the app, and runs each operation N1 times and N2 times.
The cost of one operation is (I2 - I1) / (N2 - N1), so that the start of the process and of a stream
cancel out. System calls are not counted, and `send` does nothing, but a server spends 6 µs and more
on each message. The number of messages is therefore given as well.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

from benchmarks.apps import (
    AS_PLAIN,
    CONTESTANTS,
    KEPT_PLAIN,
    MARKED,
    OURS,
    RECORDED,
    UNMARKED,
    UNRECORDED,
)
from benchmarks.harness.bench import Bench, Table
from benchmarks.harness.budgets import Budget
from benchmarks.harness.counts import PREFIX
from benchmarks.processes import (
    ROOT,
    BenchmarkError,
    SuiteUnavailableError,
    app_environment,
    cores_argument,
)

PEERS = ("bare", "starlette", "sse-starlette")
_MARKER = "getpgid"  # the workload calls it nowhere else
_MARKS_PER_OPERATION = 4
_SUMMARY = re.compile(r"^summary: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Counted:
    """An operation, as the table presents it.

    Attributes:
        unit: the name of one operation.
        numbers: how often it runs: N1 and N2.
        note: explains it.
    """

    unit: str
    numbers: tuple[int, int]
    note: str


COUNTED = {
    "json": Counted("JSON request", (1_000, 1_300), "A request that opens no stream."),
    "stream": Counted("stream", (100, 300), "The start of a stream, its only event, and its end."),
    "event": Counted("event", (1_000, 3_000), "One event in each turn of the loop, sent at once."),
    "burst": Counted("event", (5_000, 15_000), "50 events in each turn of the loop."),
    "heartbeat": Counted("heartbeat", (400, 1_200), "20 silent streams, a heartbeat each 5 s."),
}
BUDGETS = (
    Budget(f"{PREFIX}json", 1.16, "starlette", contestants=OURS),
    Budget(f"{PREFIX}stream", 1.35, "starlette", contestants=(UNMARKED,)),
    Budget(f"{PREFIX}event", 1.12, "starlette", contestants=(UNMARKED,)),
    Budget(f"{PREFIX}burst", 1.34, "starlette", contestants=(UNMARKED,)),
    Budget(f"{PREFIX}stream", 2.1, "starlette", contestants=(RECORDED,)),
    Budget(f"{PREFIX}stream", 1.8, "starlette", contestants=(UNRECORDED,)),
    Budget(f"{PREFIX}stream", 1.6, "starlette", contestants=(AS_PLAIN,)),
    Budget(f"{PREFIX}event", 2.0, "starlette", contestants=(RECORDED,)),
    Budget(f"{PREFIX}event", 1.75, "starlette", contestants=(UNRECORDED,)),
    Budget(f"{PREFIX}event", 1.55, "starlette", contestants=(AS_PLAIN,)),
    Budget(f"{PREFIX}burst", 2.05, "starlette", contestants=(RECORDED,)),
    Budget(f"{PREFIX}burst", 1.85, "starlette", contestants=(UNRECORDED,)),
    Budget(f"{PREFIX}burst", 1.5, "starlette", contestants=(AS_PLAIN,)),
    Budget(f"{PREFIX}stream", 1.9, "starlette", contestants=(KEPT_PLAIN,)),
    Budget(f"{PREFIX}event", 1.8, "starlette", contestants=(KEPT_PLAIN,)),
    Budget(f"{PREFIX}burst", 1.8, "starlette", contestants=(KEPT_PLAIN,)),
    Budget(f"{PREFIX}heartbeat", 0.45, "sse-starlette", contestants=MARKED),
)
"""The figures of the first count, rounded up by 1 to 4 %. Lower them after an improvement."""


@dataclass(frozen=True)
class Cost:
    """The cost of one operation."""

    instructions: float
    messages: float


Costs = dict[str, dict[str, Cost]]
"""By contestant and operation."""


def run_instructions(bench: Bench, _: str) -> list[Table]:
    """Count the instructions of each operation."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SuiteUnavailableError("valgrind is not installed")
    groups = (PEERS, OURS) if bench.sizes.shared_processes else zip((*PEERS, *OURS), strict=True)
    chosen = [[name for name in group if name in bench.contestants] for group in groups]
    workloads = [names for names in chosen if names]
    at_once = max(len(bench.all_cores), 1)
    costs: Costs = {}
    for first in range(0, len(workloads), at_once):
        with ExitStack() as stack:
            runs = [
                stack.enter_context(_Run(valgrind, bench, names))
                for names in workloads[first : first + at_once]
            ]
            for run in runs:
                costs |= run.costs()
    return [_table(name, counted, costs) for name, counted in COUNTED.items()]


def _table(name: str, counted: Counted, found: Costs) -> Table:
    costs = {contestant: costs[name] for contestant, costs in found.items() if name in costs}
    messages = {contestant: cost.messages for contestant, cost in costs.items()}
    return Table(
        f"{PREFIX}{name}",
        f"instructions per {counted.unit}",
        counted.note,
        samples={contestant: [cost.instructions] for contestant, cost in costs.items()},
        is_exact=True,
        further={f"messages per {counted.unit}": messages},
    )


class _Run:
    """A workload under callgrind, which starts at once."""

    def __init__(self, valgrind: str, bench: Bench, contestants: list[str]) -> None:
        self._contestants = contestants
        self._work = {
            contestant: {
                name: [number // bench.sizes.instruction_divisor for number in counted.numbers]
                for name, counted in COUNTED.items()
                if name != "heartbeat" or CONTESTANTS[contestant].heartbeat
            }
            for contestant in contestants
        }
        self._directory = tempfile.TemporaryDirectory()
        callgrind = ["--quiet", "--tool=callgrind", f"--dump-before={_MARKER}"]
        out = f"--callgrind-out-file={self._directory.name}/out"
        module = ["-m", "benchmarks.workers.instruction_workload"]
        arguments = [cores_argument(bench.all_cores), json.dumps(self._work)]
        self._process = subprocess.Popen(
            [valgrind, *callgrind, out, sys.executable, *module, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
            cwd=ROOT,
        )

    def costs(self) -> Costs:
        """Wait for the end of the workload, and return the costs."""
        printed, errors = self._process.communicate()
        if self._process.returncode:
            names = ", ".join(self._contestants)
            raise BenchmarkError(f"callgrind with {names} has failed: {errors}")
        marks = count(1, _MARKS_PER_OPERATION)
        return {
            contestant: {
                name: self._cost(contestant, name, runs, next(marks))
                for name, runs in operations.items()
            }
            for contestant, operations in json.loads(printed).items()
        }

    def _cost(
        self, contestant: str, name: str, runs: list[dict[str, int]], first_mark: int
    ) -> Cost:
        """Return the cost of an operation from its two runs, after the first and third mark."""
        few, many = runs
        found = [few["operations"], many["operations"]]
        wanted = self._work[contestant][name]
        if found != wanted:
            raise BenchmarkError(f"{contestant}: {name} ran {found} times, not {wanted}")
        instructions = self._instructions(first_mark + 3) - self._instructions(first_mark + 1)
        operations = many["operations"] - few["operations"]
        messages = many["messages"] - few["messages"]
        return Cost(instructions / operations, messages / operations)

    def _instructions(self, mark: int) -> int:
        """Return the instructions before this mark and after the one before it."""
        path = Path(self._directory.name, f"out.{mark}")
        match = _SUMMARY.search(path.read_text(errors="replace"))
        if match is None:
            raise BenchmarkError(f"{path} has no summary")
        return int(match[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._directory.cleanup()


def _environment() -> dict[str, str]:
    """Return an environment in which a workload always takes the same path.

    The logs of ended streams expire soon, so that logs expire as often as streams end.
    """
    return app_environment() | {
        "PYTHONHASHSEED": "0",
        "SSE_REPLAY_TTL": "1",
        "SSE_STREAM_MAX_SECONDS": str(10**7),
    }
