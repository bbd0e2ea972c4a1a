"""The link of one process to Redis: its keys, its client, and the lease that says that it lives.

Whatever goes wrong between us and Redis comes out of here as a `StoreError`, at once where the last
attempt failed a moment ago.
"""

import asyncio
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sse_middleware.errors import StoreError
from sse_middleware.observers import Observer

logger = logging.getLogger("sse_middleware")

AnyRedis = Redis | RedisCluster

SCHEMA: Final = 1
"""Stands in each key, so that two versions of us can share a Redis during an upgrade."""
LEASE_SECONDS: Final = 20.0
_RENEWAL_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 1.0
"""How long a reader waits for Redis to answer."""
_PAUSE_SECONDS: Final = 0.5
"""How long nobody asks behind a failure."""
_CONNECTIONS: Final = 8
INBOX_LENGTH: Final = 10_000
CLUSTER: Final = "redis+cluster://"


class Keys:
    """The names of what we keep; all of one stream hash to one slot of a cluster.

    Args:
        prefix: what stands before all of them.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}{SCHEMA}:"

    def log(self, stream_id: str) -> str:
        """Return the key of the entries of a stream."""
        return f"{self._prefix}{{{stream_id}}}:log"

    def info(self, stream_id: str) -> str:
        """Return the key of what is known of it."""
        return f"{self._prefix}{{{stream_id}}}:info"

    def name(self, digest: str) -> str:
        """Return the key of the latest stream of a name."""
        return f"{self._prefix}name:{digest}"

    def lease(self, process: str) -> str:
        """Return the key that lives as long as a process."""
        return f"{self._prefix}{{{process}}}:lease"

    def inbox(self, process: str) -> str:
        """Return the key of what other processes have to say to it."""
        return f"{self._prefix}{{{process}}}:inbox"


def digest(name: str) -> str:
    """Return what stands for a name of the app's in a key."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


class Link:
    """The link of one event loop to Redis.

    Args:
        url: where it is, `""` where a client is given.
        client: the user's own client.
        keys: how keys are named.
        observers: who is told of failures.

    Attributes:
        process: a name for this process and loop, which nobody can guess.
    """

    def __init__(
        self, url: str, client: AnyRedis | None, keys: Keys, observers: Sequence[Observer]
    ) -> None:
        self.keys = keys
        self.process = secrets.token_hex(8)
        self.client: AnyRedis = _client_for(url) if client is None else client
        self._is_ours = client is None
        self._url = url
        self._observers = observers
        self._rests_until = 0.0
        self._lease: _Lease | None = None

    @asynccontextmanager
    async def attempt(self, operation: str) -> AsyncGenerator[Any, None]:
        """Ask Redis something, for as long as a reader waits.

        Raises:
            StoreError: it is out of reach, has refused, or was so a moment ago.
        """
        if time.monotonic() < self._rests_until:
            raise StoreError(f"{operation}: Redis did not answer a moment ago")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                yield self.client
        except (RedisError, OSError, TimeoutError) as exc:
            self.failed(operation)
            raise StoreError(f"{operation}: {type(exc).__name__}") from exc

    def failed(self, operation: str) -> None:
        """Take note that Redis did not do its work."""
        self._rests_until = time.monotonic() + _PAUSE_SECONDS
        for observer in self._observers:
            observer.store_failed(operation)

    def flushed(self, seconds: float) -> None:
        """Take note that events were written."""
        self._rests_until = 0.0
        for observer in self._observers:
            observer.store_flushed(seconds)

    def hold_lease(self) -> None:
        """Begin to say that this process lives."""
        if self._lease is None:
            self._lease = _Lease(_blocking_client(self._url, self.client), self.keys, self.process)

    async def close(self) -> None:
        """Let go of the lease and the connections."""
        if self._lease is not None:
            self._lease.stop()
            self._lease = None
        if self._is_ours:
            await self.client.aclose()


class _Lease:
    """Renew the lease in a thread of its own: a blocked event loop is not a dead one."""

    def __init__(self, client: Any, keys: Keys, process: str) -> None:
        self._client = client
        self._keys = keys
        self._process = process
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sse_middleware lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let it run out."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._renew()
                pause = _RENEWAL_SECONDS
            except (RedisError, OSError) as exc:
                logger.debug("the lease was not renewed: %s", type(exc).__name__)
                pause = PATIENCE_SECONDS
            self._stopped.wait(pause)
        self._client.close()

    def _renew(self) -> None:
        inbox = self._keys.inbox(self._process)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.lease(self._process), 1, px=int(LEASE_SECONDS * 1000))
            pipe.xadd(inbox, {"t": "hello"}, maxlen=INBOX_LENGTH, approximate=True)
            pipe.pexpire(inbox, int(3 * LEASE_SECONDS * 1000))
            pipe.execute()


def _client_for(url: str) -> AnyRedis:
    options: dict[str, Any] = {
        "socket_connect_timeout": PATIENCE_SECONDS,
        "socket_timeout": 3 * PATIENCE_SECONDS,
    }
    if url.startswith(CLUSTER):
        return RedisCluster.from_url("redis://" + url.removeprefix(CLUSTER), **options)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=PATIENCE_SECONDS,
        retry=Retry(NoBackoff(), 0),
        **options,
    )
    return Redis(connection_pool=pool)


def _blocking_client(url: str, client: AnyRedis) -> Any:
    """Return a client for a thread, to the same Redis."""
    options: dict[str, Any] = {"socket_connect_timeout": 1.0, "socket_timeout": 2.0}
    if url.startswith(CLUSTER):
        return redis.RedisCluster.from_url("redis://" + url.removeprefix(CLUSTER), **options)
    if url:
        return redis.Redis.from_url(url, **options)
    if isinstance(client, RedisCluster):
        node = client.get_default_node()
        return redis.RedisCluster(host=str(node.host), port=int(node.port), **options)
    given = client.connection_pool.connection_kwargs
    kept = ("host", "port", "db", "username", "password", "path", "ssl_ca_certs", "ssl_certfile")
    chosen = {name: given[name] for name in kept if given.get(name) is not None}
    if "path" in chosen:
        chosen["unix_socket_path"] = chosen.pop("path")
    return redis.Redis(**chosen, **options)
