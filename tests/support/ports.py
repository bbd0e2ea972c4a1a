"""Different ports for all servers of the tests.

A port that the system chooses for port 0 is free at that moment. A server may need seconds until it
listens on it; another process of the same run could get the same port in this time.
"""

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from itertools import cycle, islice

_ALL = range(12_000, 22_000)
"""Below those that systems give to clients and for port 0 (32,768 and up), and so are those that
lie 10,000 above, where a Redis of a cluster has its bus."""

_LOCK = threading.Lock()


def ports_of(worker: int, workers: int) -> range:
    """Return the ports of one of the processes of a run; no other process uses them."""
    return _ALL[worker::workers]


def _own_ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = ports_of(worker, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    first = secrets.randbelow(len(ports))  # rarely where another run is
    return cycle([*ports[first:], *ports[:first]])


_ports = _own_ports()


def free_port() -> int:
    """Return a free port of 127.0.0.1 that this function has not returned for a long time."""
    with _LOCK:
        return next(filter(_is_free, islice(_ports, len(_ALL))))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
