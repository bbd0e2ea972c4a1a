"""The store that the settings select."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sse_middleware.errors import ConfigurationError, StoreError
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.base import EventStore
from sse_middleware.stores.memory import MemoryStore

logger = logging.getLogger("sse_middleware")

_NO_STREAM: Final = "0" * 32


def create_store(
    url: str, prefix: str, *, memory: int, observers: Sequence[Observer], **limits: Any
) -> EventStore:
    """Return a store in Redis if there is a URL, otherwise in the memory of this process.

    Args:
        url: `SSE_REDIS_URL`.
        prefix: of all keys in Redis.
        memory: the most bytes of a store in memory.
        observers: are notified of failures of Redis.
        limits: of each stream, as both stores take them.

    Raises:
        ConfigurationError: the URL is not allowed, or the extra `redis` is not installed.
    """
    if not url:
        return MemoryStore(max_total_bytes=memory, **limits)
    try:
        from sse_middleware.stores.redis.store import RedisStore  # noqa: PLC0415 - an extra
    except ImportError as exc:
        allowed = "nothing without the extra: pip install 'sse-middleware[redis]'"
        raise ConfigurationError("SSE_REDIS_URL", "a URL", allowed) from exc
    try:
        return RedisStore(url, prefix=prefix, observers=observers, **limits)
    except ConfigurationError as exc:
        raise ConfigurationError("SSE_REDIS_URL", exc.got, exc.allowed) from exc


@contextmanager
def asked_at_start(store: EventStore) -> Iterator[None]:
    """Ask a shared store for a stream: if it is out of reach, it reports that now.

    Otherwise an operator would learn it with the first stream. Nothing waits for the answer.
    """
    asking = asyncio.ensure_future(_ask(store)) if store.is_shared else None
    try:
        yield
    finally:
        if asking is not None:
            asking.cancel()


async def _ask(store: EventStore) -> None:
    try:
        await store.find(_NO_STREAM)
    except StoreError:  # the store has reported it
        pass
    except Exception:
        logger.exception("The store of the streams does not work.")
