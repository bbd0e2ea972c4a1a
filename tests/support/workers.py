"""Several workers of one app, each a server in a process of its own, which share one Redis."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.servers import Server, serving


class Worker:
    """A uvicorn that can be killed and started again, on another port.

    Attributes:
        server: the running server.
    """

    server: Server

    def __init__(self, app: str, directory: Path, environ: dict[str, str]) -> None:
        self._app = app
        self._directory = directory
        self._environ = environ
        self._runs = ExitStack()

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._directory.mkdir(parents=True, exist_ok=True)
        run = serving("uvicorn-httptools", self._app, self._directory, self._environ)
        self.server = self._runs.enter_context(run)

    def kill(self) -> None:
        """Kill it."""
        self.server.process.kill()
        self.server.process.wait()
        self._runs.close()

    def stop(self) -> None:
        """Let it shut down."""
        self._runs.close()


@contextmanager
def working(
    app: str, urls: Sequence[str], directory: Path, environ: dict[str, str]
) -> Iterator[list[Worker]]:
    """Run a worker for each URL of a Redis until the block ends.

    Then their logs must have no tracebacks.
    """
    workers = [
        Worker(app, directory / f"worker-{number}", {**environ, "SSE_REDIS_URL": url})
        for number, url in enumerate(urls)
    ]
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.stop)
            worker.start()
        yield workers
        logs = [worker.server.log_text() for worker in workers]
    assert not any("Traceback" in log for log in logs), logs
