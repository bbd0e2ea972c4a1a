"""Event storage in Redis."""

from sse_middleware.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
