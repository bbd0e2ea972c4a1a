"""Suites with open streams: memory, heartbeats, and clients that do not read."""

import re
import resource
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from benchmarks.apps import AS_PLAIN, CONTESTANTS, OURS, RECORDED
from benchmarks.harness.bench import Bench, Table, cpu_of, percentiles
from benchmarks.harness.budgets import Budget
from benchmarks.load_generator import Received, Request, Streams, connect
from benchmarks.processes import HEARTBEAT_SECONDS, BenchmarkError, Server, turns_for

_OPENED_PER_SECOND = 1_000
_ROUNDS = 2
_SETTLING = 0.3  # seconds
_READERS = 50
FEWEST = 2  # events that have a percentile
_PACED_PER_SECOND = 20
SENT = re.compile(rb'"sent": ([0-9.]+)')
_QUIET_SHARE = 0.2  # of a core
_QUIET_CHECKS = 2  # as a busy machine may have left the server no more than this share
_OTHER_FILES = 100
_NOISE = 1.25  # of the few events per second in `frozen`
BUDGETS = (
    Budget("idle: memory", 1.12, "starlette"),
    Budget("idle: memory", 0.65, "sse-starlette"),
    Budget("idle: heartbeats", 0.5, "sse-starlette", contestants=(RECORDED,)),
    Budget("lateness: p99", 10, kind="figure", contestants=(RECORDED,)),
    Budget("lateness: max", 100, kind="figure", contestants=(RECORDED,)),
    Budget("lateness: max while they open", 100, kind="figure", contestants=(RECORDED,)),
    Budget("frozen: CPU per event", _NOISE, kind="figure", contestants=OURS),
    Budget("frozen: p50 of latency", _NOISE, kind="figure", contestants=OURS),
)


def run_idle(bench: Bench, _: str) -> list[Table]:
    """Measure the memory of a silent stream and the CPU time of its heartbeats."""
    number, note = _possible(bench.sizes.streams)
    memory = Table("idle: memory", "bytes per stream", note)
    cpu = Table("idle: heartbeats", "µs of CPU per heartbeat", note)
    seconds = bench.sizes.seconds / _ROUNDS
    interval = min(1.0, seconds / 2)
    for name in bench.turns(min(bench.sizes.rounds, _ROUNDS)):
        with Server(name, bench.core, interval) as server:
            with _idle_streams(server) as streams:
                read(streams.open(20, _OPENED_PER_SECOND))  # to warm up
            before = server.ask("memory")
            with _idle_streams(server) as streams:
                read(streams.open(number, _OPENED_PER_SECOND))
                read(streams.receive(_SETTLING))
                memory.add(name, (server.ask("memory") - before) / number)
                if CONTESTANTS[name].heartbeat:
                    cpu.add(name, _cost_of_heartbeat(server, streams, seconds, interval))
    return [memory, cpu]


def _cost_of_heartbeat(server: Server, streams: Streams, seconds: float, interval: float) -> float:
    read(streams.receive(_SETTLING))
    found: list[float] = []
    mark = CONTESTANTS[server.contestant].heartbeat
    cost = cpu_of(server, lambda: found.extend(_lateness(streams.receive(seconds), mark, interval)))
    return cost / max(len(found), 1)


def run_lateness(bench: Bench, _: str) -> list[Table]:
    """Measure by how much the time between two heartbeats exceeds the interval.

    The time in which the streams open has a separate table: the garbage collector then visits all
    of them again and again, which delays heartbeats.
    """
    number, note = _possible(bench.sizes.late_streams)
    interval = min(HEARTBEAT_SECONDS, bench.sizes.seconds / 2)
    note += f" A heartbeat each {interval:g} s."
    tables = [
        Table(f"lateness: {figure}", "ms over the interval", note)
        for figure in ("p50", "p99", "max", "max while they open")
    ]
    for name in bench.turns(1, among=("sse-starlette", RECORDED)):
        mark = CONTESTANTS[name].heartbeat
        with Server(name, bench.core, interval) as server, _idle_streams(server) as streams:
            if bench.sizes.freezes:
                server.ask("freeze")
            opening = list(_lateness(streams.open(number, _OPENED_PER_SECOND), mark, interval))
            found = list(_lateness(streams.receive(2 * bench.sizes.seconds), mark, interval))
        figures = (*percentiles(found), max(found), max(opening, default=0.0))
        for table, seconds in zip(tables, figures, strict=True):
            table.add(name, seconds * 1e3)
    return tables


