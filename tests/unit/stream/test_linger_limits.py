"""Of too many lingering streams, a client that has more than others loses its own."""

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from sse_middleware import SSEMiddleware
from sse_middleware.stream.linger_index import ClientShares, RequestKey
from tests.support.asgi import Exchange
from tests.support.growth import excess_growth
from tests.support.resuming import (
    Counting,
    id_of,
    left,
    resumable,
    returning,
    value,
)

pytestmark = pytest.mark.anyio

HOUR = 3600
Request = dict[str, Any]
"""Headers and parts of the scope."""


def by_identity(who: int, number: int) -> Request:
    # A second request with the same query would end the stream of the first one.
    return {
        "headers": [(b"authorization", b"Bearer %d" % who)],
        "query_string": b"number=%d" % number,
    }


def by_address(who: int, _: int) -> Request:
    return {"client": (f"192.0.2.{who}", 4000)}


def by_network(who: int, number: int) -> Request:
    return {"client": (f"2001:db8:0:{who}::{number:x}", 4000)}


def by_proxy(who: int, number: int) -> Request:
    hops = f"192.0.2.{number}, 203.0.113.{who}".encode()
    return {"client": ("127.0.0.1", 4000), "headers": [(b"x-forwarded-for", hops)]}


class Visitors:
    """Clients that open streams and leave them."""

    def __init__(self, kept: SSEMiddleware, stack: AsyncExitStack) -> None:
        self._kept = kept
        self._stack = stack

    async def leave(self, request: Request) -> Exchange:
        """Open a stream and leave it after an event."""
        headers = request.get("headers", [])
        scope = {name: part for name, part in request.items() if name != "headers"}
        return await self._stack.enter_async_context(left(self._kept, 1, *headers, **scope))

    async def can_resume(self, first: Exchange, request: Request) -> bool:
        """Return whether a client that has left can continue its stream."""
        headers = request.get("headers", [])
        scope = {name: part for name, part in request.items() if name != "headers"}
        async with returning(self._kept, id_of(first, 1), *headers, **scope) as again:
            await again.until_count(1, "message")
        return again.names[0] == "start"


@pytest.mark.parametrize("request_of", [by_identity, by_address, by_network, by_proxy])
async def test_a_client_that_leaves_101_streams_loses_its_own(
    request_of: Callable[[int, int], Request],
) -> None:
    registry = CollectorRegistry()
    kept = resumable(
        Counting(2 * HOUR),
        registry=registry,
        linger_seconds=HOUR,
        stream_max_seconds=None,
        trusted_proxies=("127.0.0.1",),
    )
    async with AsyncExitStack() as stack:
        visitors = Visitors(kept, stack)
        other_requests = [request_of(who, 1) for who in range(5)]
        others = [await visitors.leave(request) for request in other_requests]
        many_requests = [request_of(99, number) for number in range(101)]
        many = [await visitors.leave(request) for request in many_requests]
        assert value(registry, "sse_lingering_streams") == 100
        for first, request in zip(others, other_requests, strict=True):
            assert await visitors.can_resume(first, request)
        resumed = [
            await visitors.can_resume(first, request)
            for first, request in zip(many, many_requests, strict=True)
        ]
        assert resumed == [False] * 6 + [True] * 95


async def test_of_clients_with_one_stream_each_the_one_that_left_first_loses_it() -> None:
    kept = resumable(Counting(HOUR), max_lingering=2, stream_max_seconds=None)
    async with AsyncExitStack() as stack:
        visitors = Visitors(kept, stack)
        requests = [by_address(who, 1) for who in range(3)]
        firsts = [await visitors.leave(request) for request in requests]
        resumed = [
            await visitors.can_resume(first, request)
            for first, request in zip(firsts, requests, strict=True)
        ]
        assert resumed == [False, True, True]


class Lingering:
    """A stream that lingers."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.request_key: RequestKey | None = None

    def expire(self) -> None:
        """Do nothing."""


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.sampled_from("abcd")), max_size=80))
def test_the_candidate_is_the_oldest_stream_of_a_client_that_has_most(
    steps: list[tuple[bool, int, str]],
) -> None:
    shares, there = ClientShares(), list[Lingering]()
    known: list[Lingering] = []
    for adds, number, client in steps:
        if adds or not known:
            known.append(Lingering(client))
            stream = known[-1]
        else:
            stream = known[number % len(known)]
        if adds:
            shares.add(stream)
            shares.add(stream)  # a second time has no effect
            there.append(stream)
        else:
            shares.discard(stream)
            there = [other for other in there if other is not stream]
        assert len(shares) == len(there)
        if there:
            counts = Counter(other.client for other in there)
            candidate = shares.expiration_candidate()
            assert counts[candidate.client] == max(counts.values())
            own = [other for other in there if other.client == candidate.client]
            assert candidate is own[0]


@pytest.mark.parametrize("clients", [1, 50_000])
def test_the_time_to_replace_a_stream_does_not_grow_with_their_number(clients: int) -> None:
    def replacing(count: int) -> Callable[[], None]:
        shares, streams = ClientShares(), iter(range(1_000_000))
        for _ in range(count):
            shares.add(Lingering(str(next(streams) % clients)))

        def replace() -> None:
            for _ in range(20_000):
                shares.discard(shares.expiration_candidate())
                shares.add(Lingering(str(next(streams) % clients)))

        return replace

    assert excess_growth(replacing(100), replacing(50_000), limit=3) == 0


def test_an_index_without_streams_is_empty() -> None:
    shares = ClientShares()
    streams = [Lingering(client) for client in "aabbb"]
    for stream in streams:
        shares.add(stream)
    for stream in streams:
        shares.discard(stream)
    assert (shares._streams, shares._clients, shares._most) == ({}, {}, 0)
