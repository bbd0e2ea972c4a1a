"""Ports for the servers of the tests, of which no two get the same.

What a system gives for port 0 is free when it is asked. A server that is told of it listens up to
seconds later, and by then another process of the same run may have got it, too.
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
    """Return the ports of one of the processes that share a run; no other has any of them."""
    return _ALL[worker::workers]


def _own_ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = ports_of(worker, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    first = secrets.randbelow(len(ports))  # rarely where another run is
    return cycle([*ports[first:], *ports[:first]])


_ports = _own_ports()


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free, and that nobody has got from here for long."""
    with _LOCK:
        return next(filter(_is_free, islice(_ports, len(_ALL))))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
