"""A real cluster of three masters, whose slots can be moved."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis.crc import key_slot

from tests.e2e.servers import free_port
from tests.redis_server import RedisServer

_SLOTS = 16384
_HIGHEST_PORT = 65535
_TO_BUS = 10_000
_PATIENCE_SECONDS = 20.0


class RedisCluster:
    """Three masters without replicas.

    Args:
        directory: where they write what little they have to write.
        arguments: of each of them.
        program: another one than that of the machine.

    Attributes:
        nodes: the servers.
        url: for `RedisStore`, with the first node only.
    """

    def __init__(self, directory: Path, *arguments: str, program: str = "") -> None:
        self._stack = ExitStack()
        self.nodes: list[RedisServer] = []
        for number in range(3):
            place = directory / str(number)
            place.mkdir()
            settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
            self.nodes.append(
                RedisServer(place, *settings, *arguments, program=program, port=_free_port())
            )
        self.url = f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def __enter__(self) -> Self:
        for number, node in enumerate(self.nodes):
            self._stack.enter_context(node)
            _ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            slots = range(number * _SLOTS // 3, (number + 1) * _SLOTS // 3)
            _ask(node, "CLUSTER", "ADDSLOTS", *slots)
            _ask(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Wait until each node knows of all slots."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(self._is_whole(node) for node in self.nodes):
            assert time.monotonic() < deadline, "the cluster has not come together"
            time.sleep(0.02)

    def owner(self, key: str) -> RedisServer:
        """Return the node that has a key."""
        slot = key_slot(key.encode())
        for first, last, (_, port, *_), *_ in _ask(self.nodes[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(key)

    def move(self, key: str) -> None:
        """Move the slot of a key, and all that is in it, to another node."""
        with self.moving(key):
            pass

    @contextmanager
    def moving(self, key: str) -> Iterator[None]:
        """Move the slot of a key to another node, and be at it until the block ends."""
        source = self.owner(key)
        target = next(node for node in self.nodes if node is not source)
        slot = key_slot(key.encode())
        ids = {node.port: _ask(node, "CLUSTER", "MYID") for node in self.nodes}
        setslot = ("CLUSTER", "SETSLOT", slot)
        _ask(target, *setslot, "IMPORTING", ids[source.port])
        _ask(source, *setslot, "MIGRATING", ids[target.port])
        yield
        while keys := _ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            _ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in self.nodes:
            _ask(node, *setslot, "NODE", ids[target.port])

    def all_keys(self) -> list[str]:
        return sorted(key for node in self.nodes for key in node.all_keys())

    @staticmethod
    def _is_whole(node: RedisServer) -> bool:
        info = _ask(node, "CLUSTER", "INFO").splitlines()
        return {b"cluster_state:ok", b"cluster_known_nodes:3"} <= set(info)


def _free_port() -> int:
    """Return a port that leaves room for that of the cluster's bus, 10,000 above it."""
    while (port := free_port()) > _HIGHEST_PORT - _TO_BUS:
        pass
    return port


def _ask(node: RedisServer, *words: str | bytes | int) -> Any:
    return node.client.execute_command(*words)  # type: ignore[no-untyped-call]
