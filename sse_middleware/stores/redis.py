"""The store in Redis, which all workers share: two keys for each log.

Writing is the writer's. A reader asks Redis when its process is told that there is more, by one
inbox for all streams, and once a second in case that it was not.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from sse_middleware.observers import Observer
from sse_middleware.stores.base import Batch, Found, Log, LogInfo, Producer, State
from sse_middleware.stores.entries import Kept, Pending
from sse_middleware.stores.redis_link import AnyRedis, Keys, Link, digest
from sse_middleware.stores.redis_station import Station
from sse_middleware.stores.redis_writer import RedisLog

_POLL_SECONDS: Final = 1.0
"""How long a reader waits for news before it looks itself."""


class RedisStore:
    """Keep events in Redis, for all workers that have the same one.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `redis+cluster://`; or
        client: a client of your own, of one event loop, made without `decode_responses`.
        prefix: what stands before all keys.
        max_events: how many of a stream are kept.
        max_bytes: how many bytes of a stream are kept, there and while Redis is out of reach.
        ttl: how long a log is kept behind its end, in seconds.
        observers: who is told of failures.
    """

    def __init__(
        self,
        url: str = "",
        *,
        client: AnyRedis | None = None,
        prefix: str = "sse:",
        max_events: int = 10_000,
        max_bytes: int = 4 << 20,
        ttl: float = 60.0,
        observers: Sequence[Observer] = (),
    ) -> None:
        if bool(url) is (client is not None):
            raise TypeError("a RedisStore takes a url or a client, and not both")
        self._url = url
        self._client = client
        self._keys = Keys(prefix)
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._observers = observers
        self._stations: WeakKeyDictionary[asyncio.AbstractEventLoop, Station] = WeakKeyDictionary()

    def create(self, info: LogInfo, producer: Producer) -> Log:
        """Begin the log of a new stream."""
        station = self._station()
        pending, kept = Pending(self._max_bytes), Kept(self._max_events, self._max_bytes)
        log = RedisLog(station.writer, info, producer, pending, kept)
        station.keep(log)
        return log

    async def find(self, stream_id: str) -> Found | None:
        """Return the log of a stream, `None` where there is none."""
        return await self._station().find(stream_id)

    async def find_named(self, name: str) -> Found | None:
        """Return the latest log of a name, `None` where there is none."""
        station = self._station()
        async with station.link.attempt("find") as client:
            stream_id = await client.get(self._keys.name(digest(name)))
        return None if stream_id is None else await station.find(stream_id.decode())

    async def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        """Read a log behind the event `after`, and go on as it grows, until it ends."""
        station = self._station()
        process = await station.producer_of(stream_id)
        if process is None:
            yield Batch(State.GONE, after, b"")
            return
        news = station.join(stream_id, process)
        try:
            while True:
                news.clear()
                waits = True
                for batch in await station.read(stream_id, after):
                    waits = False
                    yield batch
                    after = batch.last
                    if batch.state not in (State.RUNNING, State.TRUNCATED):
                        return
                if waits and not await _happens(news, _POLL_SECONDS):
                    end = await station.look_for_end(stream_id, process, after)
                    if end is not None:
                        yield end
                        return
        finally:
            station.leave(stream_id, process, news)

    async def cancel(self, stream_id: str) -> bool:
        """Tell the producer of a stream to end it; `False` where there is no such log."""
        station = self._station()
        process = await station.producer_of(stream_id)
        if process is None:
            return False
        await station.tell(process, "cancel", [stream_id])
        return True

    async def close(self) -> None:
        """Write what is to be written, and let go of connections, tasks and the lease."""
        station = self._stations.pop(asyncio.get_running_loop(), None)
        if station is not None:
            await station.close()

    def _station(self) -> "Station":
        loop = asyncio.get_running_loop()
        station = self._stations.get(loop)
        if station is None:
            link = Link(self._url, self._client, self._keys, self._observers)
            station = self._stations[loop] = Station(link, self._ttl)
        return station


async def _happens(news: asyncio.Event, within: float) -> bool:
    try:
        async with asyncio.timeout(within):
            await news.wait()
    except TimeoutError:
        return False
    return True
