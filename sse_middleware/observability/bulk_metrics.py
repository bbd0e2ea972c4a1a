"""Prometheus metrics that take many observations at once, and one at a third of its price.

`prometheus_client` has no public function for that. This file therefore uses attributes that the
library does not document, if they exist and have the known form. Otherwise it calls `observe` and
`inc`, which give the same numbers at a higher price.
"""

import math
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, Final, NamedTuple

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.samples import Exemplar

MULTIPROCESS_VARIABLES: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""The variables with the directory of the multi-process mode of Prometheus."""
Adder = Callable[[float], None]
"""Adds to a metric."""
_VALUE_METHODS: Final = ("inc", "set_exemplar")


class _Internals(NamedTuple):
    """The undocumented attributes of a histogram.

    Attributes:
        buckets: a counter for each bucket, which counts the values of that bucket only.
        sum: the sum of all values.
    """

    buckets: Sequence[Any]
    sum: Any


def adder_of(counter: Counter | Gauge) -> Adder:
    """Return the function that adds to a counter, or a gauge, which has all its labels.

    It is `inc`, but without checks of the labels and of the amount if that is possible.
    """
    add = getattr(getattr(counter, "_value", None), "inc", None)
    return add if callable(add) else counter.inc


def live_adder_of(gauge: Gauge) -> Adder:
    """Return the function that adds to a gauge of what is open in this process.

    In Prometheus' multi-process mode, the gauge begins at 0 in each process: an earlier process
    with the same id may have left a value, for example before a restart of the container.
    """
    add, lock, processes = adder_of(gauge), Lock(), set[int]()

    def add_in_process(amount: float) -> None:
        process = os.getpid()
        if process not in processes:
            with lock:
                if process not in processes:
                    gauge.set(0)
                    processes.add(process)
        add(amount)

    if not any(map(os.environ.get, MULTIPROCESS_VARIABLES)):
        return add
    add_in_process(0)
    return add_in_process


class BulkHistogram:
    """Observe values of one histogram that has all its labels.

    Args:
        histogram: the histogram.
        bounds: the upper bounds of its buckets, without infinity.
    """

    __slots__ = ("_bounds", "_histogram", "_internals")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._internals = _internals_of(histogram, len(bounds) + 1)

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add `counts[i]` observations to bucket `i`; their values have the sum `total`.

        Buckets after the last count get none.
        """
        if self._internals is None:
            for value, count in _values(self._bounds, counts, total):
                for _ in range(count):
                    self._histogram.observe(value)
            return
        for bucket, count in zip(self._internals.buckets, counts, strict=False):
            if count:
                bucket.inc(count)
        self._internals.sum.inc(total)

    def observe(self, value: float, exemplar: dict[str, str] | None) -> None:
        """Add one observation, with an exemplar that is known to be valid."""
        if self._internals is None:
            self._histogram.observe(value, exemplar)
            return
        bucket = self._internals.buckets[bisect_left(self._bounds, value)]
        bucket.inc(1)
        self._internals.sum.inc(value)
        if exemplar is not None:
            bucket.set_exemplar(Exemplar(exemplar, value, time.time()))


def _internals_of(histogram: Histogram, count: int) -> _Internals | None:
    """Return the undocumented attributes, `None` if any is missing or has another form."""
    buckets = getattr(histogram, "_buckets", None)
    total = getattr(histogram, "_sum", None)
    if not isinstance(buckets, list) or len(buckets) != count:
        return None
    if not all(
        callable(getattr(value, name, None)) for value in buckets for name in _VALUE_METHODS
    ):
        return None
    return _Internals(buckets, total) if callable(getattr(total, "inc", None)) else None


def _values(
    bounds: Sequence[float], counts: Sequence[int], total: float
) -> Iterator[tuple[float, int]]:
    """Return a value for each bucket, and its count, so that their sum is `total`.

    Values in the last bucket, which has no upper bound, are as high as the sum requires. If there
    are none, all values have the same relative position in their buckets.
    """
    lows = [0.0, *(math.nextafter(bound, math.inf) for bound in bounds)]
    rest = total - sum(low * count for low, count in zip(lows, counts, strict=False))
    unbounded = counts[len(bounds)] if len(counts) > len(bounds) else 0
    widths = [high - low for low, high in zip(lows, bounds, strict=False)]
    width = sum(width * count for width, count in zip(widths, counts, strict=False))
    share = 0.0 if unbounded or not width else min(1.0, max(0.0, rest / width))
    for low, width, count in zip(lows, widths, counts, strict=False):
        if count:
            yield low + share * width, count
    if unbounded:
        yield lows[-1] + max(0.0, rest / unbounded), unbounded
