"""Limits of several processes together, by a real Redis that can hang and forget."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sse_middleware import MemoryStore, SSEMiddleware
from sse_middleware.errors import StoreError
from sse_middleware.limits import redis_leases as leases
from sse_middleware.limits.open_rate import supports_installed_redis
from sse_middleware.limits.redis_leases import Leases
from sse_middleware.limits.slots import SlotPool
from sse_middleware.stores import circuit_breaker
from sse_middleware.stores.redis.commands import circuit_breaker_for
from tests.support.asgi import Exchange  # noqa: TC001 - as the others
from tests.support.limiting import ANY, PLAIN, answer, asked, limited, reasons, steady_rate, tab
from tests.support.redis_sentinel import sentinel_of, url_of
from tests.support.redis_server import RedisServer
from tests.support.resuming import Counting, value
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

with_rate = pytest.mark.skipif(
    not supports_installed_redis(), reason="limits supports redis-py from 5.2 on"
)

LET_IN = (200, "")
MANY = (429, "too_many_streams")
LEASE = 3.0
"""Long enough for a busy machine to renew it in time."""
CALL_SECONDS = 0.25
"""The timeout that users have."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(running_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """A Redis with timeouts that no slow machine reaches; see `hanging`."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", LEASE)
    monkeypatch.setattr(leases, "FIRST_CALL_TIMEOUT_SECONDS", 5.0)
    monkeypatch.setattr(circuit_breaker, "FIRST_CALL_TIMEOUT_SECONDS", 30.0)
    monkeypatch.setattr(circuit_breaker, "CALL_TIMEOUT_SECONDS", 30.0)
    running_server.client.flushall()
    return running_server


@contextmanager
def hanging(server: RedisServer) -> Iterator[None]:
    """Let Redis hang, with the timeouts that users have."""
    with pytest.MonkeyPatch.context() as patched, server.stopped():
        patched.setattr(circuit_breaker, "CALL_TIMEOUT_SECONDS", CALL_SECONDS)
        patched.setattr(circuit_breaker, "FIRST_CALL_TIMEOUT_SECONDS", 1.0)
        yield


@asynccontextmanager
async def processes(
    server: RedisServer, count: int = 2, **options: Any
) -> AsyncGenerator[list[SSEMiddleware]]:
    """Make middlewares as different processes have them; their event stores do not matter."""
    made = [
        limited(
            Counting(1000, pause=0.05),
            store=MemoryStore(),
            **{
                "redis_url": server.patient_url,
                "max_streams_per_client": 1,
                "registry": CollectorRegistry(),
                **options,
            },
        )
        for _ in range(count)
    ]
    try:
        yield made
    finally:
        for app in made:
            assert app._admission is not None
            await app._admission.close()


async def until_opening_is(outcome: tuple[int, str], app: SSEMiddleware) -> None:
    """Open streams until one has this outcome."""
    deadline = time.monotonic() + HANG_SECONDS
    while await opens(app) != outcome:
        assert time.monotonic() < deadline, f"no opening was {outcome}"
        await asyncio.sleep(0.05)


async def opens(app: SSEMiddleware, **scope: Any) -> tuple[int, str]:
    """Open a stream, leave it, and return its outcome."""
    async with asked(app, PLAIN, **scope) as exchange:
        return await answer(exchange)


async def test_many_at_once_on_several_processes_are_let_in_to_the_unit(
    server: RedisServer,
) -> None:
    async with processes(server, 3, max_streams_per_client=7) as apps, AsyncExitStack() as stack:
        exchanges: list[Exchange] = []
        for number in range(60):
            there = asked(apps[number % 3], ANY if number % 2 else PLAIN)
            exchanges.append(await stack.enter_async_context(there))
        answers = [await answer(one) for one in exchanges]
        assert answers.count(LET_IN) == 7
        assert answers.count(MANY) == 53


