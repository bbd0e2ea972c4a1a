"""The bytes that a client has after any cuts are those of the app, hash for hash.

A failure prints the seed of its samples; the variable `CUTS_SEED` repeats them.
"""

import asyncio
import hashlib
import itertools
import random

import httpx2 as httpx
import pytest

from tests.support.answers import random_answer, whole_events
from tests.support.cut_cases import SEED
from tests.support.cut_proxy import Cut, CuttingProxy, How
from tests.support.named_runs import ANN, NamedRuns
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

ANSWERS = 200
AT_ONCE = 10
MANY = 1000
"""More requests than any client needs."""
_HEAD_BYTES = 600


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class PlainClient:
    """A client that keeps whole events, and continues after them if a response is cut.

    Args:
        client: makes the requests.
        url: of the answer.

    Attributes:
        received: the bytes of the answer.
        statuses: those of its requests.
    """

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self.received = b""
        self.statuses: list[int] = []
        self._client = client
        self._url = url

    async def run(self, query: str) -> None:
        """Read the whole answer."""
        is_whole = await self._read("POST", f"{self._url}?{query}")
        while not is_whole:
            assert len(self.statuses) < MANY, f"{self._url}?{query}: {self.statuses[-3:]}"
            events, end = whole_events(self.received)
            self.received = self.received[:end]
            is_whole = await self._read("GET", f"{self._url}/live?after={events}")

    async def _read(self, method: str, url: str) -> bool:
        """Make a request, and return whether its response has ended as that of the app."""
        try:
            async with self._client.stream(method, url) as response:
                self.statuses.append(response.status_code)
                async for chunk in response.aiter_raw():
                    self.received += chunk
        except httpx.TransportError:
            return False
        # Before the first event, the other worker may not know of the answer yet.
        return response.status_code == 200


def random_cuts(rng: random.Random, length: int) -> list[Cut]:
    """Cut some connections anywhere, also within a head and after the end of an answer."""
    longest = _HEAD_BYTES + length * 3 // 2
    return [
        Cut(rng.randrange(1, longest), rng.choice(list(How)), rng.random() < 0.2)
        for _ in range(rng.randint(1, 8))
    ]


async def fault_of(runs: NamedRuns, seed: str) -> str:
    """Read a random answer through random cuts, and return what is wrong."""
    rng, answer = random.Random(seed), random_answer(seed)
    ports = runs.ports if rng.random() < 0.5 else runs.ports[::-1]
    query = f"seed={seed}&pause={rng.choice((0, 0, 0.001))}"
    async with (
        CuttingProxy(ports, random_cuts(rng, len(answer))) as proxy,
        httpx.AsyncClient(headers=ANN, timeout=HANG_SECONDS) as http,
    ):
        client = PlainClient(http, f"http://127.0.0.1:{proxy.port}/answers/{seed}")
        await client.run(query)
        digests = [hashlib.sha256(data).hexdigest() for data in (client.received, answer)]
        if digests[0] == digests[1]:
            return ""
        pairs = enumerate(itertools.zip_longest(client.received, answer))
        first = next(at for at, (got, wanted) in pairs if got != wanted)
        near = slice(max(0, first - 40), first + 40)
        return (
            f"{seed}: {client.statuses}, cuts {proxy.made}, differs at {first} of {len(answer)}: "
            f"{client.received[near]!r}, not {answer[near]!r}"
        )


async def test_the_bytes_of_a_client_are_those_of_the_app_regardless_of_the_cuts(
    runs: NamedRuns,
) -> None:
    seeds = iter([f"{SEED}-{number}" for number in range(ANSWERS)])

    async def read_some() -> list[str]:
        return [await fault_of(runs, seed) for seed in seeds]

    async with asyncio.timeout(HANG_SECONDS):
        found = await asyncio.gather(*(read_some() for _ in range(AT_ONCE)))
    faults = [fault for some in found for fault in some]
    assert len(faults) == ANSWERS
    assert not any(faults), "\n".join([f"CUTS_SEED={SEED}", *filter(None, faults)])
