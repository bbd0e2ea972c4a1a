"""Suites of what it costs to keep events in Redis, and to read them back on another worker."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import redis

from benchmarks.apps import CONTESTANTS, EVENTSOURCE, RECORDED, UNRECORDED
from benchmarks.harness.bench import Bench, Table, cpu_of, percentiles, undisturbed
from benchmarks.load_generator import Request, Streams, first_byte, stream_request
from benchmarks.processes import PATIENCE, BenchmarkError, Server
from benchmarks.suites.open_streams import SENT, read, readers_of
from benchmarks.suites.resuming import NUMBERED, ONCE, OURS, WRITERS, WRITTEN_PER_SECOND, costs

IN_REDIS = "eventsource in Redis"
REDIS = "Redis itself"
BARE = "bare"
HERE = "its own worker"
ELSEWHERE = "another worker"
_REPLAYED = 1_000
_REPLAYS = 60
_FOLLOWED = 50
_FOLLOWED_PER_SECOND = 20
_GLANCE = 0.0002  # seconds
_LENGTH = 4  # bytes that tell how long an event is


@contextmanager
def redis_server() -> Iterator[tuple[str, redis.Redis]]:
    """Run a Redis of our own that keeps nothing on disk; give its URL and a client."""
    program = shutil.which("redis-server")
    if program is None:
        raise BenchmarkError("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        process = subprocess.Popen([*command, "--dir", directory], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                _wait_for(client)
                yield f"redis://127.0.0.1:{port}", client
        finally:
            process.kill()
            process.wait(PATIENCE)


def _wait_for(client: redis.Redis) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            client.ping()
        except redis.RedisError as exc:
            if time.monotonic() > until:
                raise BenchmarkError("redis-server does not answer") from exc
            time.sleep(0.01)
        else:
            return


def run_redis_recording(bench: Bench, _: str) -> list[Table]:
    """Measure events that are kept in Redis and events that are not, at the same time."""
    note = f"{WRITERS} streams of {WRITTEN_PER_SECOND} events a second."
    cpu = Table("redis-recording", "µs of CPU per event", note)
    memory = Table("redis-recording: memory", "bytes of Redis", note)
    for _round in range(bench.sizes.rounds):
        with (
            redis_server() as (url, client),
            Server(RECORDED, bench.core, redis_url=url) as ours,
            Server(UNRECORDED, bench.core) as other,
            readers_of(ours, WRITERS, WRITTEN_PER_SECOND) as kept,
            readers_of(other, WRITERS, WRITTEN_PER_SECOND) as not_kept,
        ):
            before, started = _redis_cpu(client), time.monotonic()
            found = costs({ours: kept, other: not_kept}, bench.sizes.seconds)
            events = (time.monotonic() - started) * WRITERS * WRITTEN_PER_SECOND
            cpu.add(IN_REDIS, found[ours])
            cpu.add(UNRECORDED, found[other])
            cpu.add(REDIS, (_redis_cpu(client) - before) / events * 1e6)
            for name, figure in _memory(client).items():
                memory.add(name, figure)
    return [cpu, memory]


def _redis_cpu(client: redis.Redis) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def _memory(client: redis.Redis) -> dict[str, float]:
    """Return what Redis needs for a stream without its events, and for each event."""
    events = streams = of_events = of_streams = 0
    for key in client.scan_iter(match="*:info", count=1000):
        streams += 1
        of_streams += client.memory_usage(key, samples=0) or 0
    for key in client.scan_iter(match="*:log", count=1000):
        of_events += client.memory_usage(key, samples=0) or 0
        entries: Any = client.xrange(key)
        events += sum(len(fields.get(b"l", b"")) // _LENGTH for _, fields in entries)
    return {"a stream": of_streams / max(streams, 1), "an event": of_events / max(events, 1)}


def run_redis_replay(bench: Bench, _: str) -> list[Table]:
    """Measure a thousand events that another worker has recorded, and a bare app's."""
    note = f"{_REPLAYED - 1:,} events in one answer, on a connection of its own."
    table = Table("redis-replay", "µs of CPU per event", note)
    with (
        redis_server() as (url, client),
        Server(RECORDED, bench.core, redis_url=url) as writer,
        Server(RECORDED, bench.core, redis_url=url) as reader,
        Server(BARE, bench.core) as bare,
    ):
        written = replace(stream_request(EVENTSOURCE, _REPLAYED, burst=1), headers=ONCE)
        plain = stream_request({**CONTESTANTS[BARE].headers, "Connection": "close"}, _REPLAYED, 1)
        for _round in range(bench.sizes.rounds):
            secret = NUMBERED.findall(first_byte(writer.port, written)[1])[0]
            _wait_until_kept(client)
            resumed = _resumed(written.path, secret)
            _check(first_byte(reader.port, resumed)[1])
            figures: dict[str, list[float]] = {}
            for _pass in range(bench.sizes.of(_REPLAYS)):
                for name, server, request in ((IN_REDIS, reader, resumed), (BARE, bare, plain)):
                    cost = cpu_of(server, partial(first_byte, server.port, request))
                    figures.setdefault(name, []).append(cost / (_REPLAYED - 1))
            for name, found in figures.items():
                table.add(name, undisturbed(found))
    return [table]


