"""Connections of redis-py that observers count while they are open."""

import weakref
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from sse_middleware.observability.observer import Observer
from sse_middleware.stores.health import Health


def count_connections(client: object, observers: Sequence[Observer], name: str) -> None:
    """Have observers count the connections that a client will open.

    Those of a cluster are counted together: those to each node that is known now or later.

    Args:
        client: a client that has not connected.
        observers: are notified of each connection that opens or closes.
        name: the name under which they count.
    """
    if isinstance(client, Redis):
        pool = client.connection_pool
        pool.connection_class = _counted(pool.connection_class, observers, name)
    elif isinstance(client, RedisCluster):
        nodes = client.nodes_manager  # it creates the nodes, each with its own connections
        kind = _counted(client.connection_kwargs["connection_class"], observers, name)
        client.connection_kwargs["connection_class"] = kind
        nodes.connection_kwargs["connection_class"] = kind
        for node in nodes.startup_nodes.values():
            node.connection_class = kind


def _counted(kind: type[Any], observers: Sequence[Observer], name: str) -> type[Any]:
    members = {"_observers": observers, "_name": name, "_open": {}}
    return type(f"Counted{kind.__name__}", (_Counted, kind), members)


class _Counted:
    """Report a connection of `redis.asyncio` when it opens and when it closes."""

    _observers: Sequence[Observer]
    _name: str
    _open: "dict[weakref.ref[_Counted], Health]"
    """All connections of the client that are open."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._health = Health(self._observers, "connection", self._name)

    async def connect(self, *arguments: Any, **options: Any) -> None:
        await super().connect(*arguments, **options)  # type: ignore[misc]
        self._on_open()

    async def connect_check_health(self, *arguments: Any, **options: Any) -> None:
        # Newer versions of redis-py call this one for a cluster, and from `connect`.
        await super().connect_check_health(*arguments, **options)  # type: ignore[misc]
        self._on_open()

    def _on_open(self) -> None:
        self._drop_lost()
        self._health.set("open")
        self._open[weakref.ref(self)] = self._health

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().disconnect(*arguments, **options)  # type: ignore[misc]
        finally:
            self._health.set("")
            self._open.pop(weakref.ref(self), None)
            self._drop_lost()

    def _drop_lost(self) -> None:
        """Drop connections that redis-py has left open, as it does when a cluster changes.

        This is not done by a finalizer, which may run while its thread holds a lock of the metrics.
        """
        for reference in [one for one in self._open if one() is None]:
            self._open.pop(reference).set("")
