"""The share of each random sample and of each sweep that is run, in the variable `SAMPLE_SHARE`.

It is 1 unless the variable is set. tox sets it where another Python or an old package is tested,
which any part of a sample uses as the whole does.
"""

import os

_SHARE = float(os.environ.get("SAMPLE_SHARE") or 1)


def sampled(size: int) -> int:
    """Return the number of examples for a whole sample of `size` examples."""
    return max(1, round(size * _SHARE))


def sampled_turns(limit: int) -> range:
    """Return the turns of an event loop to try, for a whole sweep of all turns below `limit`."""
    return range(0, limit, max(1, round(1 / _SHARE)))
