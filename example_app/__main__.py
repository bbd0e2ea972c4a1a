"""Run the example: `python -m example_app [--host H] [--port N]`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import uvicorn

# Import names of the packages that `pip install 'sse-middleware[example]'` installs.
_EXAMPLE_MODULES: Final = frozenset(
    {"bm25s", "fastapi", "numpy", "pydantic", "sse_starlette", "starlette", "uvicorn"},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the example until Ctrl-C.

    Args:
        arguments: the command line; None reads the process's own.

    Returns:
        The exit status: 0 after Ctrl-C, 1 if the example could not start.

    """
    options = _parse(arguments)
    try:
        listener = _listen(options.host, options.port)
    except (OSError, OverflowError) as problem:
        return _fail(f"cannot listen on {options.host} port {options.port}: {_reason(problem)}")
    with listener:
        try:
            server = _make_server(_url(options.host, listener))
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] not in _EXAMPLE_MODULES:
                raise
            return _fail(f"{missing.name} is missing: pip install 'sse-middleware[example]'")
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            # uvicorn has shut down in order, and raises the signal again for other handlers.
            return 0
    return 0 if server.started else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m example_app",
        description="Ask the Python documentation; the answer streams into the page.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="port to listen on, 0 for a free one (%(default)s)",
    )
    return parser.parse_args(arguments)


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything else starts, so that a port in use causes a one-line message."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=2048)


def _reason(problem: OSError | OverflowError) -> str:
    """Return the reason in the words of the system, without the call that failed."""
    if isinstance(problem, OSError) and problem.errno is not None and problem.errno > 0:
        return os.strerror(problem.errno)
    # A name that does not resolve has another kind of number, a port that is too large has none.
    return str(getattr(problem, "strerror", None) or problem)


def _url(host: str, listener: socket.socket) -> str:
    """Return the address for a browser, with the port that is really used."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # shown, not bound
    port: int = listener.getsockname()[1]
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"


def _make_server(url: str) -> uvicorn.Server:
    """Build a server that prints its address as soon as it listens."""
    import uvicorn  # noqa: PLC0415  # a missing package must end in a sentence, not in a traceback

    from example_app.app import app  # noqa: PLC0415  # as above

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                print(f"The example listens on {url} (stop it with Ctrl-C)", flush=True)

    return AnnouncingServer(uvicorn.Config(app, log_level="warning"))


def _fail(message: str) -> int:
    print(f"example_app: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
