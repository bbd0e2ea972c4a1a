"""Suites of what it costs to keep events, and of clients that come back for them."""

import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import cycle

from benchmarks.apps import EVENTSOURCE, RECORDED, UNRECORDED
from benchmarks.harness.bench import Bench, Table, percentiles
from benchmarks.load_generator import Load, Request, Streams, first_byte, stream_request
from benchmarks.processes import BenchmarkError, Server
from benchmarks.suites.open_streams import read, readers_of

FRESH = "fresh"
RESUMED = "resumed"
ONCE = {**EVENTSOURCE, "Connection": "close"}
NUMBERED = re.compile(rb"data: .*\nid: (?P<secret>\S+)-[0-9]+\n\n")
OURS = b"no-store"  # of answers that are, and of no app's

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
_BREATH = 0.005  # seconds


def run_recording(bench: Bench, _: str) -> list[Table]:
    """Measure events that are kept and events that are not, at the same time on the same core."""
    note = f"{WRITERS} streams of {WRITTEN_PER_SECOND} events a second."
    table = Table("recording", "µs of CPU per event", note)
    names = (RECORDED, UNRECORDED)
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
    return [table]


def costs(readers: Mapping[Server, Streams], seconds: float) -> dict[Server, float]:
    """Return what an event costs each server, in microseconds."""
    for streams in readers.values():
        read(streams.listen(_TURN))  # what has come while the other opened is none of these
    before = {server: server.ask("cpu") for server in readers}
    events = dict.fromkeys(readers, 0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for server, streams in readers.items():
            events[server] += sum(data.count(_SENT) for _, data, _ in streams.listen(_TURN))
    return {
        server: (server.ask("cpu") - before[server]) / events[server] * 1e6 for server in readers
    }


def run_recorded_bytes(bench: Bench, _: str) -> list[Table]:
    """Measure by how much the server grows for each byte of the events of streams that ended."""
    number = max(bench.sizes.of(_ENDED), _CONNECTIONS)
    note = f"{number:,} streams of {_ENDED_EVENTS} events."
    table = Table("recorded-bytes", "bytes of resident memory per byte recorded", note)
    for _round in range(bench.sizes.rounds):
        with Server(RECORDED, bench.core) as server:
            table.add(RECORDED, _growth(server, number))
    return [table]


def _growth(server: Server, number: int) -> float:
    """Return it of streams that are all still kept, for the oldest one is."""
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
    """Measure the time to the first byte of a stream, and to that of what another has sent."""
    note = (
        f"{_RUNNING} streams of {_RUNNING_PER_SECOND} events a second run. "
        "Who comes back to one is sent all but its first event."
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
                read(readers.listen(_BREATH))
                found.setdefault(name, []).append(seconds[name]() * 1e3)
            for name, figures in found.items():
                for table, figure in zip(tables, percentiles(figures), strict=True):
                    table.add(name, figure)
    return tables


def _openings(server: Server, readers: Streams) -> dict[str, Callable[[], float]]:
    """Return what opens a stream, and what comes back to one after the other of those that run."""
    fresh = stream_request(ONCE, _FRESH_EVENTS, burst=1)
    heard = b"".join(data for _, data, _ in readers.listen(2 / _RUNNING_PER_SECOND))
    secrets = cycle(sorted({match["secret"] for match in NUMBERED.finditer(heard)}))
    path = f"/paced?per_second={_RUNNING_PER_SECOND}"
    return {
        FRESH: lambda: first_byte(server.port, fresh)[0],
        RESUMED: lambda: _seconds_to_rest(server, path, next(secrets), ends=False),
    }


def _seconds_to_rest(server: Server, path: str, secret: bytes, *, ends: bool = True) -> float:
    """Come back to a stream behind its first event, and return the seconds to the first byte."""
    headers = {**ONCE, "Last-Event-ID": f"{secret.decode()}-1"}
    seconds, seen = first_byte(server.port, Request(path, headers), ends=ends)
    if OURS not in seen:
        raise BenchmarkError(f"{path} was not resumed")
    return seconds
