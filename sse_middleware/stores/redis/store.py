"""The store in Redis, which all workers share: two keys for each log.

Writing is the writer's. A reader asks Redis when its process is told that there is more, by one
inbox for all streams, and once a second in case that it was not.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from sse_middleware._once import OncePerLoop
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.base import Batch, Log, LogInfo, LogListener, LogSnapshot, LogState
from sse_middleware.stores.redis.client import AnyRedis, checked, client_for
from sse_middleware.stores.redis.commands import CommandClient, Keys, digest
from sse_middleware.stores.redis.entries import Pending
from sse_middleware.stores.redis.inbox import RedisSession
from sse_middleware.stores.redis.log_writer import RedisLog

_POLL_SECONDS: Final = 1.0
"""How long a reader waits for news before it looks itself."""
_LOOK_EVERY: Final = 4
"""How many polls find nothing until one looks for the reason."""
_ON_ITS_WAY_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.15, 0.2)
"""The pauses in which one asks again for a log that there is not.

A client that is cut right behind its first event may come back sooner than Redis hears of it.
"""
_READ_BYTES: Final = 1 << 16
"""How much a reader is given at once, about."""
_ENTRIES: Final = 8
_MAX_ENTRIES: Final = 512


class RedisStore:
    """Keep events in Redis, for all workers that have the same one.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `redis+cluster://`; or
        client: a `Redis` or `RedisCluster` of `redis.asyncio`, of your own, in one event loop.
        prefix: what stands before all keys.
        max_events: how many of a stream are kept.
        max_bytes: how many bytes of a stream are kept, there and while Redis is out of reach.
        ttl: how long a log is kept behind its end, in seconds.
        lease_seconds: within which time readers hear of a process that has died.
        observers: who is told of failures.

    Raises:
        ConfigurationError: the URL is none.
        TypeError: the client is none.
        ValueError: the client reads from replicas, or has fewer than 3 connections.
    """

    is_shared = True

    def __init__(
        self,
        url: str = "",
        *,
        client: AnyRedis | None = None,
        prefix: str = "sse:",
        max_events: int = 10_000,
        max_bytes: int = 4 << 20,
        ttl: float = 60.0,
        lease_seconds: float = 20.0,
        observers: Sequence[Observer] = (),
    ) -> None:
        if bool(url) is (client is not None):
            raise TypeError("a RedisStore takes a url or a client, and not both")
        checked(client or client_for(url))  # so that it is refused here and not in a request
        self._url = url
        self._client = client
        self._keys = Keys(prefix)
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._lease_seconds = lease_seconds
        self._observers = observers
        self._station = OncePerLoop(self._new_station)

    def create(self, info: LogInfo, producer: LogListener) -> Log:
        """Begin the log of a new stream."""
        station = self._station()
        log = RedisLog(station.writer, info, producer, Pending(self._max_events, self._max_bytes))
        station.keep(log)
        return log

    async def find(self, stream_id: str) -> LogSnapshot | None:
        """Return the log of a stream, `None` where there is none, and none is on its way."""
        station = self._station()
        found = await station.find(stream_id)
        for pause in _ON_ITS_WAY_SECONDS:
            if found is not None:
                break
            await asyncio.sleep(pause)
            found = await station.find(stream_id)
        return found

    async def find_named(self, name: str) -> LogSnapshot | None:
        """Return the latest log of a name, `None` where there is none."""
        return await self._station().find_named(digest(name))

    async def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        """Read a log behind the event `after`, and go on as it grows, until it ends."""
        station = self._station()
        process = await station.producer_of(stream_id)
        if process is None:
            yield Batch(LogState.GONE, after, b"")
            return
        news = station.join(stream_id, process)
        tail = _Tail(station, stream_id, process, news)
        try:
            while True:
                for batch in await tail.read(after):
                    yield batch
                    after = batch.last
                    if batch.state not in (LogState.RUNNING, LogState.TRUNCATED):
                        return
        finally:
            station.leave(stream_id, news)

    async def cancel(self, stream_id: str) -> bool:
        """Tell the producer of a stream to end it; `False` where there is no such log."""
        return await self._station().cancel(stream_id)

    async def close(self) -> None:
        """Write what is to be written, and let go of connections, tasks and the lease."""
        station = self._station.take()
        if station is not None:
            await station.close()

    def _new_station(self) -> RedisSession:
        link = CommandClient(
            self._url, self._client, self._keys, self._observers, self._lease_seconds
        )
        return RedisSession(link, self._ttl)


class _Tail:
    """One reader's view of a log: reads when there may be more, and looks why nothing comes."""

    def __init__(
        self, station: RedisSession, stream_id: str, process: str, news: asyncio.Event
    ) -> None:
        self._station = station
        self._stream_id = stream_id
        self._process = process
        self._news = news
        self._log = station.log(stream_id)
        self._count = _ENTRIES
        self._is_behind = True
        self._polls = 0
        self._doubted: dict[LogState, float] = {}  # what the end may be, and since when

    async def read(self, after: int) -> list[Batch]:
        """Return what stands behind the event `after`, or nothing where nobody knows yet."""
        if not self._is_behind:
            await self._wait()
        self._news.clear()
        if self._log is not None and self._log.is_gone:
            return [Batch(LogState.GONE, after, b"")]
        batches, self._is_behind = await self._station.read(self._stream_id, after, self._count)
        if batches:
            self._doubted.clear()
            size = sum(len(batch.frames) for batch in batches)
            count = self._count * _READ_BYTES // (size + 1)
            self._count = min(_MAX_ENTRIES, max(_ENTRIES, count))
        elif self._polls % _LOOK_EVERY == 0 or self._doubted:
            return await self._look_for_end(after)
        return batches

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._news.wait()
            self._polls = 0
        except TimeoutError:
            self._polls += 1

    async def _look_for_end(self, after: int) -> list[Batch]:
        """Return the end, once it is beyond doubt."""
        end, patience = await self._station.look_for_end(self._stream_id, self._process, after)
        if end is None:
            self._doubted.clear()
            return []
        now = time.monotonic()
        since = self._doubted.setdefault(end.state, now)
        return [end] if now - since >= patience else []
