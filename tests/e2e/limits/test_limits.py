"""Limits that workers enforce together, with sockets, kills and a Redis that hangs."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager

import httpx2 as httpx
import pytest

from tests.support.raw_http import EVENTSOURCE
from tests.support.redis_server import RedisServer
from tests.support.servers import Server, serving
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

MOST = 20
PLAIN = {"accept": "text/event-stream"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def workers(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    environ = {
        "SSE_REDIS_URL": redis.url,
        "SSE_MAX_STREAMS_PER_CLIENT": str(MOST),
        "SSE_STREAM_MAX_SECONDS": "off",
        "SSE_LINGER_SECONDS": "1",
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                serving(
                    "uvicorn-httptools",
                    "tests.e2e.limits.app:app",
                    tmp_path_factory.mktemp("worker"),
                    environ,
                )
            )
            for _ in range(3)
        ]


class Connection:
    """A client's connection with one request on it.

    Attributes:
        status: the status of the response.
        head: the head of the response.
        received: the part of the body that was read.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.head = b""
        self.received = b""

    async def begin(self, headers: dict[str, str]) -> None:
        lines = [
            "GET /count?n=100000&pause=0.2 HTTP/1.1",
            "Host: localhost",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        self.head = await self._reader.readuntil(b"\r\n\r\n")
        self.status = int(self.head.split(b" ", 2)[1])

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while text not in self.received:
                data = await self._reader.read(1 << 16)
                assert data, self.received
                self.received += data

    async def close(self) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


async def opened(worker: Server, address: str, kind: dict[str, str] = PLAIN) -> Connection:
    """Open a stream for the client at an address; uvicorn trusts this header from 127.0.0.1."""
    connection = Connection(*await asyncio.open_connection("127.0.0.1", worker.port))
    await connection.begin({**kind, "x-forwarded-for": address})
    return connection


@asynccontextmanager
async def many(
    workers: list[Server], count: int, address: str
) -> AsyncGenerator[list[tuple[Server, Connection]]]:
    """Open streams of one client on all workers at once, and keep those that are admitted."""
    asked = [workers[number % len(workers)] for number in range(count)]
    answers = await asyncio.gather(*(opened(worker, address) for worker in asked))
    assert {one.status for one in answers} <= {200, 429}
    refused = [one for one in answers if one.status == 429]
    assert all(b"retry-after: 5" in one.head for one in refused)
    await asyncio.gather(*(one.close() for one in refused))
    admitted = [(at, one) for at, one in zip(asked, answers, strict=True) if one.status == 200]
    try:
        yield admitted
    finally:
        await asyncio.gather(*(one.close() for _, one in admitted))


def store_errors(worker: Server) -> float:
    text = httpx.get(f"{worker.url}/metrics", timeout=HANG_SECONDS).text
    found = re.search(r'^sse_store_errors_total\{operation="limit"\} (\S+)', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def until_admitted(worker: Server, address: str) -> Connection:
    """Retry until a stream is admitted."""
    async with asyncio.timeout(HANG_SECONDS):
        while (one := await opened(worker, address)).status == 429:
            await one.close()
            await asyncio.sleep(0.05)
        return one


async def until_counted_in_redis(worker: Server, redis: RedisServer, network: str) -> None:
    """Wait until a worker counts its streams in Redis again.

    A stream that opens while the circuit is open is in Redis after the next renewal, so each of
    several streams must be there at once.
    """
    successes, number = 0, 0
    async with asyncio.timeout(HANG_SECONDS):
        while successes < 3:
            number += 1
            before = set(redis.all_keys())
            one = await opened(worker, f"{network}.{number % 250}")
            successes = successes + 1 if set(redis.all_keys()) - before else 0
            await one.close()
            await asyncio.sleep(0.1)


async def test_of_two_hundred_streams_at_once_exactly_the_limit_is_admitted(
    workers: list[Server],
) -> None:
    async with many(workers, 200, "192.0.2.1") as admitted:
        assert len(admitted) == MOST
        for _, one in admitted[:5]:
            await one.close()
        more = [await until_admitted(workers[number % 3], "192.0.2.1") for number in range(5)]
        async with many(workers, 30, "192.0.2.1") as too_many:
            assert too_many == []
        await asyncio.gather(*(one.close() for one in more))
        async with many(workers, 30, "192.0.2.2") as others:
            assert len(others) == MOST


async def test_any_worker_admits_a_page_that_is_reloaded(workers: list[Server]) -> None:
    async with many(workers, MOST - 1, "192.0.2.3") as rest:
        assert len(rest) == MOST - 1
        page = await opened(workers[0], "192.0.2.3", EVENTSOURCE)
        for number in range(1, 5):
            await page.until(b"data: 0\n")
            await page.close()
            page = await opened(workers[number % 3], "192.0.2.3", EVENTSOURCE)
            assert page.status == 200
        await page.until(b"data: 0\n")
        assert not any(one._reader.at_eof() for _, one in rest)
        await page.close()


async def test_the_oldest_tab_is_evicted_on_another_worker(workers: list[Server]) -> None:
    tabs = [await opened(workers[n % 3], "192.0.2.4", EVENTSOURCE) for n in range(MOST)]
    one_more = await opened(workers[0], "192.0.2.4", EVENTSOURCE)
    assert one_more.status == 200
    await one_more.until(b"data: 0\n")
    await tabs[0].until(b'"reason":"evicted"')
    await tabs[0].until(b".end\n")
    await tabs[1].until(b"data: 3\n")
    for one in (*tabs, one_more):
        await one.close()


async def test_workers_count_alone_while_redis_hangs(
    workers: list[Server], redis: RedisServer
) -> None:
    before = [store_errors(worker) for worker in workers]
    with redis.stopped():
        one = await opened(workers[0], "192.0.2.5")
        assert one.status == 200
        async with many(workers, 150, "192.0.2.5") as admitted:
            assert len(admitted) == 3 * MOST - 1
        await one.close()
    assert all(store_errors(worker) > at for worker, at in zip(workers, before, strict=True))
    for number, worker in enumerate(workers):
        await until_counted_in_redis(worker, redis, f"198.51.{number}")


async def test_the_slots_of_a_worker_that_is_killed_are_free_after_its_lease(
    workers: list[Server],
) -> None:
    streams = [await opened(workers[number % 3], "192.0.2.6") for number in range(MOST)]
    assert [one.status for one in streams] == [200] * MOST
    lost = len(streams[2::3])
    workers[2].process.kill()
    early = await opened(workers[0], "192.0.2.6")
    assert early.status == 429
    await early.close()
    streams += [await until_admitted(workers[n % 2], "192.0.2.6") for n in range(lost)]
    async with many(workers[:2], 10, "192.0.2.6") as more:
        assert more == []
    await asyncio.gather(*(one.close() for one in streams))
