"""Suites about streams at the pace of a model, the cost of keeping events, and resuming."""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import cycle

from benchmarks.apps import (
    AS_PLAIN,
    EVENTSOURCE,
    KEPT_PLAIN,
    RECORDED,
    UNMARKED,
    UNRECORDED,
)
from benchmarks.harness.bench import Bench, Table, percentiles
from benchmarks.harness.budgets import Budget
from benchmarks.load_generator import Load, Request, Streams, first_byte, stream_request
from benchmarks.processes import BenchmarkError, Server, turns_for
from benchmarks.suites.open_streams import read, readers_of

FRESH = "fresh"
RESUMED = "resumed"
ONCE = {**EVENTSOURCE, "Connection": "close"}
NUMBERED = re.compile(rb"data: .*\nid: (?P<secret>\S+)-[0-9]+\n\n")
OWN_RESPONSE = b"no-store"
"""A header value that the middleware sends in its own responses; the apps do not."""

WRITERS = 100
WRITTEN_PER_SECOND = 50
_TURN = 0.05  # seconds
_SENT = b'"sent"'

_ENDED = 1_000
_ENDED_EVENTS = 200
_CONNECTIONS = 16
_WARMING = 100

_RUNNING = 200
_RUNNING_PER_SECOND = 10
_FRESH_EVENTS = 20
_OPENINGS = 400
_PAUSE = 0.005  # seconds

BUDGETS = (
    Budget("paced", 1.05, "starlette", contestants=(UNMARKED,)),
    Budget("paced", 1.2, "starlette", contestants=(AS_PLAIN, KEPT_PLAIN)),
    Budget("paced", 1.3, "starlette", contestants=(UNRECORDED, RECORDED)),
    Budget("recording", 1.1, UNRECORDED, contestants=(RECORDED,)),
    Budget("recording of plain", 1.1, AS_PLAIN, contestants=(KEPT_PLAIN,)),
    Budget("recorded-bytes", 2, kind="figure", contestants=(RECORDED,)),
    Budget("resume: p99", 10, FRESH, "difference", contestants=(RESUMED,)),
)


def run_paced(bench: Bench, _: str) -> list[Table]:
    """Measure events that arrive one by one, as those of a model: the usual case."""
    note = f"{WRITERS} streams of {WRITTEN_PER_SECOND} events a second."
    table = Table("paced", "µs of CPU per event", note)
    for name in bench.turns(bench.sizes.rounds):
        with (
            Server(name, bench.core) as server,
            readers_of(server, WRITERS, WRITTEN_PER_SECOND) as streams,
        ):
            table.add(name, costs({server: streams}, bench.sizes.seconds / 4)[server])
    return [table]


def run_recording(bench: Bench, _: str) -> list[Table]:
    """Measure kept events and other events, at the same time on the same core."""
    return [
        _recording(bench, "recording", (RECORDED, UNRECORDED)),
        _recording(bench, "recording of plain", (KEPT_PLAIN, AS_PLAIN)),
    ]


def _recording(bench: Bench, name: str, names: tuple[str, str]) -> Table:
    note = f"{WRITERS} streams of {WRITTEN_PER_SECOND} events a second."
    table = Table(name, "µs of CPU per event", note)
    for _round in range(bench.sizes.rounds):
        pair = Bench(bench.sizes, names, bench.core)
        names = names[::-1]
        with ExitStack() as stack:
            stack.callback(pair.close)
            readers = {
                server: stack.enter_context(readers_of(server, WRITERS, WRITTEN_PER_SECOND))
                for server in pair.servers().values()
            }
            for server, cost in costs(readers, bench.sizes.seconds).items():
                table.add(server.contestant, cost)
    return table


