"""Redis refuses writes for some time: its memory is full, or it lacks its master or a replica."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.redis_channels import ask, fill
from tests.support.redis_server import RedisServer

_NO_PORT = 1
"""A port at which nothing listens."""


@contextmanager
def full(server: RedisServer) -> Iterator[None]:
    """Let its memory be full."""
    fill(server)
    yield
    server.client.config_set("maxmemory", 0)


@contextmanager
def read_only(server: RedisServer) -> Iterator[None]:
    """Let it be a replica that has lost its master."""
    ask(server, "REPLICAOF", "127.0.0.1", _NO_PORT)
    yield
    ask(server, "REPLICAOF", "NO", "ONE")


@contextmanager
def without_replicas(server: RedisServer) -> Iterator[None]:
    """Let it have fewer replicas than it needs to accept writes."""
    server.client.config_set("min-replicas-to-write", 5)
    yield
    server.client.config_set("min-replicas-to-write", 0)
