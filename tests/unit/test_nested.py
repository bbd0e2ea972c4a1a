"""A middleware inside of another one: each stream is handled by one of them."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sse_middleware import SSEMiddleware, streaming
from tests.support.asgi import EVENTSOURCE, handle, stream_of

pytestmark = pytest.mark.anyio

OFF = {"marks": {"/s": streaming(enabled=False)}}
OUTER: dict[str, dict[str, Any]] = {
    "excluded": {"exclude": "/s"},
    "not included": {"include": "/other"},
    "only marked": {"only_marked": True},
    "only others marked": {"only_marked": True, "mark": "/other"},
    "not enabled for the path": OFF,
    "not enabled": {"enabled": False},
}


def ended(registry: CollectorRegistry) -> float:
    """Return the number of streams that were counted."""
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name == "sse_streams_total")


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("root", ["", "/api"])
async def test_an_outer_layer_that_leaves_a_route_alone_leaves_it_to_the_inner_one(
    outer: str, root: str
) -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    inner = SSEMiddleware(stream_of(b"data: 1\n\n", pause=1), mark="/s", registry=registries[1])
    app = SSEMiddleware(inner, registry=registries[0], **OUTER[outer])
    exchange = await handle(app, headers=EVENTSOURCE, path=f"{root}/s", root_path=root)
    assert exchange.names == ["start", "message", "complete"]
    counted = [ended(one) for one in registries]
    assert counted == [0, 1]


@pytest.mark.parametrize("outer", [{}, {"mark": "/s"}, {"only_marked": True, "mark": "/s"}])
async def test_any_other_outer_layer_handles_the_stream_and_the_inner_one_does_not(
    outer: dict[str, Any],
) -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    inner = SSEMiddleware(stream_of(b"data: 1\n\n", pause=1), registry=registries[1])
    app = SSEMiddleware(inner, registry=registries[0], **outer)
    exchange = await handle(app, headers=EVENTSOURCE, path="/s")
    assert ("start" in exchange.names) is bool(outer)
    counted = [ended(one) for one in registries]
    assert counted == [1, 0]
    assert len([name for name, _ in exchange.start["headers"] if name == b"x-stream-id"]) == 1


async def test_the_same_settings_twice_handle_a_stream_once() -> None:
    registry = CollectorRegistry()
    options: dict[str, Any] = {"only_marked": True, "mark": "/s", "registry": registry}
    app = SSEMiddleware(SSEMiddleware(stream_of(b"data: 1\n\n"), **options), **options)
    for path, names in (("/s", ["start", "message", "complete"]), ("/other", ["message"])):
        exchange = await handle(app, headers=EVENTSOURCE, path=path)
        assert exchange.names == names
    assert ended(registry) == 1
