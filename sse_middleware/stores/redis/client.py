"""Redis clients for one event loop or one thread, from a URL or from a user's client.

A URL or client that cannot work is rejected here, before it connects.
"""

import asyncio
import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.cluster import ClusterNode as ThreadClusterNode
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as ThreadRetry
from redis.sentinel import Sentinel
from redis.sentinel import SentinelConnectionPool as ThreadSentinelConnectionPool

from sse_middleware.errors import ConfigurationError, redact_url
from sse_middleware.stores.redis.refusals import is_of_replica, only_to_master
from sse_middleware.stores.redis.sentinels import (
    blocking_sentinels_client,
    close_sentinels,
    connection_to_master,
    is_of_sentinels,
    sentinels_client,
)

AnyRedis = Redis | RedisCluster

# uvloop raises a RuntimeError if a transport is closed.
FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError, RuntimeError)
READ_TIMEOUT_SECONDS: Final = 1.0
"""Bounds the time in which Redis must answer a client that waits; also bounds a connect."""
WRITE_TIMEOUT_SECONDS: Final = 3.0
"""Bounds the time in which Redis must take a write, which delays no client."""
_PORT: Final = 6379
_MAX_CONNECTIONS: Final = 8
_MIN_CONNECTIONS: Final = 3
"""The connections in use at the same time: one reads, one writes, one waits for messages."""
_CLUSTER: Final = "+cluster"
_URL: Final = (
    "a URL of redis-py; with +cluster after the scheme for a cluster, or with +sentinel, as in "
    "redis+sentinel://host:26379,host:26379/service/0"
)
_DATABASE: Final = "a URL whose path is the number of a database, such as redis://localhost:6379/0"
_OTHER_PATH: Final = re.compile(r"rediss?://[^/?]*/(?!\d*(?:\?|$))")
_ADDRESS_OPTIONS: Final = ("host", "port", "db", "username", "password", "cred", "ssl", "unix")


class Timeouts(NamedTuple):
    """The times in seconds within which Redis must answer.

    Attributes:
        read: a request of a client that waits.
        write: a write, which delays no client.
    """

    read: float
    write: float


def timeouts_for(url: str, timeout: float | None = None) -> Timeouts:
    """Return the timeouts of a client.

    Args:
        url: its `socket_timeout`, in seconds, replaces the default.
        timeout: replaces both.
    """
    given, *_ = parse_qs(urlsplit(url).query).get("socket_timeout", ["0"])  # as redis-py
    read = timeout or float(given) or READ_TIMEOUT_SECONDS
    return Timeouts(read, max(read, WRITE_TIMEOUT_SECONDS))


def client_for(url: str, timeout: float | None = None) -> AnyRedis:
    """Return a client of the Redis at `url`, which connects when it is used.

    Args:
        url: in the form of redis-py; that of a cluster or of Sentinels may name several hosts,
            with commas.
        timeout: the time in seconds for a connect, instead of the URL's.

    Raises:
        ConfigurationError: the URL is not allowed.
    """
    check_database(url)
    try:
        seconds = timeouts_for(url, timeout).read
        options: dict[str, Any] = {
            "socket_connect_timeout": seconds,
            "socket_timeout": None,  # callers have one timer for many answers
            "retry": Retry(NoBackoff(), 0),  # callers decide
        }
        if is_of_cluster(url):
            first, others = _nodes_of(url)
            nodes = [ClusterNode(*other) for other in others]
            return checked(RedisCluster.from_url(first, startup_nodes=nodes, **options))
        if is_of_sentinels(url):
            return checked(sentinels_client(url, options))
        options |= {"max_connections": _MAX_CONNECTIONS, "timeout": seconds}
        pool = BlockingConnectionPool.from_url(url, **options)
        pool.connection_class = only_to_master(pool.connection_class)
        return checked(Redis.from_pool(pool))
    except (ValueError, TypeError, AttributeError, RedisError, RedisClusterException):
        # Not `from exc`: the text of the cause may contain a part of the password.
        raise ConfigurationError("url", redact_url(url), _URL) from None


def check_database(url: str) -> None:
    """Check that the path of a URL is the number of a database; redis-py would use database 0.

    Raises:
        ConfigurationError: it is another text.
    """
    if _OTHER_PATH.match(url):
        raise ConfigurationError("url", redact_url(url), _DATABASE)


async def close_client(client: AnyRedis) -> None:
    """Close a client that `client_for` has returned."""
    await client.aclose()
    if isinstance(client, Redis):
        await close_sentinels(client)


