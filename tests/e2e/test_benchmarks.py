"""The benchmarks run, and their tables are complete.

No time is checked. Instruction counts do not depend on the load of the machine, so that a few
relations between them are checked.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import needs
from tests.support.redis_server import need_redis_server
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "asgi_correlation_id",
    "assistant_stream",
    "fastapi",
    "fastapi_resumable_stream",
    "prometheus_fastapi_instrumentator",
    "sse_starlette",
)
ALL = (
    "bare",
    "starlette",
    "sse-starlette",
    "fastapi",
    "BaseHTTPMiddleware",
    "correlation + instrumentator",
    "sse_middleware, unmarked",
    "sse_middleware as eventsource",
    "sse_middleware as eventsource, not kept",
    "sse_middleware as plain",
    "sse_middleware as plain, kept",
)
WITH_HEARTBEAT = ("sse-starlette", *ALL[-4:])
FEW = ("starlette", *WITH_HEARTBEAT[:2], WITH_HEARTBEAT[3])
RECORDED = WITH_HEARTBEAT[1:2]
OPENED = ("fresh", "resumed")
COUNTED = ("bare", "starlette", "sse_middleware, unmarked", "sse_middleware as eventsource")
ON_CHANNELS = ("channels", "pub/sub of redis-py")
TABLES = {
    "bursts": FEW,
    "bursts of 50": FEW,
    "turns-1": FEW,
    "turns-100": FEW,
    "short": ALL,
    "json": FEW,
    "first-byte": ALL,
    "in-process: bursts, asyncio": FEW,
    "in-process: bursts, uvloop": FEW,
    "in-process: turns, asyncio": FEW,
    "in-process: turns, uvloop": FEW,
    "idle: memory": FEW,
    "idle: heartbeats": FEW[1:],
    "lateness: p50": WITH_HEARTBEAT[:2],
    "lateness: p99": WITH_HEARTBEAT[:2],
    "lateness: max": WITH_HEARTBEAT[:2],
    "lateness: max while they open": WITH_HEARTBEAT[:2],
    "frozen: CPU per event": FEW,
    "frozen: p50 of latency": FEW,
    "frozen: p99 of latency": FEW,
    "frozen: memory": FEW,
    "paced": FEW,
    "many: µs per opening": ("starlette", *RECORDED),
    "many: bytes per stream": ("starlette", *RECORDED),
    "many: p99 of lateness in ms, while they open": RECORDED,
    "many: maximum in ms, while they open": RECORDED,
    "many: p99 of lateness in ms, open": RECORDED,
    "many: maximum in ms, open": RECORDED,
    "many: seconds of the drain": RECORDED,
    "recording": (*RECORDED, WITH_HEARTBEAT[2]),
    "recording of plain": WITH_HEARTBEAT[3:],
    "recorded-bytes": RECORDED,
    "resume: p50": OPENED,
    "resume: p99": OPENED,
    "redis-recording": ("eventsource in Redis", WITH_HEARTBEAT[2], "Redis itself"),
    "redis-recording: memory": ("a stream", "an event"),
    "redis-replay": ("eventsource in Redis", "bare"),
    "redis-latency: p50": ("its own worker", "another worker"),
    "redis-latency: p99": ("its own worker", "another worker"),
    "redis-commands": ("sse_middleware", "assistant-stream", "fastapi-resumable-stream"),
    "channels: p50 at 100/s": ON_CHANNELS,
    "channels: p99 at 100/s": ON_CHANNELS,
    "channels: p50 at 1,000/s": ON_CHANNELS,
    "channels: p99 at 1,000/s": ON_CHANNELS,
    "channels: p50 of one to many": ON_CHANNELS,
    "channels: p99 of one to many": ON_CHANNELS,
    "channels: CPU, readers: 1": ON_CHANNELS,
    "channels: CPU, readers: 10": ON_CHANNELS,
    "channels: CPU, readers: 100": ON_CHANNELS,
}


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def living(group: int) -> list[str]:
    """Return the processes of a group, except for zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