def _wait_until_kept(client: redis.Redis) -> None:
    """Wait until each log has its end."""
    until = time.monotonic() + PATIENCE
    logs = list(client.scan_iter(match="*:log", count=1000))
    newest: Any = client.xrevrange
    while not all(b"s" in newest(log, count=1)[0][1] for log in logs):
        if time.monotonic() > until:
            raise BenchmarkError("an end was not kept")
        time.sleep(0.01)


def _check(answer: bytes) -> None:
    if OURS not in answer or len(NUMBERED.findall(answer)) != _REPLAYED - 1:
        raise BenchmarkError("not all was replayed")


def run_redis_latency(bench: Bench, _: str) -> list[Table]:
    """Measure how much later than sent an event is read, from its own worker and another one."""
    note = f"{_FOLLOWED} streams of {_FOLLOWED_PER_SECOND} events a second, each read on both."
    tables = [Table(f"redis-latency: {name}", "ms since sent", note) for name in ("p50", "p99")]
    for _round in range(min(bench.sizes.rounds, 3)):
        with (
            redis_server() as (url, _client),
            Server(RECORDED, bench.core, redis_url=url) as writer,
            Server(RECORDED, bench.core, redis_url=url) as reader,
            readers_of(writer, _FOLLOWED, _FOLLOWED_PER_SECOND) as here,
        ):
            heard = b"".join(data for _, data, _ in here.listen(3 / _FOLLOWED_PER_SECOND))
            path = f"/paced?per_second={_FOLLOWED_PER_SECOND}"
            with closing(Streams(reader.port, Request(path, EVENTSOURCE))) as there:
                for secret in sorted(set(NUMBERED.findall(heard))):
                    there.add(_resumed(path, secret).encoded())
                read(there.listen(1))
                read(here.listen(0.1))
                _add_latencies(tables, {HERE: here, ELSEWHERE: there}, bench.sizes.seconds)
    return tables


def _add_latencies(tables: list[Table], readers: dict[str, Streams], seconds: float) -> None:
    found: dict[str, list[float]] = {name: [] for name in readers}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, streams in readers.items():
            for _, data, now in streams.listen(_GLANCE):
                found[name] += [(now - float(sent)) * 1e3 for sent in SENT.findall(data)]
    for name, figures in found.items():
        for table, figure in zip(tables, percentiles(figures), strict=True):
            table.add(name, figure)


def _resumed(path: str, secret: bytes) -> Request:
    return Request(path, {**ONCE, "Last-Event-ID": f"{secret.decode()}-1"})
