"""The master that Sentinels name: `redis+sentinel://login@host:port,host:port/service/db?options`.

The login and the options are those of redis-py for the master. Those of the Sentinels themselves
are `sentinel_username` and `sentinel_password`; TLS and its options are those of both.
"""

from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.connection import parse_url
from redis.sentinel import Sentinel as ThreadSentinel

_SCHEME: Final = "+sentinel"
_PORT: Final = 26379
_OWN: Final = "sentinel_"
"""Options with this prefix are those of the Sentinels, without it."""


class _Watched(NamedTuple):
    """What a URL says.

    Attributes:
        sentinels: their hosts and ports.
        service: the name under which they watch the master.
        sentinel_options: of the connections to them.
        options: of the connections to the master.
    """

    sentinels: list[tuple[str, int]]
    service: str
    sentinel_options: dict[str, Any]
    options: dict[str, Any]


def is_of_sentinels(url: str) -> bool:
    """Return whether a URL names Sentinels."""
    return urlsplit(url).scheme.endswith(_SCHEME)


def sentinels_client(url: str, options: dict[str, Any]) -> Redis:
    """Return a client of the master, which asks the Sentinels when it connects.

    Args:
        url: of the Sentinels.
        options: of all connections; they replace those of the URL.

    Raises:
        ValueError: the URL names no service, or is not valid.
    """
    watched = _watched(url, options)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        watched.sentinels, sentinel_kwargs=watched.sentinel_options
    )
    master: Redis = sentinel.master_for(watched.service, **watched.options)
    return master


async def close_sentinels(client: Redis) -> None:
    """Close the connections to the Sentinels of a client, if it has any; redis-py does not."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def blocking_sentinels_client(url: str, options: dict[str, Any]) -> Any:
    """Return the same for a thread; `close_blocking` closes it."""
    watched = _watched(url, options)
    return _blocking_sentinel(watched).master_for(watched.service, **watched.options)  # type: ignore[no-untyped-call]


def connection_to_master(url: str, options: dict[str, Any]) -> Any:
    """Ask the Sentinels, and return a connection for a thread, which connects when it is used.

    Raises:
        redis.RedisError: no Sentinel names a master.
    """
    watched = _watched(url, options)
    sentinel = _blocking_sentinel(watched)
    try:
        host, port = sentinel.discover_master(watched.service)  # type: ignore[no-untyped-call]
    finally:
        for client in sentinel.sentinels:
            client.close()
    of_master = dict(watched.options)
    kind = redis.SSLConnection if of_master.pop("ssl", False) else redis.Connection
    return kind(host=host, port=port, **of_master)


def _blocking_sentinel(watched: _Watched) -> ThreadSentinel:
    return ThreadSentinel(  # type: ignore[no-untyped-call]
        watched.sentinels, sentinel_kwargs=watched.sentinel_options
    )


def _watched(url: str, options: dict[str, Any]) -> _Watched:
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    addresses = [urlsplit(f"//{host}") for host in hosts.split(",")]
    service, _, database = parts.path.strip("/").partition("/")
    if not service or (database and not database.isdecimal()):
        raise ValueError(url)
    query = parse_qsl(parts.query)
    others = [(name, value) for name, value in query if not name.startswith(_OWN)]
    plain = parts._replace(
        scheme=parts.scheme.removesuffix(_SCHEME),
        netloc=f"{login}{at}localhost",
        path=f"/{database}",
        query=urlencode(others),
    )
    of_master = _options_in(plain.geturl()) | options
    seconds, retry = options["socket_connect_timeout"], options["retry"]
    tls = {name: value for name, value in of_master.items() if name.startswith("ssl")}
    own = {name.removeprefix(_OWN): value for name, value in query if name.startswith(_OWN)}
    return _Watched(
        [(address.hostname or "localhost", address.port or _PORT) for address in addresses],
        service,
        tls | own | {"socket_connect_timeout": seconds, "socket_timeout": seconds, "retry": retry},
        of_master,
    )


def _options_in(url: str) -> dict[str, Any]:
    """Return the options that redis-py reads in a URL, without its host."""
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    del options["host"]
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    return options