def checked(client: AnyRedis) -> AnyRedis:
    """Return a client if it can be used.

    Raises:
        TypeError: it is not a client of `redis.asyncio`.
        ValueError: it has too few connections, or reads from replicas.
    """
    if not isinstance(client, Redis | RedisCluster):
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        raise TypeError(f"client is a {kind}, allowed is a Redis or RedisCluster of redis.asyncio")
    if isinstance(client, RedisCluster):
        if client.read_from_replicas or getattr(client, "load_balancing_strategy", None):
            raise ValueError("client reads from replicas, allowed is one that asks the masters")
    elif client.connection_pool.max_connections < _MIN_CONNECTIONS:
        number = client.connection_pool.max_connections
        raise ValueError(
            f"client has {number} connections at most, allowed are {_MIN_CONNECTIONS} or more"
        )
    return client


def socket_timeout_of(client: AnyRedis) -> float:
    """Return the time in seconds after which a client itself stops to wait for an answer."""
    given = client if isinstance(client, RedisCluster) else client.connection_pool
    return float(given.connection_kwargs.get("socket_timeout") or math.inf)


def address_of(client: AnyRedis) -> str:
    """Return the address of a client's Redis, without credentials."""
    if isinstance(client, RedisCluster):
        return ",".join(client.nodes_manager.startup_nodes)
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return f"sentinel's {pool.service_name}"
    options = pool.connection_kwargs
    address = f"{options.get('host', 'localhost')}:{options.get('port', _PORT)}"
    has_tls = issubclass(pool.connection_class, SSLConnection)
    return str(options.get("path") or (f"{address} (TLS)" if has_tls else address))


def describe_failure(address: str, exc: BaseException) -> str:
    """Return a sentence with a failure, its cause and its address, without any payload."""
    name, text = type(exc).__name__, str(exc).rstrip(".")
    if isinstance(exc, AuthenticationError):
        return f"Cannot log in to Redis at {address} ({name}: {text})."
    if isinstance(exc, NoPermissionError):
        return f"Redis at {address} refuses a command ({name}: {text})."
    if isinstance(exc, ResponseError) and text.endswith("DB index is out of range"):
        return f"Redis at {address} has no database of this number, the path of the URL ({text})."
    if isinstance(exc, ResponseError):  # its text may repeat arguments
        return f"Redis at {address} refuses a command ({name})."
    if isinstance(exc, TimeoutError | RedisTimeoutError):
        hint = ": is TLS off there, so that the URL begins with redis://?" * ("TLS" in address)
        return f"Redis at {address} does not answer ({name}{hint})."
    return f"Cannot reach Redis at {address} ({name}: {text})."


async def send_all(client: AnyRedis, commands: Iterable[Sequence[Any]]) -> list[Any]:
    """Send commands in one pipeline; an answer is an exception if Redis refuses the command.

    Raises:
        Exception: one of `FAILURES`; the outcome is unknown.
    """
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command, **{NEVER_DECODE: True})
    try:
        answers = list(await pipe.execute(raise_on_error=False))
    except AttributeError as exc:
        if not isinstance(client, RedisCluster):
            raise
        # redis-py closes the client of a cluster to look up its nodes.
        raise RedisClusterException("the nodes of the cluster are being looked up") from exc
    if any(map(is_of_replica, answers)) and isinstance(client, Redis):  # a user's own client
        await client.connection_pool.disconnect(inuse_connections=False)
    return answers