@contextmanager
def _idle_streams(server: Server) -> Iterator[Streams]:
    request = Request("/idle", CONTESTANTS[server.contestant].headers)
    with closing(Streams(server.port, request)) as streams:
        yield streams


def read(received: Received) -> None:
    """Read everything and discard it."""
    deque(received, maxlen=0)


def _lateness(received: Received, mark: bytes, interval: float) -> Iterator[float]:
    """Return by how much the time before each heartbeat exceeds the interval."""
    for stream, data, now in received:
        if mark in data:
            yield now - stream.last_received - interval
            stream.last_received = now


def run_frozen(bench: Bench, _: str) -> list[Table]:
    """Measure the influence of clients that do not read on the other clients."""
    number = bench.sizes.frozen_streams
    note = f"{_READERS} clients read, {number:,} do not."
    ratios = [
        Table(f"frozen: {figure}", f"{figure} of the others, with : without", note)
        for figure in ("CPU per event", "p50 of latency", "p99 of latency")
    ]
    memory = Table("frozen: memory", "bytes per frozen client", note)
    seconds = bench.sizes.seconds / 3
    peers = ("starlette", "sse-starlette", RECORDED, AS_PLAIN)
    for name in bench.turns(min(bench.sizes.rounds, _ROUNDS), among=peers):
        with (
            Server(name, bench.core) as server,
            readers_of(server, _READERS, _PACED_PER_SECOND) as readers,
        ):
            without = _cost_and_latency(server, readers, seconds)
            before = server.ask("memory")
            with _frozen_clients(server, readers, number):
                memory.add(name, (server.ask("memory") - before) / number)
                with_them = _cost_and_latency(server, readers, seconds)
        for table, figure, other in zip(ratios, with_them, without, strict=True):
            table.add(name, figure / other)
    return [*ratios, memory]


@contextmanager
def readers_of(server: Server, number: int, per_second: int) -> Iterator[Streams]:
    """Open endless streams with a number of events per second."""
    path = f"/paced?per_second={per_second}"
    request = Request(path, CONTESTANTS[server.contestant].headers)
    with closing(Streams(server.port, request)) as streams:
        read(streams.open(number, _OPENED_PER_SECOND))
        yield streams


def _cost_and_latency(server: Server, readers: Streams, seconds: float) -> tuple[float, ...]:
    """Return the CPU time per event, and the median and 99th percentile of the latency."""
    read(readers.receive(_SETTLING))  # discards events that have waited to be read
    found: list[float] = []

    def note_latency() -> None:
        for _turn in turns_for(0, lambda: len(found) >= FEWEST, "the readers receive no events"):
            for _, data, now in readers.receive(seconds):
                found.extend(now - float(sent) for sent in SENT.findall(data))

    cost = cpu_of(server, note_latency)
    return (cost / len(found), *percentiles(found))


@contextmanager
def _frozen_clients(server: Server, readers: Streams, number: int) -> Iterator[None]:
    """Open endless streams, and wait until the server has stopped writing to them."""
    path = f"/stream?events={10**9}&burst=10&length=10"
    request = Request(path, CONTESTANTS[server.contestant].headers).encoded()
    with ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(closing(connect(server.port, narrow=True)))
            connection.sendall(request)
        deadline = time.monotonic() + 20
        quiet = 0
        while quiet < _QUIET_CHECKS:
            if time.monotonic() > deadline:
                raise BenchmarkError("the server still writes to clients that do not read")
            cost = cpu_of(server, lambda: read(readers.receive(_SETTLING)))
            quiet = quiet + 1 if cost < _SETTLING * 1e6 * _QUIET_SHARE else 0
        yield


def _possible(streams: int) -> tuple[int, str]:
    """Return how many of `streams` the limit of open files allows, and a note about it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = streams + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    possible = min(streams, soft - _OTHER_FILES)
    few = "" if possible == streams else f", as {streams:,} exceed the limit of open files"
    return possible, f"{possible:,} streams{few}."
