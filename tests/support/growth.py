"""Whether the time of some work grows in proportion to its input.

Each check compares the CPU time of two inputs in one run, so that the speed and the load of the
machine do not matter. Each figure is the best of several, because a disturbance only adds time.
"""

import time
from collections.abc import Callable

RESOLUTION_SECONDS = 0.00005
"""Shorter times count as this long."""
_ATTEMPTS = 5


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def excess_growth(once: Callable[[], object], longer: Callable[[], object], limit: float) -> float:
    """Compare the time of the same work on an input and on a longer one.

    Args:
        once: the work on the input.
        longer: the work on the longer input.
        limit: the most by which the time may grow.

    Returns:
        0 if it grows by less than `limit` in any of several attempts, else how much it grows.
    """
    shortest = longest = float("inf")
    for _ in range(_ATTEMPTS):
        shortest = min(shortest, cpu_seconds(once))
        longest = min(longest, cpu_seconds(longer))
        if longest < limit * max(shortest, RESOLUTION_SECONDS):
            return 0.0
    return longest / shortest
