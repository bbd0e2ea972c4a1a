"""Suites about the cost of keeping events in Redis and of reading them on another worker."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import redis

from benchmarks.apps import CONTESTANTS, EVENTSOURCE, RECORDED, UNRECORDED
from benchmarks.harness.bench import Bench, Table, cpu_of, percentiles, undisturbed
from benchmarks.harness.budgets import Budget
from benchmarks.load_generator import Request, Streams, first_byte, stream_request
from benchmarks.processes import (
    TIMEOUT_SECONDS,
    BenchmarkError,
    Server,
    redis_server,
    turns_for,
)
from benchmarks.suites.open_streams import FEWEST, SENT, read, readers_of
from benchmarks.suites.resuming import (
    NUMBERED,
    ONCE,
    OWN_RESPONSE,
    WRITERS,
    WRITTEN_PER_SECOND,
    costs,
)

IN_REDIS = "eventsource in Redis"
REDIS = "Redis itself"
BARE = "bare"
HERE = "its own worker"
ELSEWHERE = "another worker"
_REPLAYED = 1_000
_REPLAYS = 60
_FOLLOWED = 50
_FOLLOWED_PER_SECOND = 20
_POLL_SECONDS = 0.0002
_LENGTH = 4  # bytes of an event's length
BUDGETS = (
    Budget("redis-recording", 1.5, UNRECORDED, contestants=(IN_REDIS,)),
    Budget("redis-replay", 1.0, BARE, contestants=(IN_REDIS,)),
    Budget("redis-latency: p50", 10, kind="figure", contestants=(ELSEWHERE,)),
)


@contextmanager
def _redis() -> Iterator[tuple[str, redis.Redis]]:
    """Run a Redis; yield its URL and a client."""
    with redis_server() as url, redis.Redis.from_url(url) as client:
        yield url, client


def run_redis_recording(bench: Bench, _: str) -> list[Table]:
    """Measure events that are kept in Redis and other events, at the same time."""
    note = f"{WRITERS} streams of {WRITTEN_PER_SECOND} events a second."
    cpu = Table("redis-recording", "µs of CPU per event", note)
    memory = Table("redis-recording: memory", "bytes of Redis", note)
    for _round in range(bench.sizes.rounds):
        with (
            _redis() as (url, client),
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
    """Return the memory of Redis for a stream without its events, and for an event."""
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
    """Measure the replay of a thousand events of another worker; a bare app sends as many."""
    note = f"{_REPLAYED - 1:,} events in one response, each on a new connection."
    table = Table("redis-replay", "µs of CPU per event", note)
    with (
        _redis() as (url, client),
        Server(RECORDED, bench.core, redis_url=url) as writer,
        Server(RECORDED, bench.core, redis_url=url) as reader,
        Server(BARE, bench.core) as bare,
    ):
        written = replace(stream_request(EVENTSOURCE, _REPLAYED, burst=1), headers=ONCE)
        plain = stream_request({**CONTESTANTS[BARE].headers, "Connection": "close"}, _REPLAYED, 1)
        for _round in range(bench.sizes.rounds):
            secret = NUMBERED.findall(first_byte(writer.port, written)[1])[0]
            _wait_until_ended(client)
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


def _wait_until_ended(client: redis.Redis) -> None:
    """Wait until Redis has the end of each log."""
    until = time.monotonic() + TIMEOUT_SECONDS
    logs = list(client.scan_iter(match="*:log", count=1000))
    newest: Any = client.xrevrange
    while not all(b"s" in newest(log, count=1)[0][1] for log in logs):
        if time.monotonic() > until:
            raise BenchmarkError("Redis did not receive the end of a log")
        time.sleep(0.01)


def _check(answer: bytes) -> None:
    if OWN_RESPONSE not in answer or len(NUMBERED.findall(answer)) != _REPLAYED - 1:
        raise BenchmarkError("the replay is not complete")


def run_redis_latency(bench: Bench, _: str) -> list[Table]:
    """Measure the latency of an event from its own worker and from another one."""
    note = f"{_FOLLOWED} streams of {_FOLLOWED_PER_SECOND} events a second, each read on both."
    tables = [Table(f"redis-latency: {name}", "ms since sent", note) for name in ("p50", "p99")]
    for _round in range(min(bench.sizes.rounds, 3)):
        with (
            _redis() as (url, _client),
            Server(RECORDED, bench.core, redis_url=url) as writer,
            Server(RECORDED, bench.core, redis_url=url) as reader,
            readers_of(writer, _FOLLOWED, _FOLLOWED_PER_SECOND) as here,
        ):
            received = b"".join(data for _, data, _ in here.receive(3 / _FOLLOWED_PER_SECOND))
            path = f"/paced?per_second={_FOLLOWED_PER_SECOND}"
            with closing(Streams(reader.port, Request(path, EVENTSOURCE))) as there:
                for secret in sorted(set(NUMBERED.findall(received))):
                    there.add(_resumed(path, secret).encoded())
                read(there.receive(1))
                read(here.receive(0.1))
                _add_latencies(tables, {HERE: here, ELSEWHERE: there}, bench.sizes.seconds)
    return tables


def _add_latencies(tables: list[Table], readers: dict[str, Streams], seconds: float) -> None:
    found: dict[str, list[float]] = {name: [] for name in readers}

    def is_enough() -> bool:
        return min(map(len, found.values())) >= FEWEST

    for _turn in turns_for(seconds, is_enough, "the readers receive no events"):
        for name, streams in readers.items():
            for _, data, now in streams.receive(_POLL_SECONDS):
                found[name] += [(now - float(sent)) * 1e3 for sent in SENT.findall(data)]
    for name, figures in found.items():
        for table, figure in zip(tables, percentiles(figures), strict=True):
            table.add(name, figure)


def _resumed(path: str, secret: bytes) -> Request:
    return Request(path, {**ONCE, "Last-Event-ID": f"{secret.decode()}-1"})
