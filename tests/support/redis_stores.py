"""Stores in Redis as several processes have them, and waits for their results."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sse_middleware.errors import StoreError
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.stores.redis import RedisStore
from sse_middleware.stores.redis.log import RedisLog
from sse_middleware.testing import FakeStream, Reader
from sse_middleware.testing.streams import eventually
from tests.support.redis_server import Proxy, RedisServer


@asynccontextmanager
async def stores(
    server: RedisServer | Proxy, count: int = 1, **options: Any
) -> AsyncGenerator[list[RedisStore]]:
    """Make stores as different processes have them; only a test of a timeout has a short one."""
    url = server.patient_url if isinstance(server, RedisServer) else server.url
    async with AsyncExitStack() as stack:
        made = [RedisStore(url, **options) for _ in range(count)]
        for store in made:
            stack.push_async_callback(store.close)
        yield made


async def visible(store: RedisStore, stream: FakeStream, **fields: object) -> None:
    """Wait until a store in another process finds a stream so."""

    async def ask() -> dict[str, object]:
        found = await store.find(stream.id)
        return {} if found is None else found._asdict()

    await eventually(
        ask, lambda got: bool(got) and fields.items() <= got.items(), f"it was to be {fields}"
    )


async def hidden(server: RedisServer, within: float = 20.0) -> None:
    """Wait until there is no key."""
    deadline = time.monotonic() + within
    while keys := server.all_keys():
        assert time.monotonic() < deadline, keys
        await asyncio.sleep(0.05)


async def whole(store: RedisStore, stream: FakeStream) -> Reader:
    """Read all of a stream as soon as Redis can be reached."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await Reader(store, stream.id).read_all()
        except StoreError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


class Counting:
    """An observer that counts what the store does."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.flushes = 0
        self.health = Counter[str]()

    async def until_failed(self, operation: str) -> None:
        async def failures() -> list[str]:
            return self.failures

        await eventually(failures, lambda found: operation in found, f"{operation} was to fail")

    def store_failed(self, operation: str) -> None:
        self.failures.append(operation)

    def health_changed(self, component: str, name: str, state: str, more: int) -> None:
        self.health[f"{component} {name} {state}"] += more

    def now(self) -> dict[str, int]:
        """Return the components in each state."""
        return {key: count for key, count in self.health.items() if count}

    def store_flushed(self, seconds: float) -> None:
        assert seconds >= 0
        self.flushes += 1

    def opened(self, record: StreamRecord) -> None: ...
    def progressed(self, record: StreamRecord) -> None: ...
    def stalled(self, record: StreamRecord, seconds: float) -> None: ...
    def ended(self, record: StreamRecord) -> None: ...
    def resumed(self, route: str, result: str, replayed: int) -> None: ...
    def lingering(self, more: int) -> None: ...
    def rejected(self, route: str, reason: str) -> None: ...
    def on_end_failed(self, route: str) -> None: ...


async def until_read_by(log: RedisLog, count: int) -> None:
    async def processes() -> int:
        return len(log.reader_processes)

    await eventually(processes, lambda got: got == count, f"{count} processes were to read it")
