"""The rate at which a client may open streams, counted by the `limits` library.

Redis counts for all workers. Without Redis, or while it is out of reach, each process counts alone.
"""

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

from limits import parse
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from sse_middleware._once import OncePerLoop
from sse_middleware.errors import StoreError
from sse_middleware.stores.base import seal_identity
from sse_middleware.stores.circuit_breaker import CircuitBreaker

_OLDEST_REDIS: Final = (5, 2)
_MISSED: Final = "missed:"
"""Prefix of the keys that count the unknown ids of clients."""


class Shared(NamedTuple):
    """The counters of all processes, in one event loop.

    Attributes:
        storage: of the `limits` library.
        load_secret: returns the secret of all processes, with which clients are keyed.
        close: closes its connections.
    """

    storage: Storage
    load_secret: Callable[[], Awaitable[bytes]]
    close: Callable[[], Awaitable[object]]


def supports_installed_redis() -> bool:
    """Return whether `limits` accepts the installed redis-py, instead of raising an error."""
    import redis  # noqa: PLC0415 - an extra

    return tuple(int(part) for part in redis.__version__.split(".")[:2]) >= _OLDEST_REDIS


def shared_by_redis(url: str, prefix: str, on_client: Callable[[object], None]) -> Shared:
    """Return the counters in Redis, with a client of their own; it needs both extras.

    Args:
        url: of Redis.
        prefix: of all Redis keys.
        on_client: gets the client before it connects.
    """
    from limits.aio.storage import RedisClusterStorage, RedisStorage  # noqa: PLC0415

    from sse_middleware.stores.redis.client import (  # noqa: PLC0415
        client_for,
        close_client,
        is_of_cluster,
        send_all,
    )
    from sse_middleware.stores.redis.keys import Keys  # noqa: PLC0415
    from sse_middleware.stores.redis.shared_secret import SharedSecret  # noqa: PLC0415

    keys = Keys(prefix)
    options: dict[str, Any] = {"key_prefix": keys.rate_prefix(), "implementation": "redispy"}
    client: Any
    if is_of_cluster(url):
        cluster: Any = RedisClusterStorage(f"async+{url}", **options)
        storage, client = cluster, cluster.bridge.storage
    else:
        client = client_for(url)
        options["connection_pool"] = client.connection_pool
        storage = RedisStorage("async+redis://", **options)
    on_client(client)
    secret = SharedSecret(keys.secret(), partial(send_all, client))
    return Shared(storage, secret.load, partial(close_client, client))


class OpenRate:
    """Count openings.

    Args:
        rate: the allowed number and its period, such as `30/minute`.
        share: returns the counters of all processes, `None` if each process counts alone.
        breaker: sends the requests to these counters.
    """

    def __init__(
        self, rate: str, share: Callable[[], Shared] | None, breaker: CircuitBreaker | None
    ) -> None:
        self._item = parse(rate)
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = None if share is None else OncePerLoop(share)
        self._breaker = breaker

    async def seconds_left(self, client: str) -> int:
        """Return the seconds until a client may open a stream, 0 for now; count no opening."""
        return await self._call(lambda limiter, key: limiter.test(self._item, key), client)

    async def count(self, client: str) -> int:
        """Count an opening and return 0, or return the seconds until one is allowed."""
        return await self._call(lambda limiter, key: limiter.hit(self._item, key), client)

    async def seconds_until_lookup(self, client: str) -> int:
        """Return the seconds until an id of a client may be looked up, 0 for now.

        The ids that no stream has are counted in this process alone.
        """
        key = _MISSED + client
        if await self._local.test(self._item, key):
            return 0
        return await self._seconds_left(self._local, key)

    async def count_miss(self, client: str) -> None:
        """Count an id that no stream has."""
        await self._local.hit(self._item, _MISSED + client)

    async def _seconds_left(self, limiter: SlidingWindowCounterRateLimiter, key: str) -> int:
        stats = await limiter.get_window_stats(self._item, key)
        remaining = math.ceil(stats.reset_time - time.time())
        return min(max(1, remaining), self._item.get_expiry())

    async def _call(
        self, is_allowed: Callable[[SlidingWindowCounterRateLimiter, str], Any], client: str
    ) -> int:
        async def seconds(limiter: SlidingWindowCounterRateLimiter, key: str) -> int:
            return 0 if await is_allowed(limiter, key) else await self._seconds_left(limiter, key)

        if self._shared is not None and self._breaker is not None:
            shared = self._shared()

            async def shared_seconds() -> int:
                limiter = SlidingWindowCounterRateLimiter(shared.storage)
                key = seal_identity(client, await shared.load_secret())
                try:
                    return await seconds(limiter, key)
                except (ValueError, TypeError) as exc:
                    raise RuntimeError("a counter has an unknown format") from exc

            try:
                return await self._breaker.call(shared_seconds)
            except StoreError:
                pass  # the breaker has reported it
        return await seconds(self._local, client)

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        shared = None if self._shared is None else self._shared.take()
        if shared is not None:
            await shared.close()
