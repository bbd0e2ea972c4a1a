"""The virtual clock of the tests."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from sse_middleware.stream.timers import current_timers
from tests.support.clock import VirtualClockLoop


@pytest.mark.parametrize("uptime", [10.0, 1000.0, 100_000.0])
def test_the_timers_use_the_virtual_clock_for_any_uptime_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, uptime: float
) -> None:
    clocks = SimpleNamespace(monotonic=lambda: uptime, time=time.time)
    monkeypatch.setattr("sse_middleware.stream.timers.time", clocks)

    async def passed() -> float:
        clock = current_timers().clock
        began = clock()
        await asyncio.sleep(3600)
        return clock() - began

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        assert runner.run(passed()) == pytest.approx(3600)
