"""The suite that counts the commands that Redis receives for one resumable stream.

The other contestants are the two Python packages that make the streams of an app resumable with
Redis. Each stream has one reader, which is there from the start to the end: the usual case.
"""

import os
import time
from contextlib import ExitStack
from itertools import count
from typing import Any
from urllib.parse import urlencode

import redis

from benchmarks.apps import CONTESTANTS, REDIS_VARIABLE, RESUMABLE
from benchmarks.harness.bench import Bench, Table
from benchmarks.harness.budgets import Budget
from benchmarks.load_generator import Request, first_byte
from benchmarks.processes import BenchmarkError, Server, redis_server

_CHUNKS = 100
_PAUSE = 20  # milliseconds between two chunks
_SETTLING_SECONDS = 0.2  # after the response: its end is still to be written to Redis
_FIRST, _LAST = "before the stream", "after the stream"
_NAMES = count()
_OURS = RESUMABLE[:1]
BUDGETS = tuple(Budget("redis-commands", 0.1, rival, contestants=_OURS) for rival in RESUMABLE[1:])


def run_redis_commands(bench: Bench, _: str) -> list[Table]:
    """Count the commands of a stream, from its request to its end."""
    note = f"{_CHUNKS} chunks, one each {_PAUSE} ms, and one reader."
    table = Table("redis-commands", f"commands per {_CHUNKS} chunks", note)
    in_scripts: dict[str, float] = {}
    with redis_server() as url, redis.Redis.from_url(url) as client, ExitStack() as stack:
        os.environ[REDIS_VARIABLE] = url
        servers = [
            stack.enter_context(Server(name, bench.core, redis_url=url)) for name in RESUMABLE
        ]
        for server in servers:
            _read_stream(server, pause=0)  # connects to Redis, and loads the scripts
        for _round in range(bench.sizes.rounds):
            for server in servers:
                sent, run_by_scripts = _commands(client, server)
                table.add(server.contestant, sent)
                in_scripts[server.contestant] = run_by_scripts
    table.further["and commands of scripts"] = in_scripts
    return [table]


def _commands(client: Any, server: Server) -> tuple[int, int]:
    """Return how many commands the server sends for a stream, and how many its scripts run."""
    with client.monitor() as monitor:
        client.echo(_FIRST)
        _read_stream(server, pause=_PAUSE)
        time.sleep(_SETTLING_SECONDS)
        client.echo(_LAST)
        _until(monitor, _FIRST)
        commands = _until(monitor, _LAST)
    if not commands:
        raise BenchmarkError(f"the stream of {server.contestant} is not in Redis")
    by_scripts = sum(command["client_type"] == "lua" for command in commands)
    return len(commands) - by_scripts, by_scripts


def _until(monitor: Any, word: str) -> list[dict[str, Any]]:
    """Return the commands that the monitor has seen before `word`."""
    commands: list[dict[str, Any]] = []
    while word not in (command := monitor.next_command())["command"]:
        commands.append(command)
    return commands


def _read_stream(server: Server, pause: int) -> None:
    query = {"events": _CHUNKS, "burst": 1, "pause": pause, "name": f"name-{next(_NAMES)}"}
    headers = {**CONTESTANTS[server.contestant].headers, "Connection": "close"}
    request = Request(f"/stream?{urlencode(query)}", headers)
    _, answer = first_byte(server.port, request)
    received = answer.count(request.mark)
    if received != _CHUNKS:
        raise BenchmarkError(f"{server.contestant} has sent {received} of {_CHUNKS} chunks")
