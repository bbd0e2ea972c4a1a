"""A real cluster of three masters, with slots that can be moved, and optional replicas."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from redis.crc import key_slot

from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.waiting import HANG_SECONDS, wait_until

_MASTERS = 3
_SLOTS = 16384

REPLACES_NODES = pytest.mark.filterwarnings("ignore:Unclosed ClusterNode:ResourceWarning")
"""For tests in which slots or masters move: redis-py replaces its nodes then, and a command that
runs meanwhile can open a connection of a replaced node again, which redis-py leaves open."""


class RedisCluster:
    """Three masters.

    Args:
        directory: of their logs.
        arguments: of each node.
        program: instead of the one of the system.
        replicas: whether each master has a replica.
        certificate: of all nodes, with its key; they use TLS with it.

    Attributes:
        nodes: the masters at the beginning, and then the replicas.
        url: of the first node, for `RedisStore`.
        patient_url: the same, with a timeout that does not depend on the speed of the machine.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        program: str = "",
        replicas: bool = False,
        certificate: Path | None = None,
    ) -> None:
        self.nodes: list[RedisServer] = []
        # Without replicas there is no failover, and a busy node must not count as failed.
        timeout = "1000" if replicas else "15000"
        arguments += ("--cluster-enabled", "yes", "--cluster-node-timeout", timeout)
        if certificate is not None:
            for file in ("cert-file", "key-file", "ca-cert-file"):
                arguments += (f"--tls-{file}", str(certificate))
            arguments += ("--tls-auth-clients", "no", "--tls-cluster", "yes")
        tls_ports: list[int] = []
        for number in range(2 * _MASTERS if replicas else _MASTERS):
            place = directory / str(number)
            place.mkdir()
            tls_ports.append(free_port())
            tls = ("--tls-port", str(tls_ports[-1])) if certificate is not None else ()
            self.nodes.append(
                RedisServer(place, *arguments, *tls, program=program, port=free_port())
            )
        self._port = self.nodes[0].port if certificate is None else tls_ports[0]
        self.url = f"redis+cluster://127.0.0.1:{self._port}"
        if certificate is not None:
            self.url = f"rediss+cluster://127.0.0.1:{self._port}?ssl_ca_certs={certificate}"
        self.patient_url = f"{self.url}{'&' if '?' in self.url else '?'}socket_timeout=30"

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # ends all nodes if one does not start
            for number, node in enumerate(self.nodes):
                stack.enter_context(node)
                _ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number < _MASTERS:
                    slots = range(number * _SLOTS // _MASTERS, (number + 1) * _SLOTS // _MASTERS)
                    _ask(node, "CLUSTER", "ADDSLOTS", *slots)
                _ask(node, "CLUSTER", "MEET", "127.0.0.1", self._port)
            self.wait()
            for master, replica in zip(self.nodes, self.nodes[_MASTERS:], strict=False):
                _ask(replica, "CLUSTER", "REPLICATE", _ask(master, "CLUSTER", "MYID"))
                wait_for_replica_of(master)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Wait until each node knows all slots."""
        wanted = {b"cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}".encode()}

        def is_whole() -> bool:
            infos = (_ask(node, "CLUSTER", "INFO").splitlines() for node in self.nodes)
            return all(wanted <= set(lines) for lines in infos)

        wait_until(is_whole, "the cluster is not complete")

    def owner(self, key: str) -> RedisServer:
        """Return the node of a key."""
        slot = key_slot(key.encode())
        for first, last, (_, port, *_), *_ in _ask(self.nodes[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(key)

    def move(self, key: str) -> None:
        """Move the slot of a key, with all its keys, to another node."""
        with self.moving(key):
            pass

    @contextmanager
    def moving(self, key: str) -> Iterator[None]:
        """Move the slot of a key to another node; the move lasts until the block ends."""
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


def wait_for_replica_of(master: RedisServer) -> None:
    """Wait until a master replicates to its replica."""

    def is_online() -> bool:
        replica = master.client.info("replication").get("slave0") or {}
        return replica.get("state") == "online"

    wait_until(is_online, "the replica is not online")
    # It may still wait for a message of the replica, which sends one each second.
    master.client.flushall()  # a command to replicate
    assert master.client.wait(1, int(HANG_SECONDS * 1000 / 2)) == 1, "the replica lags"


def _ask(node: RedisServer, *words: str | bytes | int) -> Any:
    return node.client.execute_command(*words)  # type: ignore[no-untyped-call]
