"""The cores that a process runs on."""

import os
from collections.abc import Iterable


def usable_cores() -> tuple[int, ...]:
    """Return the cores that this process may use; empty if the system does not report them."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def pin(cores: Iterable[int]) -> None:
    """Keep this process on `cores`, if the system supports it and there are any."""
    chosen = set(cores)
    if chosen and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen)


def pin_to_argument(cores: str) -> None:
    """Keep this process on the cores of a command-line argument, such as `0,1`; empty: on any."""
    pin(int(core) for core in cores.split(",") if core)
