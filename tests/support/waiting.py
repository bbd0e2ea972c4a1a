"""Waiting for outcomes, with deadlines that only a hang exceeds."""

import asyncio
import time
from collections.abc import Callable

HANG_SECONDS = 60.0
"""More than ten times as long as any outcome takes for which the tests wait."""

Text = str | Callable[[], str]


def wait_until(
    condition: Callable[[], bool], otherwise: Text, seconds: float = HANG_SECONDS
) -> None:
    """Poll until a condition holds, and fail with the text `otherwise` if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, _text(otherwise)
        time.sleep(0.02)


async def until(
    condition: Callable[[], bool], otherwise: Text, seconds: float = HANG_SECONDS
) -> None:
    """Poll in an event loop until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, _text(otherwise)
        await asyncio.sleep(0.01)


def _text(otherwise: Text) -> str:
    return otherwise if isinstance(otherwise, str) else otherwise()
