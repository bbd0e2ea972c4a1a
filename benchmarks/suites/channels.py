"""The suite of channels: from a worker through Redis and a server to the client.

The other contestant is redis-py's pub/sub: each reader has a subscription, and a reader that
subscribes late misses events.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import count
from typing import Self

from benchmarks.apps import CHANNELS, PLAIN, PUBSUB, REDIS_VARIABLE
from benchmarks.harness.bench import Bench, Sizes, Table, percentiles
from benchmarks.harness.budgets import Budget
from benchmarks.load_generator import Request, Streams
from benchmarks.processes import (
    BenchmarkError,
    Publisher,
    Server,
    redis_server,
    turns_for,
)
from benchmarks.suites.open_streams import read

BOTH = (CHANNELS, PUBSUB)
RATES = (100, 1_000)  # events a second to one reader
READERS = (1, 10, 100)  # of 100 events a second
_MANY = 1_000
_PER_SECOND = 100
_FEW_EVENTS = 5
_OPENED_PER_SECOND = 150
_TIMEOUT_SECONDS = 20.0
BUDGETS = (
    *(
        Budget(f"channels: p50 at {rate:,}/s", 1.3, PUBSUB, contestants=(CHANNELS,))
        for rate in RATES
    ),
    Budget("channels: p50 of one to many", 1.3, PUBSUB, contestants=(CHANNELS,)),
    *(
        Budget(f"channels: CPU, readers: {readers}", 1, PUBSUB, contestants=(CHANNELS,))
        for readers in READERS[1:]
    ),
)
_SENT = re.compile(rb'"sent": ?([0-9.]+)}')


def run_channels(bench: Bench, _: str) -> list[Table]:
    """Measure the latency from `publish` to the clients, and the CPU time of the server."""
    many = bench.sizes.of(_MANY)
    tables = {name: Table(f"channels: {name}", unit, note) for name, unit, note in _tables(many)}
    names = BOTH
    with redis_server() as url:
        os.environ[REDIS_VARIABLE] = url
        for _round in range(bench.sizes.rounds):
            for name in names:
                with _Setup(name, bench.core) as setup:
                    for measure, figure in setup.figures(bench.sizes, many):
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


class _Setup:
    """A publisher, a server, and clients."""

    def __init__(self, contestant: str, core: int | None) -> None:
        self._stack = ExitStack()
        self._server = self._stack.enter_context(Server(contestant, core))
        self._publisher = self._stack.enter_context(Publisher(contestant, None))
        self._channels = (f"channel-{contestant.partition(' ')[0]}-{number}" for number in count())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def figures(self, sizes: Sizes, many: int) -> Iterator[tuple[str, float]]:
        """Return all figures of a round."""
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
        self._publisher.ask(f"{channel} 0 1")
        found: list[float] = []
        tails: dict[int, bytes] = {}  # an event may come in two parts
        request = Request(f"/channel?name={channel}", PLAIN)
        with closing(Streams(self._server.port, request)) as streams:
            self._open(streams, readers)
            before = self._server.ask("cpu")
            self._publisher.send(f"{channel} {events} {per_second}")
            until = time.monotonic() + events / per_second + _TIMEOUT_SECONDS
            while len(found) < events * readers:
                for stream, data, now in streams.receive(0.05):
                    *events_sent, tails[id(stream)] = _split(tails.get(id(stream), b"") + data)
                    found += [now - float(sent) for sent in events_sent]
                if time.monotonic() > until:
                    received = f"{len(found)} of {events * readers} events"
                    raise BenchmarkError(f"{self._server.contestant} has sent {received}")
            self._publisher.answer()
            return found, self._server.ask("cpu") - before

    def _open(self, streams: Streams, readers: int) -> None:
        """Open streams, and wait until pub/sub, which misses events otherwise, has subscribed."""
        received = b"".join(data for _, data, _ in streams.open(readers, _OPENED_PER_SECOND))

        def is_enough() -> bool:
            return self._server.contestant != PUBSUB or received.count(b": subscribed") >= readers

        for _turn in turns_for(0, is_enough, f"{PUBSUB} has not subscribed for all readers"):
            received += b"".join(data for _, data, _ in streams.receive(0.05))
        read(streams.receive(0.2))


def _split(data: bytes) -> list[bytes]:
    """Return the time at which each event was sent, and the bytes after the last one."""
    matches = list(_SENT.finditer(data))
    return [*(match[1] for match in matches), data[matches[-1].end() :] if matches else data]
