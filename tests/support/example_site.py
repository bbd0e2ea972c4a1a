"""The example on one worker, by its command, and on three that share a Redis."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.redis_server import RedisServer
from tests.support.servers import running_process, until_logged
from tests.support.workers import Worker, working

ONE_AND_THREE = ["one worker", "three workers"]
_APP = "example_app.app:app"
_ENVIRON = {"SSE_DRAIN_SECONDS": "9"}  # an answer takes three on a machine with nothing else to do


class Site(NamedTuple):
    """The running example.

    Attributes:
        addresses: those of its workers.
        workers: the workers, if they are several, so that they can be killed.
        redis: their Redis, if they are several.
    """

    addresses: list[str]
    workers: list[Worker]
    redis: RedisServer | None

    def address(self, number: int) -> str:
        """Return the address of one of the workers, in turn."""
        return self.addresses[number % len(self.addresses)]


@contextmanager
def running_example(kind: str, directory: Path) -> Iterator[Site]:
    """Run the example, with one of `ONE_AND_THREE`, until the block ends."""
    if kind == "one worker":
        command = [sys.executable, "-m", "example_app", "--port", "0"]
        with running_process(command, directory / "example.log") as (_, log):
            yield Site([until_logged(log, r"http://\S+?:\d+")], [], None)
        return
    with (
        RedisServer(directory) as redis,
        working(_APP, 3 * [redis.patient_url], directory, _ENVIRON) as workers,
    ):
        yield Site([worker.server.url for worker in workers], workers, redis)
