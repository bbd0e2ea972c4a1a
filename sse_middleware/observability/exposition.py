"""Serve the metrics of a registry, or of all processes in Prometheus' multi-process mode.

A scrape may take long, and so it runs in a thread: no event and no heartbeat waits for it.
"""

import asyncio
import glob
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware._once import running_loop
from sse_middleware.observability.bulk_metrics import MULTIPROCESS_VARIABLES
from sse_middleware.observability.metrics import PREFIX, metrics_in

_LIVE_GAUGES: Final = re.compile(r"gauge_live[a-z]+_(\d+)\.db")
"""The files of the gauges of one process that count while it lives."""


def exposition(
    registry: CollectorRegistry | None, environ: Mapping[str, str], *, whole: bool
) -> ASGIApp:
    """Return the ASGI app that sends the metrics in a registry.

    Args:
        registry: the registry; without one, the default one, or that of all processes in
            Prometheus' multi-process mode.
        environ: the variables, which select that mode.
        whole: whether the metrics of other programs in the registry are sent too.
    """
    directory = next(filter(None, map(environ.get, MULTIPROCESS_VARIABLES)), "")
    if registry is None and directory:
        registry = CollectorRegistry()
        registry.register(_AllProcesses(directory, whole=whole))
    elif not whole:
        registry = _own_metrics_in(registry or REGISTRY)
    return _InThread(make_asgi_app(registry or REGISTRY))


def _own_metrics_in(registry: CollectorRegistry) -> CollectorRegistry:
    try:
        return metrics_in(registry).own
    except ValueError:  # `counting_in` has logged it
        return CollectorRegistry()


class _InThread:
    """Run an ASGI app that never waits, such as that of `prometheus_client`, in a thread."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response when it is complete; the app's exception is raised."""
        if running_loop() is None:  # an event loop without threads of asyncio
            await self._app(scope, receive, send)
            return
        request, response = await receive(), list[Message]()
        await asyncio.to_thread(_run, self._app, scope, request, response)
        for message in response:
            await send(message)


def _run(app: ASGIApp, scope: Scope, request: Message, response: list[Message]) -> None:
    async def receive() -> Message:
        return request

    async def send(message: Message) -> None:
        response.append(message)

    call: Any = app(scope, receive, send)
    with suppress(StopIteration):
        call.send(None)


class _AllProcesses:
    """The metrics of all processes.

    Args:
        directory: the directory with their files.
        whole: whether the metrics of other programs are included.
    """

    def __init__(self, directory: str, *, whole: bool) -> None:
        self._directory = directory
        self._prefix = "" if whole else PREFIX
        # The library has no types here.
        self._collector = MultiProcessCollector(None)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics, without the gauges of processes that have died."""
        _drop_dead_processes(self._directory)
        metrics = self._collector.collect()  # type: ignore[no-untyped-call]
        return [metric for metric in metrics if metric.name.startswith(self._prefix)]


def _drop_dead_processes(directory: str) -> None:
    """Remove the gauges of processes that were killed, whose open streams are gone."""
    pattern = str(Path(glob.escape(directory)) / "gauge_live*_*.db")
    names = map(os.path.basename, glob.iglob(pattern))  # noqa: PTH207 - an escaped path
    found = {int(match[1]) for match in map(_LIVE_GAUGES.fullmatch, names) if match}
    for pid in found:
        if not _is_alive(pid):
            with suppress(FileNotFoundError):  # another process has done so
                mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]


def _is_alive(pid: int) -> bool:
    """Return whether there is a process, `True` if that is not known."""
    if os.name != "posix":  # elsewhere, a signal 0 is a real one
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
