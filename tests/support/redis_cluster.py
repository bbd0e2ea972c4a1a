"""A real cluster of three masters, whose slots can be moved, and which may have replicas."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis.crc import key_slot

from tests.support.ports import free_port
from tests.support.redis_server import RedisServer

_MASTERS = 3
_SLOTS = 16384
_PATIENCE_SECONDS = 20.0


class RedisCluster:
    """Three masters.

    Args:
        directory: where they write what little they have to write.
        arguments: of each of them.
        program: another one than that of the machine.
        replicas: whether each has one.
        certificate: of all of them, with its key, for them to speak TLS.

    Attributes:
        nodes: the masters, as they are at the beginning, and then the replicas.
        url: for `RedisStore`, with the first node only.
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
        arguments += ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
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
        with ExitStack() as stack:  # which ends them all where one cannot begin
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
        """Wait until each node knows of all slots."""
        wanted = {b"cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}".encode()}

        def is_whole() -> bool:
            told = (_ask(node, "CLUSTER", "INFO").splitlines() for node in self.nodes)
            return all(wanted <= set(lines) for lines in told)

        wait_until(is_whole, "the cluster has not come together")

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


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait until something holds, and fail with the words `otherwise` where that takes too long."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def wait_for_replica_of(master: RedisServer) -> None:
    """Wait until a master streams what it gets to its replica."""

    def is_online() -> bool:
        replica = master.client.info("replication").get("slave0") or {}
        return replica.get("state") == "online"

    wait_until(is_online, "the replica has not found its master")
    # It may wait for a word of the replica's yet, which comes once a second.
    master.client.flushall()  # to have something to stream
    assert master.client.wait(1, int(_PATIENCE_SECONDS * 1000 / 2)) == 1, "it is not in step"


def _ask(node: RedisServer, *words: str | bytes | int) -> Any:
    return node.client.execute_command(*words)  # type: ignore[no-untyped-call]
