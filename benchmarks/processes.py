"""The processes that are measured, as the parent sees them."""

import os
import subprocess
import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Self

from benchmarks.apps import HEARTBEAT_VARIABLE
from benchmarks.workers.server import LONGER_THAN_ANY_SUITE

PATIENCE = 5.0  # seconds
HEARTBEAT_SECONDS = 5.0


class BenchmarkError(Exception):
    """Something that was to be measured did not work."""


def cores() -> tuple[str, ...]:
    """Return a core for the measured processes and one for us, or none where there are no two."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    found = sorted(os.sched_getaffinity(0))
    return (str(found[0]), str(found[1])) if len(found) > 1 else ()


class Child:
    """A process that answers lines on its stdin, from its first line on stdout on.

    Args:
        contestant: whose app it runs.
        core: where; `None`: anywhere.
        heartbeat: the interval in seconds, for those who have one.
        redis_url: where we keep events; empty: in memory.
    """

    module: str

    def __init__(
        self,
        contestant: str,
        core: str | None,
        heartbeat: float = HEARTBEAT_SECONDS,
        *,
        redis_url: str = "",
    ) -> None:
        self.contestant = contestant
        own = {name: value for name, value in os.environ.items() if not name.startswith("SSE_")}
        own["SSE_STREAM_MAX_SECONDS"] = str(LONGER_THAN_ANY_SUITE)
        own[HEARTBEAT_VARIABLE] = str(heartbeat)
        own["SSE_REDIS_URL"] = redis_url
        command = [sys.executable, "-m", self.module, contestant, *([core] if core else [])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=own,
            cwd=Path(__file__).parent.parent,
        )

    @cached_property
    def greeting(self) -> str:
        """The first line, which says that it is ready."""
        return self._read()

    def ask(self, line: str) -> float:
        """Send `line` and return the number that it is answered by."""
        self.tell(line)
        return self.answer()

    def tell(self, line: str) -> None:
        """Send `line`; `answer` is to be called for it."""
        assert self.greeting
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """Return the number that a line is answered by, when it is."""
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise BenchmarkError(f"{self.contestant} has ended by itself")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # a line that it has not lived to read
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class InProcess(Child):
    """A contestant without a server."""

    module = "benchmarks.workers.in_process"


class Worker(Child):
    """What publishes on a contestant's channels."""

    module = "benchmarks.workers.publisher"


class Server(Child):
    """A contestant's server."""

    module = "benchmarks.workers.server"

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self.greeting)
