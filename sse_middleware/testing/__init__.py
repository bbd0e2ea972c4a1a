"""Tools for tests of apps and stores: a clock, an in-process client, a contract suite."""

from sse_middleware.testing.client import (
    EVENTSOURCE_HEADERS,
    Exchange,
    handle,
    http_scope,
    running,
)
from sse_middleware.testing.clock import FakeClock
from sse_middleware.testing.contract import StoreContract
from sse_middleware.testing.streams import FakeProducer, FakeStream, Reader, log_info

__all__ = [
    "EVENTSOURCE_HEADERS",
    "Exchange",
    "FakeClock",
    "FakeProducer",
    "FakeStream",
    "Reader",
    "StoreContract",
    "handle",
    "http_scope",
    "log_info",
    "running",
]
