"""The benchmarks run; what they say is for people to judge."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.redis_server import need_redis_server

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
PACKAGES = ("asgi_correlation_id", "fastapi", "prometheus_fastapi_instrumentator", "sse_starlette")
EVERYBODY = (
    "bare",
    "starlette",
    "sse-starlette",
    "fastapi",
    "BaseHTTPMiddleware",
    "correlation + instrumentator",
    "sse_middleware as eventsource",
    "sse_middleware as eventsource, not kept",
    "sse_middleware as plain",
)
BEATING = ("sse-starlette", *EVERYBODY[-3:])
STREAMING = ("starlette", *BEATING[:2], BEATING[-1])
RECORDED = BEATING[1:2]
OPENED = ("fresh", "resumed")
ON_CHANNELS = ("channels", "pub/sub of redis-py")
TABLES = {
    "bursts": EVERYBODY,
    "bursts of 50": EVERYBODY,
    "turns-1": EVERYBODY,
    "turns-100": EVERYBODY,
    "short": EVERYBODY,
    "json": EVERYBODY,
    "first-byte": EVERYBODY,
    "in-process: bursts, asyncio": EVERYBODY,
    "in-process: bursts, uvloop": EVERYBODY,
    "in-process: turns, asyncio": EVERYBODY,
    "in-process: turns, uvloop": EVERYBODY,
    "idle: memory": EVERYBODY,
    "idle: heartbeats": BEATING,
    "lateness: p50": BEATING[:2],
    "lateness: p99": BEATING[:2],
    "lateness: max": BEATING[:2],
    "lateness: max while they open": BEATING[:2],
    "frozen: CPU per event": STREAMING,
    "frozen: p50 of latency": STREAMING,
    "frozen: p99 of latency": STREAMING,
    "frozen: memory": STREAMING,
    "recording": (*RECORDED, BEATING[2]),
    "recorded-bytes": RECORDED,
    "resume: p50": OPENED,
    "resume: p99": OPENED,
    "redis-recording": ("eventsource in Redis", BEATING[2], "Redis itself"),
    "redis-recording: memory": ("a stream", "an event"),
    "redis-replay": ("eventsource in Redis", "bare"),
    "redis-latency: p50": ("its own worker", "another worker"),
    "redis-latency: p99": ("its own worker", "another worker"),
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
    """Return the processes of a group, but for those that only wait to be buried."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


@pytest.fixture
def benchmarks() -> list[str]:
    for package in PACKAGES:
        needs.module(package)
    need_redis_server()
    return [sys.executable, "-m", "benchmarks"]


@pytest.mark.timeout(300)
def test_every_suite_has_a_row_of_every_contestant(benchmarks: list[str]) -> None:
    from benchmarks.__main__ import SUITES  # noqa: PLC0415 - what it imports may be missing

    def run(suites: list[str]) -> str:
        with subprocess.Popen(
            [*benchmarks, "--quick", *suites],
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

    found: dict[str, list[list[str]]] = {}
    budgets = []
    with ThreadPoolExecutor(2) as threads:  # nobody looks at the figures
        for printed in threads.map(run, (list(SUITES)[::2], list(SUITES)[1::2])):
            _, *sections = printed.split("\n## ")
            found |= {section.partition("\n")[0]: rows(section) for section in sections}
            budgets += found.pop("Budgets")
    assert {name: {row[0] for row in table} for name, table in found.items()} == {
        name: set(contestants) for name, contestants in TABLES.items()
    }
    assert {row[0] for row in budgets} < set(TABLES)
    assert {row[-1] for row in budgets} <= {"met", "**missed**"}


@pytest.mark.timeout(60)
def test_nothing_is_left_of_a_run_that_was_killed(benchmarks: list[str]) -> None:
    with subprocess.Popen(
        [*benchmarks, "--quick", "short", "bursts"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != b"## short\n":
            assert process.poll() is None
        assert len(living(process.pid)) > len(EVERYBODY)
        process.kill()
    deadline = time.monotonic() + 10
    while living(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
