"""A lease is given back after the request for it, even if the caller of that was cancelled."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("redis")

from sse_middleware.limits.redis_leases import Leases
from sse_middleware.limits.slots import SlotPool
from sse_middleware.stores.circuit_breaker import CircuitBreaker, FailureReport

pytestmark = pytest.mark.anyio


class SlowRedis(Leases):
    """Leases whose requests take half a second each, on connections of their own.

    Attributes:
        sent: the scripts, as Redis begins and ends them.
    """

    sent: list[str]

    async def _run_all(self, script: Any, commands: Sequence[Any]) -> list[Any]:
        name = "take" if script is self._take_script else "give back"
        self.sent.append(f"{name} begins")
        await asyncio.sleep(0.5)
        self.sent.append(f"{name} ends")
        return [[1] for _ in commands]


@pytest.fixture
def leases() -> SlowRedis:
    breaker = CircuitBreaker((OSError,), FailureReport((), str, ""), "limit")
    made = SlowRedis("redis://127.0.0.1:1/0", "test:", SlotPool(None, 5), 5, breaker)
    made.sent = []
    made._secret._confirmed_at = math.inf  # the requests for it do not matter
    return made


@pytest.mark.parametrize("at", [0.01, 0.49])
async def test_a_cancelled_request_in_flight_ends_before_its_lease_is_given_back(
    at: float, leases: SlowRedis
) -> None:
    slot = SlotPool(None, 5).take("client", reads_end=True)
    request = asyncio.create_task(leases.take(slot, "nobody"))
    await asyncio.sleep(at)
    request.cancel()
    leases.drop(slot)
    await asyncio.sleep(5)
    assert leases.sent == ["take begins", "take ends", "give back begins", "give back ends"]
    await leases.close()


async def test_a_cancelled_request_that_waits_is_not_sent(leases: SlowRedis) -> None:
    slots = SlotPool(None, 5)
    first, second = (slots.take("client", reads_end=True) for _ in range(2))
    others = asyncio.create_task(leases.take(first, "nobody"))
    await asyncio.sleep(0.01)
    request = asyncio.create_task(leases.take(second, "nobody"))
    await asyncio.sleep(0.01)
    request.cancel()
    leases.drop(second)
    await others
    await asyncio.sleep(5)
    assert leases.sent.count("take begins") == 1
    await leases.close()
