"""The rate at which a client may open streams, counted by the `limits` library.

In the memory of the process, or in Redis for all workers; in memory too while that is out of reach.
"""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from limits import parse
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from sse_middleware._once import OncePerLoop
from sse_middleware.errors import StoreError
from sse_middleware.stores.circuit_breaker import CircuitBreaker

_OLDEST_REDIS: Final = (5, 2)


class Shared(NamedTuple):
    """What counts for all processes, in one event loop.

    Attributes:
        storage: the library's.
        close: lets go of its connections.
    """

    storage: Storage
    close: Callable[[], Awaitable[object]]


def supports_installed_redis() -> bool:
    """Return whether `limits` accepts the installed redis-py, instead of raising an error."""
    import redis  # noqa: PLC0415 - an extra

    return tuple(int(part) for part in redis.__version__.split(".")[:2]) >= _OLDEST_REDIS


def shared_by_redis(url: str, prefix: str) -> Shared:
    """Return what counts in Redis, with a client of its own; both extras are needed."""
    from limits.aio.storage import RedisClusterStorage, RedisStorage  # noqa: PLC0415

    from sse_middleware.stores.redis.client import client_for, is_of_cluster  # noqa: PLC0415
    from sse_middleware.stores.redis.commands import SCHEMA  # noqa: PLC0415

    options: dict[str, Any] = {
        "key_prefix": f"{prefix}{SCHEMA}:rate",
        "implementation": "redispy",
    }
    if is_of_cluster(url):
        cluster: Any = RedisClusterStorage(f"async+{url}", **options)
        return Shared(cluster, cluster.bridge.storage.aclose)
    client: Any = client_for(url)
    pool = client.connection_pool
    storage = RedisStorage("async+redis://", connection_pool=pool, **options)
    return Shared(storage, client.aclose)


class OpenRate:
    """Count openings.

    Args:
        rate: how many in which time, such as `30/minute`.
        share: makes what counts for all processes; `None` where nothing does.
        patience: asks that.
    """

    def __init__(
        self, rate: str, share: Callable[[], Shared] | None, patience: CircuitBreaker | None
    ) -> None:
        self._item = parse(rate)
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = None if share is None else OncePerLoop(share)
        self._patience = patience

    async def seconds_left(self, client: str) -> int:
        """Return how long a client has to wait, 0 where it may open a stream; none is counted."""
        return await self._answer(lambda limiter: limiter.test(self._item, client), client)

    async def count(self, client: str) -> int:
        """Count an opening, and return 0; or count none and return how long it has to wait."""
        return await self._answer(lambda limiter: limiter.hit(self._item, client), client)

    async def _answer(self, ask: Callable[[SlidingWindowCounterRateLimiter], Any], who: str) -> int:
        async def answer(limiter: SlidingWindowCounterRateLimiter) -> int:
            if await ask(limiter):
                return 0
            stats = await limiter.get_window_stats(self._item, who)
            left = math.ceil(stats.reset_time - time.time())
            return min(max(1, left), self._item.get_expiry())

        if self._shared is not None and self._patience is not None:
            limiter = SlidingWindowCounterRateLimiter(self._shared().storage)
            try:
                return await self._patience.ask(lambda: answer(limiter))
            except StoreError:
                pass  # it is counted and told of
        return await answer(self._alone)

    async def close(self) -> None:
        """Let go of the connections of the running loop."""
        shared = None if self._shared is None else self._shared.take()
        if shared is not None:
            await shared.close()