def costs(readers: Mapping[Server, Streams], seconds: float) -> dict[Server, float]:
    """Return the microseconds of CPU that an event costs each server."""
    for streams in readers.values():
        read(streams.receive(_TURN))  # discards the events of the time in which the others opened
    before = {server: server.ask("cpu") for server in readers}
    events = dict.fromkeys(readers, 0)
    for _turn in turns_for(seconds, lambda: all(events.values()), "a server sends no events"):
        for server, streams in readers.items():
            events[server] += sum(data.count(_SENT) for _, data, _ in streams.receive(_TURN))
    return {
        server: (server.ask("cpu") - before[server]) / events[server] * 1e6 for server in readers
    }


def run_recorded_bytes(bench: Bench, _: str) -> list[Table]:
    """Measure the memory that the server needs for each byte that it keeps of ended streams."""
    number = max(bench.sizes.of(_ENDED), _CONNECTIONS)
    note = f"{number:,} streams of {_ENDED_EVENTS} events."
    table = Table("recorded-bytes", "bytes of resident memory per byte recorded", note)
    for _round in range(bench.sizes.rounds):
        with Server(RECORDED, bench.core) as server:
            table.add(RECORDED, _growth(server, number))
    return [table]


def _growth(server: Server, number: int) -> float:
    """Return the memory per byte; check with the oldest stream that all are still kept."""
    request = stream_request(EVENTSOURCE, _ENDED_EVENTS, burst=1)
    oldest = first_byte(server.port, replace(request, headers=ONCE))[1]
    frames = list(NUMBERED.finditer(oldest))
    with closing(Load(server.port, request, _CONNECTIONS)) as load:
        load.fetch(_WARMING)
        before = server.ask("memory")
        load.fetch(number)
        grown = server.ask("memory") - before
    _seconds_to_rest(server, request.path, frames[0]["secret"])
    return grown / (number * sum(len(frame[0]) for frame in frames))


def run_resume(bench: Bench, _: str) -> list[Table]:
    """Measure the time to the first byte of new streams and of resumed ones."""
    note = (
        f"{_RUNNING} streams of {_RUNNING_PER_SECOND} events a second run. "
        "A client that resumes one receives all events but the first."
    )
    tables = [
        Table(f"resume: {figure}", "ms to the body's first byte", note) for figure in ("p50", "p99")
    ]
    pair = Bench(bench.sizes, (FRESH, RESUMED), bench.core)
    with (
        Server(RECORDED, bench.core) as server,
        readers_of(server, _RUNNING, _RUNNING_PER_SECOND) as readers,
    ):
        seconds = _openings(server, readers)
        for _round in range(bench.sizes.rounds):
            found: dict[str, list[float]] = {}
            for name in pair.turns(bench.sizes.of(_OPENINGS)):
                read(readers.receive(_PAUSE))
                found.setdefault(name, []).append(seconds[name]() * 1e3)
            for name, figures in found.items():
                for table, figure in zip(tables, percentiles(figures), strict=True):
                    table.add(name, figure)
    return tables


def _openings(server: Server, readers: Streams) -> dict[str, Callable[[], float]]:
    """Return two functions: one opens a stream, the other resumes the running streams in turn."""
    fresh = stream_request(ONCE, _FRESH_EVENTS, burst=1)
    received = b"".join(data for _, data, _ in readers.receive(2 / _RUNNING_PER_SECOND))
    secrets = cycle(sorted({match["secret"] for match in NUMBERED.finditer(received)}))
    path = f"/paced?per_second={_RUNNING_PER_SECOND}"
    return {
        FRESH: lambda: first_byte(server.port, fresh)[0],
        RESUMED: lambda: _seconds_to_rest(server, path, next(secrets), ends=False),
    }


def _seconds_to_rest(server: Server, path: str, secret: bytes, *, ends: bool = True) -> float:
    """Resume a stream after its first event, and return the seconds to the first byte."""
    headers = {**ONCE, "Last-Event-ID": f"{secret.decode()}-1"}
    seconds, seen = first_byte(server.port, Request(path, headers), ends=ends)
    if OWN_RESPONSE not in seen:
        raise BenchmarkError(f"{path} was not resumed")
    return seconds
