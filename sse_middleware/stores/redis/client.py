"""Clients to a Redis: one for an event loop and one for a thread, from a URL or a user's client.

Whatever cannot work is refused here, before anything is connected.
"""

import asyncio
import inspect
import math
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode as ThreadClusterNode
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry as ThreadRetry
from redis.sentinel import Sentinel
from redis.sentinel import SentinelConnectionPool as ThreadSentinelConnectionPool

from sse_middleware.errors import ConfigurationError

AnyRedis = Redis | RedisCluster

# uvloop raises a RuntimeError where a transport is closed.
FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError, RuntimeError)
PATIENCE_SECONDS: Final = 1.0
"""How long a reader waits for Redis to answer."""
ANSWER_SECONDS: Final = 3.0
"""How long a writer does, whom nobody waits for."""
_CONNECTIONS: Final = 8
_AT_ONCE: Final = 3
"""How many connections are in use at a time: one reads, one writes, one listens."""
_CLUSTER: Final = "+cluster"
_URL: Final = "a URL that redis-py takes, with +cluster behind the scheme of a cluster"
_OF_AN_ADDRESS: Final = ("host", "port", "db", "username", "password", "cred", "ssl", "unix")


def client_for(url: str) -> AnyRedis:
    """Return a client to the Redis at `url`, which connects when it is used.

    Args:
        url: as redis-py has them; that of a cluster may name several nodes, with commas between.

    Raises:
        ConfigurationError: there is no such URL.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": PATIENCE_SECONDS,
        "socket_timeout": None,  # who asks does not wait for ever: one timer, not one for an answer
        "retry": Retry(NoBackoff(), 0),  # and knows what to do
    }
    try:
        if is_of_cluster(url):
            first, others = _nodes_of(url)
            nodes = [ClusterNode(*other) for other in others]
            return checked(RedisCluster.from_url(first, startup_nodes=nodes, **options))
        options |= {"max_connections": _CONNECTIONS, "timeout": PATIENCE_SECONDS}
        return checked(Redis.from_pool(BlockingConnectionPool.from_url(url, **options)))
    except (ValueError, TypeError, AttributeError, RedisError, RedisClusterException) as exc:
        raise ConfigurationError("url", url.rpartition("@")[2], _URL) from exc


def checked(client: AnyRedis) -> AnyRedis:
    """Return a client that will do.

    Raises:
        TypeError: it is none of redis-py's for asyncio.
        ValueError: it has too few connections, or reads what is out of date.
    """
    if not isinstance(client, Redis | RedisCluster):
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        raise TypeError(f"client is a {kind}, allowed is a Redis or RedisCluster of redis.asyncio")
    if isinstance(client, RedisCluster):
        if client.read_from_replicas or getattr(client, "load_balancing_strategy", None):
            raise ValueError("client reads from replicas, allowed is one that asks the masters")
    elif client.connection_pool.max_connections < _AT_ONCE:
        number = client.connection_pool.max_connections
        raise ValueError(f"client has {number} connections at most, allowed are {_AT_ONCE} or more")
    return client


def patience_of(client: AnyRedis) -> float:
    """Return how many seconds a client waits for an answer before it gives up."""
    given = client if isinstance(client, RedisCluster) else client.connection_pool
    return float(given.connection_kwargs.get("socket_timeout") or math.inf)


def is_to_end() -> bool:
    """Tell whether the running task was cancelled, though the driver may have kept that to itself.

    A loop that does not ask goes on for ever when its event loop is to end.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def blocking_client(url: str, client: AnyRedis) -> Any:
    """Return a client for a thread, to the Redis at `url`, or else where `client` goes."""
    options: dict[str, Any] = {
        "socket_connect_timeout": PATIENCE_SECONDS,
        "socket_timeout": PATIENCE_SECONDS,
        "retry": ThreadRetry(NoBackoff(), 0),
    }
    if isinstance(client, RedisCluster):
        options["retry"] = ThreadRetry(NoBackoff(), 1)  # a failure lets it look where nodes are
    if is_of_cluster(url):
        first, others = _nodes_of(url)
        nodes = [ThreadClusterNode(*other) for other in others]  # type: ignore[no-untyped-call]
        return redis.RedisCluster.from_url(first, startup_nodes=nodes, **options)
    if url:
        return redis.Redis.from_url(url, **options)
    if isinstance(client, RedisCluster):
        options |= _address_in(client.connection_kwargs)
        known = list(client.nodes_manager.startup_nodes.values())
        nodes = [ThreadClusterNode(node.host, node.port) for node in known]  # type: ignore[no-untyped-call]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    pool = client.connection_pool
    options |= _address_in({**pool.connection_kwargs, "connection_class": pool.connection_class})
    if isinstance(pool, SentinelConnectionPool):
        sentinel = Sentinel(())  # type: ignore[no-untyped-call]
        sentinel.sentinels = [blocking_client("", one) for one in pool.sentinel_manager.sentinels]
        return sentinel.master_for(pool.service_name, **options)  # type: ignore[no-untyped-call]
    return redis.Redis(**options)


def close_blocking(client: Any) -> None:
    """Close a client of `blocking_client`, and the connections that redis-py leaves open then."""
    if isinstance(client, redis.RedisCluster):
        client.disconnect_connection_pools()  # type: ignore[no-untyped-call]
    elif isinstance(client.connection_pool, ThreadSentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            close_blocking(sentinel)
    client.close()


def is_of_cluster(url: str) -> bool:
    """Tell whether a URL is that of a cluster."""
    return urlsplit(url).scheme.endswith(_CLUSTER)


def first_node_of(url: str) -> str:
    """Return the URL of a node of the cluster at `url`."""
    return _nodes_of(url)[0]


def _nodes_of(url: str) -> tuple[str, list[tuple[str, int]]]:
    """Return the URL of the first node of a cluster, and the others' hosts and ports."""
    parts = urlsplit(url.replace(_CLUSTER, "", 1))
    login, at, hosts = parts.netloc.rpartition("@")
    first, *others = hosts.split(",")
    places = [urlsplit(f"//{other}") for other in others]
    nodes = [(place.hostname or "localhost", place.port or 6379) for place in places]
    return parts._replace(netloc=f"{login}{at}{first}").geturl(), nodes


def _address_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a client's options says where its Redis is, and how to get in."""
    known = inspect.signature(redis.Redis).parameters
    address = {
        name: value
        for name, value in {**given, "unix_socket_path": given.get("path")}.items()
        if value is not None and name in known and name.startswith(_OF_AN_ADDRESS)
    }
    if issubclass(given.get("connection_class", object), SSLConnection):
        address["ssl"] = True
    return address
