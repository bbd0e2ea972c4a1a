"""Many observations at once are the same as one after the other, with any prometheus_client."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from sse_middleware.observability import metrics
from sse_middleware.observability.bulk_metrics import BulkHistogram, adder_of
from sse_middleware.observability.stream_record import GAP_BOUNDS, StreamRecord
from tests.support.asgi import handle, stream_of
from tests.support.middleware import marking

NAMES = ("_buckets", "_sum")


class Without:
    """A metric of a prometheus_client that has other private attributes."""

    def __init__(self, metric: Histogram | Counter, hidden: dict[str, object]) -> None:
        self._metric = metric
        self._hidden = hidden

    def __getattr__(self, name: str) -> Any:
        if name not in self._hidden:
            return getattr(self._metric, name)
        if self._hidden[name] is None:
            raise AttributeError(name)
        return self._hidden[name]


def removed(name: str) -> Callable[[Any], Any]:
    return lambda histogram: Without(histogram, {name: None})


def changed(name: str, value: object) -> Callable[[Any], Any]:
    return lambda histogram: Without(histogram, {name: value})


VERSIONS = [
    pytest.param(lambda histogram: histogram, id="as it is"),
    *(pytest.param(removed(name), id=f"without {name}") for name in NAMES),
    pytest.param(changed("_buckets", {}), id="buckets in a dictionary"),
    pytest.param(changed("_buckets", [1.0]), id="one bucket"),
    pytest.param(changed("_buckets", [0.0] * (len(GAP_BOUNDS) + 1)), id="buckets of numbers"),
    pytest.param(changed("_sum", 0.0), id="a sum that is a number"),
]


def histogram() -> tuple[CollectorRegistry, Histogram]:
    registry = CollectorRegistry()
    return registry, Histogram("x", "x", buckets=GAP_BOUNDS, registry=registry)


def samples(registry: CollectorRegistry) -> dict[str, float]:
    return {
        f"{sample.name} {sample.labels.get('le')}": sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def assert_same(one: CollectorRegistry, other: CollectorRegistry) -> None:
    assert samples(one) == pytest.approx(samples(other))


def record_of(gaps: list[float]) -> StreamRecord:
    record, now = StreamRecord("s", "t", "r", "f"), 0.0
    record.count_events(1, now)
    for seconds in gaps:
        now += seconds
        record.count_events(1, now)
    return record


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "gaps",
    [
        [0.001, 0.005, 0.3, 0.3, 7.0, 100.0],
        [0.001] * 100,
        [0.005] * 3,
        [59.0, 60.0],
        [61.0, 600.0, 0.0],
        [],
    ],
    ids=str,
)
def test_many_observations_at_once_are_those_of_each_value(
    version: Callable[[Any], Any], gaps: list[float]
) -> None:
    (one, plain), (other, inner) = histogram(), histogram()
    for seconds in gaps:
        plain.observe(seconds)
    record = record_of(gaps)
    BulkHistogram(version(inner), GAP_BOUNDS).add(record.gaps, record.gap_seconds)
    assert_same(one, other)


@given(st.lists(st.floats(0.0, 1000.0), max_size=30))
def test_any_gaps_have_the_same_buckets_and_sum_without_private_attributes(
    gaps: list[float],
) -> None:
    (one, inner), (other, hidden) = histogram(), histogram()
    record = record_of(gaps)
    BulkHistogram(inner, GAP_BOUNDS).add(record.gaps, record.gap_seconds)
    bulk = BulkHistogram(removed("_sum")(hidden), GAP_BOUNDS)
    bulk.add(record.gaps, record.gap_seconds)
    assert_same(one, other)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("value", [0.0, 0.005, 0.0051, 60.0, 61.0])
def test_one_observation_has_its_bucket_and_exemplar(
    version: Callable[[Any], Any], value: float
) -> None:
    (one, plain), (other, inner) = histogram(), histogram()
    plain.observe(value)
    BulkHistogram(version(inner), GAP_BOUNDS).observe(value, {"trace_id": "t-1"})
    assert_same(one, other)
    shown: bytes = openmetrics(other)  # type: ignore[no-untyped-call]  # it has no types
    assert b'{trace_id="t-1"}' in shown


def test_a_counter_is_increased_without_private_attributes() -> None:
    one, other = (Counter("x", "x", registry=CollectorRegistry()) for _ in range(2))
    for add in (adder_of(one), adder_of(Without(other, {"_value": None}))):  # type: ignore[arg-type]
        add(2)
        add(1)
    for counter in (one, other):
        assert next(iter(counter.collect())).samples[0].value == 3


@pytest.mark.anyio
async def test_streams_are_measured_without_private_attributes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OtherHistogram(Histogram):
        def labels(self, *values: Any, **named: Any) -> Any:
            return removed("_buckets")(super().labels(*values, **named))

    class OtherCounter(Counter):
        def labels(self, *values: Any, **named: Any) -> Any:
            return removed("_value")(super().labels(*values, **named))

    async def counts() -> list[tuple[str, dict[str, str], float]]:
        registry = CollectorRegistry()
        app = marking(stream_of(b"data: 1\n\n", b"data: 2\n\n"), registry=registry)
        await handle(app, headers=[(b"accept", b"text/event-stream")])
        return [
            (sample.name, sample.labels, sample.value)
            for metric in registry.collect()
            for sample in metric.samples
            if not sample.name.endswith(("_created", "_sum"))
        ]

    labels = {"route": "unmatched", "family": "plain"}
    expected = await counts()
    monkeypatch.setattr(metrics, "Histogram", OtherHistogram)
    monkeypatch.setattr(metrics, "Counter", OtherCounter)
    assert await counts() == expected
    assert ("sse_event_gap_seconds_count", labels, 1.0) in expected