async def test_a_place_that_is_given_back_is_free_on_all_processes_at_once(
    server: RedisServer,
) -> None:
    async with processes(server) as (here, there):
        for _ in range(3):
            assert await opens(here) == LET_IN
            assert await opens(there) == LET_IN
        async with asked(here, PLAIN) as one:
            assert await answer(one) == LET_IN
            assert await opens(there) == MANY
            assert await opens(there, address="192.0.2.2") == LET_IN
    assert server.all_keys() == []


async def test_a_lease_lasts_as_long_as_its_stream_and_expires_soon_after_its_process_dies(
    server: RedisServer,
) -> None:
    async with processes(server) as (here, there), asked(here, PLAIN) as one:
        await answer(one)
        await asyncio.sleep(1.5 * LEASE)
        assert await opens(there) == MANY
        assert here._admission is not None
        assert here._admission._leases is not None
        (held,) = here._admission._leases._made.values()
        assert held._task is not None
        held._task.cancel()  # as if the process were dead
        (lease,) = [key for key in server.all_keys() if key.endswith("leases")]
        rows: Any = server.client.zrange(lease, 0, -1, withscores=True)
        now: Any = server.client.time()
        ((_, expires_at),) = rows
        assert 0 < expires_at / 1000 - now[0] - now[1] / 1e6 <= LEASE
        await until_opening_is(LET_IN, there)
    keys = server.all_keys()
    assert all(server.client.pttl(key) > 0 for key in keys)


async def test_an_older_stream_on_another_process_ends_for_a_newer_one(
    server: RedisServer,
) -> None:
    async with processes(server) as (here, there), tab(here) as one:
        await one.until("message")
        async with tab(there) as two:
            await two.until("message")
            await one.until_end()
            assert reasons(one) == ["evicted"]
            assert one.last_event_id.endswith(".end")
            await asyncio.sleep(LEASE)
            assert not two.ended
            async with tab(there) as three:
                await two.until_end()
                assert reasons(two) == ["evicted"]
                await three.until_count(3, "message")


async def test_the_oldest_stream_of_all_processes_that_can_get_an_event_is_evicted(
    server: RedisServer,
) -> None:
    async with (
        processes(server, 3, max_streams_per_client=3) as (first, second, third),
        asked(first, PLAIN) as plain,
    ):
        await answer(plain)
        await asyncio.sleep(0.01)
        async with tab(second) as oldest:
            await oldest.until("message")
            await asyncio.sleep(0.01)
            async with tab(first) as newer, tab(third) as newest:
                await newest.until("message")
                await oldest.until_end()
                assert reasons(oldest) == ["evicted"]
                assert not (plain.ended or newer.ended or newest.ended)


@contextmanager
def clock_ahead(seconds: float) -> Iterator[None]:
    """Set the clock of this process forward."""
    with pytest.MonkeyPatch.context() as patched:
        now, now_ns = time.time, time.time_ns
        patched.setattr(time, "time", lambda: now() + seconds)
        patched.setattr(time, "time_ns", lambda: now_ns() + int(seconds * 1e9))
        yield


@pytest.mark.parametrize("is_emptied", [False, True])
async def test_the_oldest_stream_is_evicted_though_the_clocks_of_the_processes_differ(
    server: RedisServer, *, is_emptied: bool
) -> None:
    async with processes(server, max_streams_per_client=2) as (here, there):
        with clock_ahead(3600):
            oldest = tab(here)
            first = await oldest.__aenter__()
            await first.until("message")
        async with AsyncExitStack() as stack:
            stack.push_async_exit(oldest)
            second = await stack.enter_async_context(tab(there))
            await second.until("message")
            if is_emptied:
                server.client.flushall()
                await until(lambda: leases_in(server) == 2, "the leases are not restored")
            third = await stack.enter_async_context(tab(there))
            await third.until("message")
            await first.until_end()
            assert reasons(first) == ["evicted"]
            assert not (second.ended or third.ended)


def leases_in(server: RedisServer) -> int:
    """Return the number of leases that both keys of a client have."""
    counts: list[Any] = [
        server.client.zcard(key) for key in server.all_keys() if key.endswith((":leases", ":ages"))
    ]
    return min(counts) if len(counts) == 2 else 0


