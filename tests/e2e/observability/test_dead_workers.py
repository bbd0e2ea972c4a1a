"""The files of dead workers in the directory of the metrics, and the way the docs clean it up."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from tests.support.ports import free_port
from tests.support.prometheus import Prometheus, scraping
from tests.support.servers import running_process, wait_until_listening
from tests.support.waiting import HANG_SECONDS, wait_until

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
LIGHT_APP = "tests.e2e.observability.light_app:app"
REQUESTS_PER_WORKER = 8
FINISHED = 'sum(sse_streams_total{outcome="finished"})'


def start_script(directory: Path, port: int) -> str:
    """Return the script of the docs, for the app of the tests, with workers that end soon."""
    found = re.search(
        r"```sh\n( *export PROMETHEUS_MULTIPROC_DIR=.*?)```", DOCUMENT.read_text(), re.DOTALL
    )
    assert found is not None
    script = found[1].replace("/run/app/metrics", str(directory))
    command = f"{sys.executable} -m gunicorn -b 127.0.0.1:{port}"
    script, count = re.subn(r"exec gunicorn\b", f"exec {command}", script)
    assert count == 1
    script, count = re.subn(
        "--max-requests [0-9]+", f"--max-requests {REQUESTS_PER_WORKER}", script
    )
    assert count == 1
    return script.replace(" app:app", f" {LIGHT_APP}")


@contextmanager
def started(script: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with running_process(["sh", "-ec", script], log) as (process, _):
        wait_until_listening(port, process, log)
        yield process


def read_streams(port: int, count: int) -> None:
    """Read streams to their ends, each by a connection of its own, as fast as the workers are.

    A worker that ends drains its streams: those of plain clients run to their ends.
    """
    for _ in range(count):
        url = f"http://127.0.0.1:{port}/stream/search?delay_ms=0"
        assert httpx.get(url, timeout=HANG_SECONDS).content.endswith(b"data: 99\n\n")


def pids_in(directory: Path) -> set[int]:
    return {int(path.stem.rpartition("_")[2]) for path in directory.glob("*.db")}


def until(prometheus: Prometheus, value: int) -> None:
    prometheus.until(FINISHED, value)


def test_the_totals_include_dead_workers_and_a_start_of_the_server_removes_their_files(
    tmp_path: Path,
) -> None:
    directory, port = tmp_path / "metrics", free_port()
    script = start_script(directory, port)
    with started(script, port, tmp_path / "one.log"), scraping(tmp_path, port) as prometheus:
        total = 0
        while len(pids_in(directory)) < 6:  # of three workers
            read_streams(port, REQUESTS_PER_WORKER)
            total += REQUESTS_PER_WORKER
        until(prometheus, total)
        prometheus.until("sse_streams_active", 0)
        before = pids_in(directory)
    with started(script, port, tmp_path / "two.log"), scraping(tmp_path, port) as prometheus:
        assert not pids_in(directory) & before
        read_streams(port, 3)
        until(prometheus, 3)
        wait_until(lambda: len(pids_in(directory)) <= 4, "there are files of dead workers")
