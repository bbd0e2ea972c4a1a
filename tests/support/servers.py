"""Real servers in processes of their own."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port

SERVERS = {
    "uvicorn-httptools": ("uvicorn", "--http", "httptools", "--port", "{port}"),
    "uvicorn-h11": ("uvicorn", "--http", "h11", "--port", "{port}"),
    "hypercorn": ("hypercorn", "--bind", "127.0.0.1:{port}"),
    "granian": ("granian", "--interface", "asgi", "--port", "{port}"),
}
"""Each server's command line without the app."""

_INHERITED = dict(os.environ)  # once: pytest writes a variable while threads start servers
_PATIENCE_SECONDS = 10.0  # hypercorn takes some five to let a stream go


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def log_text(self) -> str:
        return self.log.read_text()


@contextmanager
def serving(
    name: str, app: str, directory: Path, environ: dict[str, str] | None = None, *more: str
) -> Iterator[Server]:
    """Run `app` ("module:attribute") by the server `name`, with `more` options, in the block."""
    port = free_port()
    module, *arguments = (part.format(port=port) for part in SERVERS[name])
    command = [sys.executable, "-m", module, *arguments, *more, app]
    with running_process(command, directory / f"{name}.log", environ) as (process, log):
        wait_until_listening(port, process, log)
        yield Server(f"http://127.0.0.1:{port}", port, process, log)


@contextmanager
def running_process(
    command: list[str], log: Path, environ: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `command` with its output in `log`, and end it and its children behind the block."""
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
            # Not its children as well: a worker of hypercorn's that dies while it holds the lock of
            # an event that it shares with its parent would leave that waiting for ever.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_PATIENCE_SECONDS)


def wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    message = f"the server did not listen on {port}:\n{log.read_text()}"
    raise RuntimeError(message)


def until_logged(log: Path, pattern: str) -> str:
    """Return what of a log matches `pattern`, once something does."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (found := re.search(pattern, log.read_text())) is not None:
            return found[0]
        time.sleep(0.05)
    message = f"{pattern} was to be logged:\n{log.read_text()}"
    raise RuntimeError(message)