async def test_a_stream_that_waits_elsewhere_goes_when_its_client_opens_another(
    server: RedisServer,
) -> None:
    async with processes(server, limit_action="reject") as (here, there), tab(here) as one:
        await one.until("message")
        one.disconnect()
        await asyncio.sleep(0.1)
        assert one.task is not None
        assert not one.task.done()
        async with tab(there) as two:
            assert await answer(two) == LET_IN
            async with asyncio.timeout(HANG_SECONDS):
                await one.task


async def test_a_page_that_is_loaded_anew_is_let_in_by_another_process(
    server: RedisServer,
) -> None:
    async with processes(server, limit_action="reject") as apps, AsyncExitStack() as stack:
        page = None
        for number in range(4):
            if page is not None:
                page.disconnect()
            page = await stack.enter_async_context(tab(apps[number % 2]))
            assert await answer(page) == LET_IN
            await page.until("message")


async def test_while_redis_hangs_each_process_counts_alone_and_reports_it(
    server: RedisServer,
) -> None:
    registry = CollectorRegistry()
    async with (
        processes(server, registry=registry, max_streams_per_client=2) as (here, there),
        asked(here, PLAIN) as before,
    ):
        await answer(before)
        with hanging(server):
            began = time.monotonic()
            async with asked(here, PLAIN) as one:
                assert await answer(one) == LET_IN
                assert CALL_SECONDS <= time.monotonic() - began < 10 * CALL_SECONDS
                assert value(registry, "sse_store_errors_total", operation="limit") >= 1
                assert await opens(here, address="192.0.2.2") == LET_IN
                assert await opens(here) == MANY
                async with asked(there, PLAIN) as two, asked(there, PLAIN) as three:
                    assert await answer(two) == await answer(three) == LET_IN
                    assert await opens(there) == MANY
                await asyncio.sleep(1.5 * LEASE)
                assert not (before.ended or one.ended)
        async with asked(here, PLAIN) as one:
            await answer(one)

            def is_known() -> bool:
                keys = [key for key in server.all_keys() if key.endswith("leases")]
                return any(server.client.zcard(key) == 2 for key in keys)

            await until(is_known, "both leases were to be in Redis")
            await until_opening_is(MANY, there)


async def test_leases_are_restored_if_redis_was_emptied(server: RedisServer) -> None:
    async with processes(server) as (here, there), tab(here) as one:
        await one.until("message")
        server.client.flushall()
        server.client.script_flush()
        await until(lambda: bool(server.all_keys()), "the lease was to be renewed")
        assert await opens(there) == MANY
        assert not one.ended


async def test_a_client_that_leaves_during_a_request_to_redis_leaves_no_lease(
    server: RedisServer,
) -> None:
    async with processes(server, 1) as (app,):
        with hanging(server):
            for headers in (ANY, PLAIN):
                async with asked(app, headers) as one:
                    await asyncio.sleep(0.05)
                    assert one.task is not None
                    one.task.cancel()
        assert app._admission is not None
        assert len(app._admission.slots) == 0
        await until_opening_is(LET_IN, app)


@with_rate
async def test_keys_name_no_client_and_run_out(server: RedisServer) -> None:
    async with (
        processes(server, 1, redis_prefix="mine:", open_rate="9/minute") as (app,),
        asked(app, PLAIN, (b"authorization", b"Bearer swordfish")) as one,
    ):
        await answer(one)
        keys = server.all_keys()
        assert len(keys) == 3
        assert all(key.startswith("mine:1:") for key in keys)
        assert all(0 < server.client.pttl(key) <= 120_000 for key in keys)
        text = " ".join(keys)
        assert "swordfish" not in text
        assert "192.0.2" not in text


@with_rate
async def test_a_url_of_sentinels(server: RedisServer, tmp_path: Path) -> None:
    with sentinel_of(server, tmp_path) as sentinel:
        url = f"{url_of(sentinel)}?socket_timeout=30"
        async with processes(server, redis_url=url, open_rate=steady_rate(2)) as (here, there):
            async with asked(here, PLAIN) as one:
                assert await answer(one) == LET_IN
                assert await opens(there) == MANY
            assert await opens(there) == LET_IN
            assert await opens(here) == (429, "open_rate_exceeded")


