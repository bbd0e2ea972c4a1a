"""Processes that run the tests side by side give their servers different ports."""

import os
import socket
import subprocess
import sys

import pytest

from tests.support.ports import free_port, ports_of


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
def test_no_two_workers_have_a_port_in_common(workers: int) -> None:
    shares = [ports_of(worker, workers) for worker in range(workers)]
    assert len(set().union(*shares)) == sum(len(share) for share in shares) == 10_000
    assert min(len(share) for share in shares) >= 600


def test_a_worker_gives_only_ports_of_its_own() -> None:
    code = "from tests.support.ports import free_port; print(*(free_port() for _ in range(100)))"
    given = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTEST_XDIST_WORKER": f"gw{worker}", "PYTEST_XDIST_WORKER_COUNT": "2"},
            capture_output=True,
            check=True,
        ).stdout.split()
        for worker in range(2)
    ]
    for worker, ports in enumerate(given):
        assert len(set(ports)) == 100
        assert {int(port) for port in ports} <= set(ports_of(worker, 2))


def test_a_port_in_use_is_not_returned() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    with socket.create_server(("127.0.0.1", free_port())) as other:
        taken = other.getsockname()[1]
        assert taken not in {free_port() for _ in range(10_000 // workers + 1)}  # all, once


def test_a_port_is_reserved_until_its_server_listens() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)):
        socket.create_connection(("127.0.0.1", port)).close()
