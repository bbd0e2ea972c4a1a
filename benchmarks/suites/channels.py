"""The suite of channels: from a worker over Redis and a server to the client.

Beside us, redis-py's own pub/sub: each reader has a subscription, and who is late has missed it.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Self

from benchmarks.apps import CHANNELS, PLAIN, PUBSUB, REDIS_VARIABLE
from benchmarks.harness.bench import Bench, Sizes, Table, percentiles
from benchmarks.load_generator import Request, Streams
from benchmarks.processes import BenchmarkError, Server, Worker
from benchmarks.suites.open_streams import read

BOTH = (CHANNELS, PUBSUB)
RATES = (100, 1_000)  # events a second to one reader
READERS = (1, 10, 100)  # of 100 events a second
_MANY = 1_000
_PER_SECOND = 100
_FEW_EVENTS = 5
_OPENED_PER_SECOND = 150
_PATIENCE = 20.0  # seconds
_SENT = re.compile(rb'"sent": ?([0-9.]+)}')


def run_channels(bench: Bench, _: str) -> list[Table]:
    """Measure the way of an event from `publish` to the clients, and what it costs the server."""
    many = bench.sizes.of(_MANY)
    tables = {name: Table(f"channels: {name}", unit, note) for name, unit, note in _tables(many)}
    names = BOTH
    with _redis() as url:
        os.environ[REDIS_VARIABLE] = url
        for _round in range(bench.sizes.rounds):
            for name in names:
                with _Way(name, bench.core) as way:
                    for measure, figure in way.figures(bench.sizes, many):
                        tables[measure].add(name, figure)
            names = names[::-1]
    return list(tables.values())


def _tables(many: int) -> Iterator[tuple[str, str, str]]:
    for rate in RATES:
        for figure in ("p50", "p99"):
            yield f"{figure} at {rate:,}/s", "ms from publish to client", "One reader."
    for figure in ("p50", "p99"):
        yield f"{figure} of one to many", "ms from publish to client", f"{many:,} readers."
    for readers in READERS:
        note = f"{_PER_SECOND} events a second."
        yield f"CPU, readers: {readers}", "µs of the server's CPU per delivery", note


class _Way:
    """A worker, a server, and clients."""

    def __init__(self, contestant: str, core: str | None) -> None:
        self._stack = ExitStack()
        self._server = self._stack.enter_context(Server(contestant, core))
        self._worker = self._stack.enter_context(Worker(contestant, None))
        self._channels = (f"channel-{contestant.partition(' ')[0]}-{number}" for number in count())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def figures(self, sizes: Sizes, many: int) -> Iterator[tuple[str, float]]:
        """Tell all figures of a round."""
        seconds = sizes.seconds / 3
        self._deliver(1, sizes.of(_PER_SECOND), _PER_SECOND)  # to warm up
        for rate in RATES:
            found, _ = self._deliver(1, int(rate * seconds), rate)
            for name, figure in zip(("p50", "p99"), percentiles(found), strict=True):
                yield f"{name} at {rate:,}/s", figure * 1e3
        for readers in READERS:
            found, cpu = self._deliver(readers, int(_PER_SECOND * seconds), _PER_SECOND)
            yield f"CPU, readers: {readers}", cpu / len(found) * 1e6
        found, _ = self._deliver(many, sizes.of(_FEW_EVENTS), 1)
        for name, figure in zip(("p50", "p99"), percentiles(found), strict=True):
            yield f"{name} of one to many", figure * 1e3

    def _deliver(self, readers: int, events: int, per_second: float) -> tuple[list[float], float]:
        """Publish events to readers; return the latency of each delivery, and the server's CPU."""
        channel = next(self._channels)
        self._worker.ask(f"{channel} 0 1")
        found: list[float] = []
        tails: dict[int, bytes] = {}  # an event may come in two parts
        request = Request(f"/channel?name={channel}", PLAIN)
        with closing(Streams(self._server.port, request)) as streams:
            read(streams.open(readers, _OPENED_PER_SECOND))
            read(streams.listen(0.2))
            before = self._server.ask("cpu")
            self._worker.tell(f"{channel} {events} {per_second}")
            until = time.monotonic() + events / per_second + _PATIENCE
            while len(found) < events * readers:
                for stream, data, now in streams.listen(0.05):
                    *events_sent, tails[id(stream)] = _split(tails.get(id(stream), b"") + data)
                    found += [now - float(sent) for sent in events_sent]
                if time.monotonic() > until:
                    came = f"{len(found)} of {events * readers} events came"
                    raise BenchmarkError(f"{self._server.contestant}: {came}")
            self._worker.answer()
            return found, self._server.ask("cpu") - before


def _split(data: bytes) -> list[bytes]:
    """Return when each event was sent, and what stands behind the last one."""
    matches = list(_SENT.finditer(data))
    return [*(match[1] for match in matches), data[matches[-1].end() :] if matches else data]


@contextmanager
def _redis() -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise BenchmarkError("there is no redis-server")
    with tempfile.TemporaryDirectory() as directory:
        socket = f"{directory}/redis.sock"
        command = [program, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", directory]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                until = time.monotonic() + _PATIENCE
                while not Path(socket).exists():
                    if time.monotonic() > until:
                        raise BenchmarkError("redis-server does not start")
                    time.sleep(0.01)
                yield f"unix://{socket}"
            finally:
                process.kill()