def run(command: list[str]) -> str:
    """Run the benchmarks; check that they succeed and that no process of theirs is left."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        printed, errors = process.communicate()
    assert process.returncode == 0, printed + errors
    assert not living(process.pid)
    return printed


def tables(printed: str) -> dict[str, list[list[str]]]:
    _, *sections = printed.split("\n## ")
    return {section.partition("\n")[0]: rows(section) for section in sections}


@pytest.fixture(scope="module")
def benchmarks() -> list[str]:
    for package in PACKAGES:
        needs.module(package)
    need_redis_server()
    return [sys.executable, "-m", "benchmarks", "--quick"]


@pytest.fixture(scope="module")
def counts(benchmarks: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the file with the instruction counts of a run, and the run's output."""
    needs.program("valgrind")
    file = tmp_path_factory.mktemp("counts") / "counts.json"
    command = [*benchmarks, "instructions", "--json", str(file), "--only", *COUNTED]
    return file, run(command)


@pytest.mark.timeout(900)
def test_every_suite_has_a_row_for_every_contestant(benchmarks: list[str]) -> None:
    """All contestants run in two of the suites, and a few in the others, as they have one app."""
    from benchmarks.__main__ import SUITES  # noqa: PLC0415 - its imports may be missing

    with_all = ["short", "first-byte"]
    others = [suite for suite in SUITES if suite not in (*with_all, "instructions")]
    found: dict[str, list[list[str]]] = {}
    budgets = []
    with ThreadPoolExecutor(2) as threads:  # the figures are not checked
        commands = ([*benchmarks, *with_all], [*benchmarks, *others, "--only", *FEW])
        for printed in threads.map(run, commands):
            found |= tables(printed)
            budgets += found.pop("Budgets")
    assert {name: {row[0] for row in table} for name, table in found.items()} == {
        name: set(contestants) for name, contestants in TABLES.items()
    }
    assert {row[0] for row in budgets} < set(TABLES)
    assert {row[-1] for row in budgets} <= {"met", "**missed**"}


@pytest.mark.timeout(900)
def test_instructions_have_a_table_for_each_operation(counts: tuple[Path, str]) -> None:
    _, printed = counts
    found = tables(printed)
    del found["Budgets"]
    every = {name: set(COUNTED) for name in ("json", "stream", "event", "burst")}
    assert {name: {row[0] for row in table} for name, table in found.items()} == {
        f"instructions: {name}": contestants
        for name, contestants in {**every, "heartbeat": {*RECORDED}}.items()
    }


@pytest.mark.timeout(900)
def test_instruction_counts_are_plausible(counts: tuple[Path, str]) -> None:
    content: dict[str, Any] = json.loads(counts[0].read_text())
    found: dict[str, dict[str, float]] = content["instructions"]
    for operation in ("json", "stream", "event", "burst"):
        assert 1_000 < found[operation]["bare"] < found[operation]["starlette"], operation
        for contestant in COUNTED[2:]:
            assert found[operation]["starlette"] < found[operation][contestant], operation
    for contestant in COUNTED:
        assert found["burst"][contestant] < found["event"][contestant], contestant
    assert content["versions"].keys() > {"Python", "starlette"}
    assert content["sizes"] == "quick"


@pytest.mark.timeout(900)
def test_a_baseline_is_compared_with_a_run_of_the_same_code(
    benchmarks: list[str], counts: tuple[Path, str]
) -> None:
    baseline = ["--baseline", str(counts[0])]
    printed = run([*benchmarks, "instructions", "--only", "bare", *baseline])
    changes = tables(printed)["Changes"]
    assert [row[:2] for row in changes] == [
        [operation, "bare"] for operation in ("json", "stream", "event", "burst")
    ]
    assert {row[-1] for row in changes} == {"same"}
    assert "Not like for like" not in printed


def test_instructions_are_left_out_without_valgrind(
    benchmarks: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    printed = run([*benchmarks, "instructions"])
    assert "\ninstructions is left out: valgrind is not installed\n" in printed


def test_a_killed_run_leaves_no_process(benchmarks: list[str]) -> None:
    with subprocess.Popen(
        [*benchmarks, "short", "bursts"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != b"## short\n":
            assert process.poll() is None
        assert len(living(process.pid)) > len(ALL)
        process.kill()
    wait_until(lambda: not living(process.pid), "a process is left")
