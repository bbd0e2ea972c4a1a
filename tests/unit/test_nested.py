"""A middleware inside of another one: each stream is handled by one of them."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sse_middleware import SSEMiddleware, streaming
from tests.support.asgi import EVENTSOURCE, handle, stream_of
from tests.support.middleware import data_of
from tests.support.resuming import Counting, id_of, left, memory, resumable, returning, stop

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


INNER: dict[str, dict[str, Any]] = {
    "argument": {"mark": "/s"},
    "all paths": {"mark": "*"},
    "with options": {"marks": {"/s": streaming(stream_max_seconds=30)}},
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", [{}, {"mark": "/other"}, {"mark": "/s"}], ids=str)
@pytest.mark.parametrize("root", ["", "/api"])
async def test_the_innermost_mark_of_a_path_counts(
    inner: str, outer: dict[str, Any], root: str
) -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    nested = SSEMiddleware(
        stream_of(b"data: 1\n\n", pause=1), registry=registries[1], **INNER[inner]
    )
    app = SSEMiddleware(nested, registry=registries[0], stream_max_seconds=20, **outer)
    exchange = await handle(app, headers=EVENTSOURCE, path=f"{root}/s", root_path=root)
    assert exchange.names == ["start", "message", "complete"]
    assert [ended(one) for one in registries] == [0, 1]
    expected = b"30" if inner == "with options" else b"60"
    caps = [found for name, found in exchange.start["headers"] if name == b"x-stream-max-seconds"]
    assert caps == [expected]
    exchange = await handle(app, path=f"{root}/unmarked", root_path=root)
    assert exchange.body == b"data: 1\n\n"


@pytest.mark.parametrize("outer", [{}, {"mark": "/s"}, {"only_marked": True}], ids=str)
async def test_a_stream_of_the_inner_layer_is_resumed_and_stopped_through_the_outer_one(
    outer: dict[str, Any],
) -> None:
    counting = Counting(1000)
    inner = resumable(counting, registry=CollectorRegistry())
    app = SSEMiddleware(inner, store=memory(), registry=CollectorRegistry(), **outer)
    async with left(app, 2, path="/s") as first:
        async with returning(app, id_of(first, 1), path="/s") as second:
            await second.until("message")
            assert second.names[:2] == ["start", "message"]
            stopped = await stop(app, id_of(first, 1), path="/s")
            assert stopped.status == 204
            await second.until("complete")
        assert data_of(second, "complete")["reason"] == "cancelled"
        assert first.task is not None
        await first.task
    assert len(counting.scopes) == 1
    assert counting.ends == ["cancelled"]


async def test_a_limit_of_the_outer_layer_does_not_count_streams_of_the_inner_one() -> None:
    inner = SSEMiddleware(stream_of(b"data: 1\n\n", pause=1), mark="/s")
    app = SSEMiddleware(inner, max_streams=1, limit_action="reject")
    for _ in range(3):
        exchange = await handle(app, headers=EVENTSOURCE, path="/s")
        assert exchange.names == ["start", "message", "complete"]


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
