"""The processes that are measured, as the parent process sees them."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Self

import redis

from benchmarks.apps import HEARTBEAT_VARIABLE, LONGER_THAN_ANY_SUITE

TIMEOUT_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
ROOT = Path(__file__).parent.parent


class BenchmarkError(Exception):
    """A measurement failed."""


class SuiteUnavailableError(Exception):
    """A program that a suite needs is not installed; the suite is left out."""


def app_environment(heartbeat: float = HEARTBEAT_SECONDS, redis_url: str = "") -> dict[str, str]:
    """Return the environment of an app: ours, with no setting of the middleware but these.

    Args:
        heartbeat: the interval in seconds.
        redis_url: the Redis that stores events; empty: memory stores them.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("SSE_")}
    return own | {
        "SSE_STREAM_MAX_SECONDS": str(LONGER_THAN_ANY_SUITE),
        HEARTBEAT_VARIABLE: str(heartbeat),
        "SSE_REDIS_URL": redis_url,
    }


def turns_for(seconds: float, is_enough: Callable[[], bool], failure: str) -> Iterator[None]:
    """Yield for a time, and then until it is enough, as on a busy machine little may have arrived.

    Raises:
        BenchmarkError: with the text `failure`, if it is not enough within a limit.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until or not is_enough():
        if time.monotonic() > until + TIMEOUT_SECONDS:
            raise BenchmarkError(failure)
        yield


def cores_argument(cores: Iterable[int]) -> str:
    """Return cores as the workers take them in their arguments."""
    return ",".join(map(str, cores))


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis that stores nothing on disk; yield its URL.

    It listens on a Unix socket, as a free TCP port could be taken before Redis opens it.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise BenchmarkError("redis-server is not installed")
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/redis.sock"
        command = [program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(unix_socket_path=path) as client:
                _wait_for(client)
            yield f"unix://{path}"
        finally:
            process.kill()
            process.wait(TIMEOUT_SECONDS)


def _wait_for(client: redis.Redis) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            client.ping()
        except redis.RedisError as exc:
            if time.monotonic() > deadline:
                raise BenchmarkError("redis-server does not answer") from exc
            time.sleep(0.01)
        else:
            return


class Child:
    """A process that prints a greeting line and then answers each line on its stdin with a number.

    Args:
        contestant: the name of the app that it runs.
        core: the core that it runs on; `None`: any.
        heartbeat: the interval in seconds.
        redis_url: the Redis that stores events; empty: memory stores them.
    """

    module: str

    def __init__(
        self,
        contestant: str,
        core: int | None,
        heartbeat: float = HEARTBEAT_SECONDS,
        *,
        redis_url: str = "",
    ) -> None:
        self.contestant = contestant
        cores = "" if core is None else str(core)
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, contestant, cores],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=app_environment(heartbeat, redis_url),
            cwd=ROOT,
        )

    @cached_property
    def greeting(self) -> str:
        """The first line; the process prints it when it is ready."""
        return self._read()

    def ask(self, line: str) -> float:
        """Send `line` and return the number that answers it."""
        self.send(line)
        return self.answer()

    def send(self, line: str) -> None:
        """Send `line`; call `answer` afterwards."""
        assert self.greeting
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """Wait for the number that answers the last line, and return it."""
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise BenchmarkError(f"the process of {self.contestant} has ended")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(TIMEOUT_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a line that the process has not read
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class InProcess(Child):
    """A contestant's app without a server."""

    module = "benchmarks.workers.in_process"


class Publisher(Child):
    """A process that publishes on a contestant's channels."""

    module = "benchmarks.workers.publisher"


class Server(Child):
    """A contestant's app in a server."""

    module = "benchmarks.workers.server"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that the server listens on."""
        return int(self.greeting)
