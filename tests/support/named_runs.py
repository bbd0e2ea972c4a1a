"""The runs of `tests/e2e/clients/resume_app.py` on workers that share a Redis."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from tests.support.redis_server import RedisServer
from tests.support.waiting import HANG_SECONDS, wait_until
from tests.support.workers import Worker, working

APP = "tests.e2e.clients.resume_app:app"
ANN = {"authorization": "Bearer ann"}
"""The identity of the clients that are no browsers."""


class NamedRuns:
    """The workers of the app, and what has become of its answers.

    Attributes:
        workers: the workers; a worker that is killed does not respond any more.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers

    @property
    def ports(self) -> list[int]:
        """The ports of the workers."""
        return [worker.server.port for worker in self.workers]

    def of(self, name: str) -> list[list[str]]:
        """Return how the runs of a name are, for each worker."""
        return [self._get(worker, name) for worker in self.workers]

    def release(self, name: str) -> None:
        """Let the answer of a name continue, on each worker."""
        for worker in self.workers:
            httpx.post(f"{worker.server.url}/release/{name}", timeout=HANG_SECONDS)

    def wait_for(self, name: str, *runs: list[str]) -> None:
        """Wait until the runs of a name are as given, for each worker."""
        wait_until(lambda: self.of(name) == list(runs), lambda: f"{self.of(name)}, not {runs}")

    def wait_until_known(self, path: str, headers: dict[str, str]) -> None:
        """Wait until each worker has the running stream that a path of an endpoint serves.

        A worker knows of it some milliseconds after its response start.
        """
        for worker in self.workers:
            url = f"{worker.server.url}{path}"
            wait_until(lambda: _status(url, headers) == 200, f"{url} has no stream")  # noqa: B023 - it is called at once

    def resumes(self) -> int:
        """Return how often a client has resumed a stream at one of the workers."""
        return sum(_resumes(worker) for worker in self.workers)

    def wait_for_resumes(self, count: int) -> None:
        """Wait until clients have resumed streams at least that often."""
        wait_until(lambda: self.resumes() >= count, lambda: f"{self.resumes()}, not {count}")

    def _get(self, worker: Worker, name: str) -> list[str]:
        runs: list[str] = httpx.get(
            f"{worker.server.url}/record/{name}", timeout=HANG_SECONDS
        ).json()
        return runs


def _resumes(worker: Worker) -> int:
    metrics = httpx.get(f"{worker.server.url}/metrics", timeout=HANG_SECONDS).text
    counts = re.findall(r'^sse_resumes_total\{.*result="resumed".*\} (\d+)', metrics, re.MULTILINE)
    return sum(map(int, counts))


def _status(url: str, headers: dict[str, str]) -> int:
    with httpx.stream("GET", url, headers=headers, timeout=HANG_SECONDS) as response:
        return response.status_code


@contextmanager
def named_runs(directory: Path, **environ: str) -> Iterator[NamedRuns]:
    """Run two workers of the app until the block ends; no heartbeat is among the app's bytes."""
    environ = {"SSE_HEARTBEAT_INTERVAL": "600", **environ}
    with (
        RedisServer(directory) as redis,
        working(APP, 2 * [redis.patient_url], directory, environ) as workers,
    ):
        yield NamedRuns(workers)
