"""The store in Redis, which all workers share. Each log has two keys.

`LogWriter` writes the logs. A reader queries Redis if a message to its process announces that the
log has grown. The process has one inbox for all streams. A reader also queries once per second,
because messages may be lost.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from sse_middleware._once import OncePerLoop
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.base import (
    Batch,
    Log,
    LogInfo,
    LogListener,
    LogSnapshot,
    LogState,
    find_patiently,
)
from sse_middleware.stores.bounds import check_bounds
from sse_middleware.stores.redis.client import AnyRedis, checked, client_for, timeouts_for
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.entries import Pending
from sse_middleware.stores.redis.inbox import RedisSession
from sse_middleware.stores.redis.keys import Keys, digest
from sse_middleware.stores.redis.log import RedisLog

_POLL_SECONDS: Final = 1.0
"""How long a reader waits for a message before it queries Redis itself."""
_POLLS_PER_END_CHECK: Final = 4
"""After so many polls without an event, a reader checks whether the log has ended."""
_READ_BYTES: Final = 1 << 16
"""The approximate size of one read."""
_MIN_ENTRIES: Final = 8
_MAX_ENTRIES: Final = 512
_CONSEQUENCE: Final = (
    "Streams continue but cannot be resumed on other workers. Check SSE_REDIS_URL."
)


class RedisStore:
    """Keep events in Redis, for all workers that use the same Redis.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `redis+cluster://` or `redis+sentinel://`. Give
            this or `client`.
        client: a `Redis` or `RedisCluster` of `redis.asyncio`, for one event loop.
        prefix: of all Redis keys.
        max_events: the most events of a stream that are kept.
        max_bytes: the most bytes of a stream that are kept, in Redis, and here while Redis is
            out of reach.
        ttl: how long a log is kept after its end, in seconds.
        lease_seconds: within this time readers notice that a process has died.
        timeout: how long a reader waits for an answer of Redis, in seconds. The default is the
            `socket_timeout` in the URL, or 1. Writes have 3 seconds, or this time if it is longer.
        observers: are notified of failures.

    Raises:
        ConfigurationError: the URL is not allowed.
        TypeError: both or neither of `url` and `client` are given, or the client is of a wrong
            type.
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
        timeout: float | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        if bool(url) is (client is not None):
            given = "both" if url else "neither"
            raise TypeError(
                f"a RedisStore has {given} of url and client, allowed is one of them, such as "
                'RedisStore("redis://localhost")'
            )
        check_bounds({"max_events": max_events, "max_bytes": max_bytes, "ttl": ttl})
        checked(client or client_for(url))  # an error must not wait until the first request
        self._url = url
        self._client = client
        self._keys = Keys(prefix)
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._lease_seconds = lease_seconds
        self._timeouts = timeouts_for(url, timeout)
        self._observers = observers
        self._session = OncePerLoop(self._new_session)

    def create(self, info: LogInfo, producer: LogListener) -> Log:
        """Begin the log of a new stream."""
        session = self._session()
        log = RedisLog(session.writer, info, producer, Pending(self._max_events, self._max_bytes))
        session.add_log(log)
        return log

    async def find(self, stream_id: str) -> LogSnapshot | None:
        """Return the log of a stream, `None` if there is none, and none is being written."""
        session = self._session()
        return await find_patiently(session.find, stream_id, session.exists)

    async def find_named(self, name: str) -> LogSnapshot | None:
        """Return the latest log of a name, `None` if there is none."""
        return await self._session().find_named(digest(name))

    async def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        """Read a log after the event `after`, and continue as it grows, until it ends."""
        session = self._session()
        process = await session.producer_process(stream_id)
        if process is None:
            yield Batch(LogState.GONE, after, b"")
            return
        news = session.add_reader(stream_id, process)
        tail = _Tail(session, stream_id, process, news)
        try:
            while True:
                for batch in await tail.read(after):
                    yield batch
                    after = batch.last
                    if batch.state not in (LogState.RUNNING, LogState.TRUNCATED):
                        return
        finally:
            session.remove_reader(stream_id, news)

    async def cancel(self, stream_id: str) -> bool:
        """Ask the producer of a stream to end it; return `False` if there is no such log."""
        return await self._session().cancel(stream_id)

    async def claim(self, name: str, stream_id: str) -> str:
        """Claim a name for a stream that may open, and return the stream that has the claim."""
        return await self._session().claims.take(digest(name), stream_id)

    async def claimant(self, name: str) -> str | None:
        """Return the stream that has the claim to a name, `None` if none has."""
        return await self._session().claims.holder(digest(name))

    def release(self, name: str, stream_id: str) -> None:
        """Give up the claim of a stream to a name soon, if it has it."""
        self._session().claims.release(digest(name), stream_id)

    async def close(self) -> None:
        """Write all remaining events, and close connections, tasks and the lease."""
        session = self._session.take()
        if session is not None:
            await session.close()

    def _new_session(self) -> RedisSession:
        client = CommandClient(
            self._url,
            self._client,
            self._keys,
            self._observers,
            lease_seconds=self._lease_seconds,
            timeouts=self._timeouts,
            consequence=_CONSEQUENCE,
        )
        return RedisSession(client, self._ttl)


class _Tail:
    """One reader's view of a log: it reads when the log may have grown, and looks for the end."""

    def __init__(
        self, session: RedisSession, stream_id: str, process: str, news: asyncio.Event
    ) -> None:
        self._session = session
        self._stream_id = stream_id
        self._process = process
        self._news = news
        self._log = session.log(stream_id)
        self._count = _MIN_ENTRIES
        self._has_more = True
        self._polls = 0
        self._possible_ends: dict[LogState, float] = {}  # with the time of their first sight

    async def read(self, after: int) -> list[Batch]:
        """Return the batches after the event `after`; an empty list does not mean the end."""
        if not self._has_more:
            await self._wait()
        self._news.clear()
        log = self._log
        if log is not None:
            if log.is_gone:
                return [Batch(LogState.GONE, after, b"")]
            if (held := log.unwritten(after)) is not None:
                return self._take_held(held)
        writes = 0 if log is None else log.writes
        batches, self._has_more = await self._session.read(self._stream_id, after, self._count)
        if not batches and log is not None and log.writes == writes:
            held = log.unwritten(after, is_next=True)
            if held is not None:
                return self._take_held(held)
        if batches:
            self._possible_ends.clear()
            size = sum(len(batch.frames) for batch in batches)
            count = self._count * _READ_BYTES // (size + 1)
            self._count = min(_MAX_ENTRIES, max(_MIN_ENTRIES, count))
        elif self._polls % _POLLS_PER_END_CHECK == 0 or self._possible_ends:
            return await self._find_end(after)
        return batches

    def _take_held(self, held: list[Batch]) -> list[Batch]:
        """Return batches of this process' own log that Redis may not have."""
        self._has_more = bool(held)
        if not held:
            self._session.check_reader(self._stream_id)
        return held

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._news.wait()
            self._polls = 0
        except TimeoutError:
            self._polls += 1

    async def _find_end(self, after: int) -> list[Batch]:
        """Return the end, once it has stayed the same for long enough."""
        end, seconds = await self._session.find_end(self._stream_id, self._process, after)
        if end is None:
            self._possible_ends.clear()
            self._session.check_reader(self._stream_id)
            return []
        now = time.monotonic()
        since = self._possible_ends.setdefault(end.state, now)
        return [end] if now - since >= seconds else []
