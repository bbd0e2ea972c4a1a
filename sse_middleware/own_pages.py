"""The pages that the middleware itself serves: readiness, drain, browser client and metrics."""

import os

from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from sse_middleware._once import running_loop
from sse_middleware.client.serve import ClientFiles
from sse_middleware.config.options import Options
from sse_middleware.http.own_responses import MetricsEndpoint, send_drained, send_readiness
from sse_middleware.http.request import is_request_for
from sse_middleware.observability.exposition import exposition
from sse_middleware.stream.shutdown import SHUTDOWN

_OF_PROXIES = frozenset((b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via"))
"""Headers of requests that have come through a proxy."""


class OwnPages:
    """Respond to requests for these pages.

    Args:
        options: the settings.
        registry: the metrics that are served, `None` for ours in the default registry.

    Attributes:
        paths: the paths of the pages.
    """

    def __init__(self, options: Options, registry: CollectorRegistry | None) -> None:
        self._ready_path = options.ready_path
        self._drain_path = options.drain_path
        self._client = ClientFiles(options.client_path) if options.client_path else None
        self._metrics: MetricsEndpoint | None = None
        if options.metrics_path:
            is_set = "metrics_path" in options.explicit
            whole = is_set or registry is not None
            exposed = exposition(registry, os.environ, whole=whole)
            self._metrics = MetricsEndpoint(exposed, options.metrics_path, first=is_set)
        client_paths = () if self._client is None else self._client.paths
        paths = (options.metrics_path, options.ready_path, options.drain_path, *client_paths)
        self.paths = tuple(path for path in paths if path)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> Send | None:
        """Send a page and return `None`, or return the `send` for the app."""
        if self._ready_path and is_request_for(scope, self._ready_path):
            await send_readiness(send, scope, ready=not drains())
        elif self._drain_path and _is_drain_request(scope, self._drain_path):
            await SHUTDOWN.drain()
            await send_drained(send, scope)
        elif self._client is not None and is_request_for(scope, *self._client.paths):
            await self._client(scope, receive, send)
        elif self._metrics is not None and is_request_for(scope, self._metrics.path):
            return await self._metrics.handle(scope, send)
        else:
            return send
        return None


def drains() -> bool:
    """Return whether the server of the running loop drains."""
    loop = running_loop()
    return SHUTDOWN.is_draining and loop is not None and SHUTDOWN.drain_for(loop).is_draining


def _is_drain_request(scope: Scope, path: str) -> bool:
    """Return whether a request begins the drain: a GET that no proxy has passed on."""
    return (
        scope.get("method") == "GET"
        and is_request_for(scope, path)
        and _OF_PROXIES.isdisjoint(name.lower() for name, _ in scope.get("headers") or ())
    )
