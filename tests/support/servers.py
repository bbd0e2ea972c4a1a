"""Real servers, each in a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port
from tests.support.waiting import HANG_SECONDS, wait_until

SERVERS = {
    "uvicorn-httptools": ("uvicorn", "--http", "httptools", "--port", "{port}"),
    "uvicorn-h11": ("uvicorn", "--http", "h11", "--port", "{port}"),
    "hypercorn": ("hypercorn", "--bind", "127.0.0.1:{port}"),
    "granian": ("granian", "--interface", "asgi", "--port", "{port}"),
}
"""The command line of each server, without the app."""
GUNICORNS = {
    "gunicorn-asgi": ("gunicorn", "--worker-class", "asgi", "--bind", "127.0.0.1:{port}"),
    "gunicorn-uvicorn": (
        *("gunicorn", "--worker-class", "uvicorn_worker.UvicornWorker"),
        *("--bind", "127.0.0.1:{port}"),
    ),
}
"""Those of gunicorn with its own ASGI worker, and with that of uvicorn."""

_INHERITED = dict(os.environ)  # once: pytest writes a variable while threads start servers
_TERMINATE_SECONDS = 10.0  # hypercorn needs about 5 s to end a stream


@dataclass(frozen=True)
class Server:
    """A server that accepts connections."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def log_text(self) -> str:
        return self.log.read_text()


@contextmanager
def serving(
    name: str,
    app: str,
    directory: Path,
    environ: dict[str, str] | None = None,
    *more: str,
    port: int | None = None,
) -> Iterator[Server]:
    """Serve `app` ("module:attribute") by the server `name` until the block ends."""
    port = free_port() if port is None else port
    module, *arguments = (part.format(port=port) for part in (SERVERS | GUNICORNS)[name])
    command = [sys.executable, "-m", module, *arguments, *more, app]
    with running_process(command, directory / f"{name}.log", environ) as (process, log):
        wait_until_listening(port, process, log)
        yield Server(f"http://127.0.0.1:{port}", port, process, log)


@contextmanager
def running_process(
    command: list[str], log: Path, environ: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `command` with its output in `log`; end it and its children after the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**_INHERITED, "PYTHONUNBUFFERED": "1", **(environ or {})},
            start_new_session=True,
        )
        try:
            yield process, log
        finally:
            # The signal is not for its children: a worker of hypercorn that dies while it holds the
            # lock of an event that it shares with its parent would block its parent for ever.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_TERMINATE_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(HANG_SECONDS)


def wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a process accepts connections on a port."""

    def is_listening() -> bool:
        assert process.poll() is None, f"the server has ended:\n{log.read_text()}"
        try:
            socket.create_connection(("127.0.0.1", port), HANG_SECONDS).close()
        except OSError:
            return False
        return True

    wait_until(is_listening, lambda: f"no server listens on {port}:\n{log.read_text()}")


def until_logged(log: Path, pattern: str) -> str:
    """Wait until a line of a log matches `pattern`, and return the match."""
    wait_until(
        lambda: _search(log, pattern) is not None,
        lambda: f"{pattern} was not logged:\n{log.read_text()}",
    )
    return str(_search(log, pattern))


def _search(log: Path, pattern: str) -> str | None:
    found = re.search(pattern, log.read_text())
    return None if found is None else found[0]