@with_rate
async def test_the_rate_counts_for_all_processes_and_alone_while_redis_hangs(
    server: RedisServer,
) -> None:
    often = (429, "open_rate_exceeded")
    async with processes(server, open_rate=steady_rate(3), max_streams_per_client=None) as apps:
        got = [await opens(apps[number % 2]) for number in range(6)]
        assert got == [LET_IN] * 3 + [often] * 3
        assert await opens(apps[0], address="192.0.2.2") == LET_IN
        with hanging(server):
            began = time.monotonic()
            assert await opens(apps[0]) == LET_IN
            assert time.monotonic() - began < 10 * CALL_SECONDS
            got = [await opens(apps[0]) for _ in range(4)]
            assert got == [LET_IN] * 2 + [often] * 2


@with_rate
@pytest.mark.parametrize(
    "value",
    [b"\xff\xfe", b"null", b"{}", b"", b"1e999", ["x"], {"x"}, {"x": "y"}, {"entry": {"x": "y"}}],
    ids=repr,
)
async def test_a_key_that_another_program_has_written_breaks_no_request(
    server: RedisServer, value: Any
) -> None:
    limits: dict[str, Any] = {"open_rate": "100/minute", "max_streams_per_client": 5}
    async with processes(server, 2, **limits) as (here, there), asked(here, PLAIN) as one:
        await answer(one)
        keys = server.all_keys()
        assert len(keys) >= 2
        for key in keys:
            server.put(key, value)
        assert await opens(there) == LET_IN


async def test_an_answer_that_was_lost_is_asked_for_again_without_a_second_lease(
    server: RedisServer,
) -> None:
    breaker = circuit_breaker_for(server.patient_url, (), "limit", "")
    places = SlotPool(None, 2)
    held = Leases(server.patient_url, "sse:", places, 2, breaker)
    place = places.take("a", reads_end=True)
    assert await held.take(place, "nobody") == 1
    assert await held.take(place, "nobody") == 1
    other = places.take("a", reads_end=True)
    assert await held.take(other, "nobody") == 2
    assert await held.take(other, "e") == 2
    assert await held.take(places.take("a", reads_end=True), "nobody") is None
    held.hold(place)
    held.drop(place)
    held.drop(place)
    held.drop(other)
    await held.close()
    assert server.all_keys() == []


async def test_a_close_is_not_a_cancellation_of_a_request(server: RedisServer) -> None:
    breaker = circuit_breaker_for(server.patient_url, (), "limit", "")
    places = SlotPool(None, 2)
    held = Leases(server.patient_url, "sse:", places, 2, breaker)
    await held._secret.load()
    with server.stopped():
        taking = asyncio.ensure_future(held.take(places.take("a", reads_end=True), "nobody"))
        await until(lambda: held._queries._task is not None, "a query was to be sent")
        await held.close()
        with pytest.raises(StoreError):
            await taking
    assert taking.cancelling() == 0


async def test_renewals_do_not_close_the_circuit(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker = circuit_breaker_for(server.patient_url, (), "limit", "")
    places = SlotPool(None, 2)
    held = Leases(server.patient_url, "sse:", places, 2, breaker)
    one, other = (places.take(client, reads_end=True) for client in "ab")
    assert await held.take(one, "nobody") == 1
    monkeypatch.setattr(breaker, "_open_seconds", 1000.0)
    breaker.failed(TimeoutError())  # a request of another client
    held.hold(one)  # also renews, but nothing is due
    held.drop(one)
    await until(lambda: server.all_keys() == [], "the lease was to be given back")
    await until(lambda: held._task is None or held._task.done(), "nothing was to be left to do")
    with pytest.raises(StoreError, match="a moment ago"):
        await held.take(other, "nobody")
    await held.close()
