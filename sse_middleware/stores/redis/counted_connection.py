"""Connections of redis-py that observers count while they are open."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from sse_middleware.observability.observer import Observer
from sse_middleware.stores.health import Health


def count_connections(client: object, observers: Sequence[Observer], name: str) -> None:
    """Have observers count the connections that a client will open.

    Those of a cluster, which has a pool for each node, are not counted.

    Args:
        client: a client that has not connected.
        observers: are notified of each connection that opens or closes.
        name: the name under which they count.
    """
    if isinstance(client, Redis):
        pool = client.connection_pool
        kind = pool.connection_class
        members = {"_observers": observers, "_name": name}
        pool.connection_class = type(f"Counted{kind.__name__}", (_Counted, kind), members)


class _Counted:
    """Report a connection of `redis.asyncio` when it opens and when it closes."""

    _observers: Sequence[Observer]
    _name: str

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._health = Health(self._observers, "connection", self._name)

    async def connect(self, *arguments: Any, **options: Any) -> None:
        await super().connect(*arguments, **options)  # type: ignore[misc]
        self._health.set("open")

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().disconnect(*arguments, **options)  # type: ignore[misc]
        finally:
            self._health.set("")