def is_cancelled() -> bool:
    """Return whether the running task was cancelled; redis-py may have suppressed the exception.

    A loop that does not check this continues while its event loop is closing.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def blocking_client(url: str, client: AnyRedis | None) -> Any:
    """Return a client for a thread, to the Redis at `url`, or to that of `client` without a URL."""
    options: dict[str, Any] = {
        "socket_connect_timeout": READ_TIMEOUT_SECONDS,  # a lease must not expire meanwhile
        "socket_timeout": READ_TIMEOUT_SECONDS,  # redis-py prefers that of the URL
        "retry": ThreadRetry(NoBackoff(), 0),
    }
    if isinstance(client, RedisCluster):
        options["retry"] = ThreadRetry(NoBackoff(), 1)  # after a failure it looks up the nodes
    if is_of_cluster(url):
        return _blocking_cluster(url, options)
    if is_of_sentinels(url):
        return blocking_sentinels_client(url, options)
    if url:
        return redis.Redis.from_url(url, **options)
    if isinstance(client, RedisCluster):
        options |= _address_in(client.connection_kwargs)
        known = list(client.nodes_manager.startup_nodes.values())
        nodes = [ThreadClusterNode(node.host, node.port) for node in known]  # type: ignore[no-untyped-call]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    assert client is not None
    pool = client.connection_pool
    options |= _address_in({**pool.connection_kwargs, "connection_class": pool.connection_class})
    if isinstance(pool, SentinelConnectionPool):
        sentinel = Sentinel(())  # type: ignore[no-untyped-call]
        sentinel.sentinels = [blocking_client("", one) for one in pool.sentinel_manager.sentinels]
        return sentinel.master_for(pool.service_name, **options)  # type: ignore[no-untyped-call]
    return redis.Redis(**options)


def blocking_connection(url: str, timeout: float) -> Any:
    """Return a connection for a thread, to the Redis at `url`, which connects when it is used.

    Args:
        url: not that of a cluster; Sentinels are asked now.
        timeout: the time in seconds within which Redis must accept it, and answer.

    Raises:
        redis.RedisError: no Sentinel names a master.
    """
    if is_of_sentinels(url):
        return connection_to_master(url, _exclusive_options(timeout))
    pool = redis.ConnectionPool.from_url(url)
    options = pool.connection_kwargs | _exclusive_options(timeout)
    if options.get("db"):
        options["db"] = str(options["db"])  # an int may crash hiredis: see `scripts.Argument`
    return pool.connection_class(**options)


def blocking_cluster(url: str, timeout: float) -> Any:
    """Return a client for a thread, to the cluster at `url`; it connects now.

    Args:
        url: that of a cluster.
        timeout: the time in seconds within which a node must accept a connection, and answer.

    Raises:
        Exception: one of `FAILURES`.
    """
    options = _exclusive_options(timeout)
    parts = urlsplit(url)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in options]
    return _blocking_cluster(parts._replace(query=urlencode(kept)).geturl(), options)


def close_blocking(client: Any) -> None:
    """Close a client or a connection of a thread, and those that redis-py itself leaves open."""
    if isinstance(client, redis.connection.AbstractConnection):
        client.disconnect()  # type: ignore[no-untyped-call]
        return
    if isinstance(client, redis.RedisCluster):
        client.disconnect_connection_pools()  # type: ignore[no-untyped-call]
    elif isinstance(client.connection_pool, ThreadSentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            close_blocking(sentinel)
    client.close()


def _exclusive_options(timeout: float) -> dict[str, Any]:
    """Return the options of a connection that one call uses at a time."""
    return {
        "socket_connect_timeout": min(timeout, READ_TIMEOUT_SECONDS),
        "socket_timeout": timeout,
        "retry": ThreadRetry(NoBackoff(), 0),
        "protocol": 2,  # has no messages that were not requested, and no int in its login
    }


def _blocking_cluster(url: str, options: Mapping[str, Any]) -> Any:
    first, others = _nodes_of(url)
    nodes = [ThreadClusterNode(*other) for other in others]  # type: ignore[no-untyped-call]
    return redis.RedisCluster.from_url(first, startup_nodes=nodes, **options)


def is_of_cluster(url: str) -> bool:
    """Return whether a URL is that of a cluster."""
    return urlsplit(url).scheme.endswith(_CLUSTER)


def first_node_of(url: str) -> str:
    """Return the URL of a node of the cluster at `url`."""
    return _nodes_of(url)[0]


def _nodes_of(url: str) -> tuple[str, list[tuple[str, int]]]:
    """Return the URL of the first node of a cluster, and the others' hosts and ports."""
    parts = urlsplit(url.replace(_CLUSTER, "", 1))
    login, at, hosts = parts.netloc.rpartition("@")
    first, *others = hosts.split(",")
    addresses = [urlsplit(f"//{other}") for other in others]
    nodes = [(address.hostname or "localhost", address.port or 6379) for address in addresses]
    return parts._replace(netloc=f"{login}{at}{first}").geturl(), nodes


def _address_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a client that contain its address and its credentials."""
    known = inspect.signature(redis.Redis).parameters
    address = {
        name: value
        for name, value in {**given, "unix_socket_path": given.get("path")}.items()
        if value is not None and name in known and name.startswith(_ADDRESS_OPTIONS)
    }
    if issubclass(given.get("connection_class", object), SSLConnection):
        address["ssl"] = True
    return address
