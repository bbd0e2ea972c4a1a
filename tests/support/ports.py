"""Different ports for all servers of the tests.

A port that the system chooses for port 0 is free at that moment. A server may need seconds until it
listens on it; another process could get the same port in this time. Here each process of a run has
ports of its own, and a port is reserved by a socket that does not listen: servers, which set
SO_REUSEADDR, can bind to it and listen, while another run finds it in use.
"""

import os
import secrets
import socket
import threading
from collections import deque
from collections.abc import Iterator
from itertools import cycle, islice

_ALL = range(12_000, 22_000)
"""Below those that systems give to clients and for port 0 (32,768 and up), and so are those that
lie 10,000 above, where a Redis of a cluster has its bus."""

_LOCK = threading.Lock()
_RESERVED = deque[socket.socket](maxlen=100)
"""Sockets of the last ports; more servers than that do not run at a time."""


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
    """Reserve a free port of 127.0.0.1 that this function has not returned for a long time."""
    with _LOCK:
        return next(filter(_reserve, islice(_ports, len(_ALL))))


def _reserve(port: int) -> bool:
    reservation = socket.socket()
    try:
        reservation.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if len(_RESERVED) == _RESERVED.maxlen:
        _RESERVED.popleft().close()
    _RESERVED.append(reservation)
    return True
