"""Metrics of the access to the store: what is open, and which listeners are up."""

from prometheus_client import CollectorRegistry, Gauge

from sse_middleware.observability.bulk_metrics import Adder, live_adder_of


class StoreHealthMetrics:
    """The metrics in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            "connection": Gauge(
                "sse_store_connections",
                "Connections to Redis that are open.",
                ("name", "state"),
                multiprocess_mode="livesum",
                registry=registry,
            ),
            "circuit": Gauge(
                "sse_store_circuits",
                "Circuits that a failure has opened, until a request succeeds.",
                ("name", "state"),
                multiprocess_mode="livesum",
                registry=registry,
            ),
            "listener": Gauge(
                "sse_store_listeners",
                "Tasks that receive the messages of other processes from Redis.",
                ("name", "state"),
                multiprocess_mode="livesum",
                registry=registry,
            ),
        }
        self._adders: dict[tuple[str, str, str], Adder] = {}

    def add(self, component: str, name: str, state: str, more: int) -> None:
        """Count components in a state, as `Observer.health_changed` specifies."""
        key = (component, name, state)
        if key not in self._adders:
            self._adders[key] = live_adder_of(self._gauges[component].labels(name, state))
        self._adders[key](more)
