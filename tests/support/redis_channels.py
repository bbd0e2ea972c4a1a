"""Keys and queries of tests of channels in Redis."""

from typing import Any

import redis
from prometheus_client import REGISTRY

from sse_middleware.stores.redis.keys import Keys
from tests.support.redis_server import RedisServer

KEYS = Keys("sse:")


def ask(server: RedisServer, *words: Any) -> Any:
    return server.client.execute_command(*words)  # type: ignore[no-untyped-call]


def count(operation: str) -> float:
    value = REGISTRY.get_sample_value("sse_store_errors_total", {"operation": operation})
    return value or 0.0


def has_failed_since(failures: float) -> bool:
    return count("publish") > failures


def fill(server: RedisServer) -> None:
    """Let Redis refuse writes, as if its memory were full."""
    server.client.config_set("maxmemory", 1)
    try:
        while True:  # Redis may accept one more command
            server.client.set("filler", 1)
    except redis.ResponseError:
        return
