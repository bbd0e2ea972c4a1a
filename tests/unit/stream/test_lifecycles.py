"""Random lifecycles end: nothing is left, lost or repeated, and no cancellation leaks.

`python -m tests.support.lifecycles SEED` runs one seed and prints the shortest plans that fail.
"""

from collections.abc import Iterable, Iterator

import pytest

from tests.support.lifecycle_plans import draw, is_fair
from tests.support.lifecycles import quick_collections, run
from tests.support.samples import sampled

SAMPLE = 300
SWEEP = 10_000
_MOST_SHOWN = 3
"""Failed seeds of which the traces are shown."""


@pytest.fixture(autouse=True)
def _collections() -> Iterator[None]:
    with quick_collections():
        yield


def check_seeds(seeds: Iterable[int]) -> None:
    """Run seeds, and fail with the list of the failed ones and the traces of some."""
    failed: list[str] = []
    shown: list[str] = []
    for seed in seeds:
        result = run(draw(seed), seed)
        if result.failures:
            failed.append(f"seed {seed}: {', '.join(sorted(result.names))}")
            if len(shown) < _MOST_SHOWN:
                shown.append(f"seed {seed}: {result}")
    if failed:
        how = "run one of them: python -m tests.support.lifecycles SEED"
        pytest.fail("\n".join([*shown, *failed, how]), pytrace=False)


@pytest.mark.parametrize("first", range(0, sampled(SAMPLE), 50))
def test_random_lifecycles_leave_nothing_and_lose_nothing(first: int) -> None:
    check_seeds(range(first, min(first + 50, sampled(SAMPLE))))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SAMPLE, SAMPLE + SWEEP, 500))
def test_ten_thousand_lifecycles_leave_nothing_and_lose_nothing(first: int) -> None:
    check_seeds(range(first, first + 500))


def test_a_seed_always_gives_the_same_run() -> None:
    for seed in range(20):
        assert run(draw(seed), seed).trace == run(draw(seed), seed).trace


def test_all_plans_are_fair() -> None:
    assert all(is_fair(draw(seed)) for seed in range(2000))
