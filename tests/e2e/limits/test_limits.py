"""Limits that real workers keep together, through sockets, kills and a Redis that hangs."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager

import httpx2 as httpx
import pytest

from tests.support.redis_server import RedisServer
from tests.support.servers import Server, serving

pytestmark = pytest.mark.anyio

MOST = 20
LEASE_SECONDS = 2.0
PLAIN = {"accept": "text/event-stream"}
EVENTSOURCE = {"accept": "text/event-stream", "cache-control": "no-cache"}


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
        status: that of the answer.
        head: of the answer.
        received: what of the body has been read.
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
        async with asyncio.timeout(10):
            while text not in self.received:
                data = await self._reader.read(1 << 16)
                assert data, self.received
                self.received += data

    async def close(self) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


async def opened(worker: Server, address: str, kind: dict[str, str] = PLAIN) -> Connection:
    """Open a stream for the client at an address; uvicorn believes whoever is on its machine."""
    connection = Connection(*await asyncio.open_connection("127.0.0.1", worker.port))
    await connection.begin({**kind, "x-forwarded-for": address})
    return connection


@asynccontextmanager
async def many(
    workers: list[Server], count: int, address: str
) -> AsyncGenerator[list[tuple[Server, Connection]]]:
    """Open streams of one client on all workers at once, and keep those that are let in."""
    asked = [workers[number % len(workers)] for number in range(count)]
    answers = await asyncio.gather(*(opened(worker, address) for worker in asked))
    assert {one.status for one in answers} <= {200, 429}
    refused = [one for one in answers if one.status == 429]
    assert all(b"retry-after: 5" in one.head for one in refused)
    await asyncio.gather(*(one.close() for one in refused))
    let_in = [(at, one) for at, one in zip(asked, answers, strict=True) if one.status == 200]
    try:
        yield let_in
    finally:
        await asyncio.gather(*(one.close() for _, one in let_in))


def store_errors(worker: Server) -> float:
    text = httpx.get(f"{worker.url}/metrics").text
    found = re.search(r'^sse_store_errors_total\{operation="limit"\} (\S+)', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_of_two_hundred_at_once_exactly_as_many_are_let_in_as_may_be(
    workers: list[Server],
) -> None:
    async with many(workers, 200, "192.0.2.1") as let_in:
        assert len(let_in) == MOST
        for _, one in let_in[:5]:
            await one.close()
        await asyncio.sleep(0.5)
        async with many(workers, 30, "192.0.2.1") as more:
            assert len(more) == 5
        async with many(workers, 30, "192.0.2.2") as others:
            assert len(others) == MOST


async def test_a_page_that_is_loaded_anew_is_let_in_by_any_worker(workers: list[Server]) -> None:
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


async def test_the_oldest_tab_ends_on_another_worker(workers: list[Server]) -> None:
    tabs = [await opened(workers[n % 3], "192.0.2.4", EVENTSOURCE) for n in range(MOST)]
    one_more = await opened(workers[0], "192.0.2.4", EVENTSOURCE)
    assert one_more.status == 200
    await one_more.until(b"data: 0\n")
    await tabs[0].until(b'"reason":"evicted"')
    await tabs[0].until(b".end\n")
    await tabs[1].until(b"data: 3\n")
    for one in (*tabs, one_more):
        await one.close()


async def test_while_redis_hangs_workers_count_alone_after_a_quarter_of_a_second(
    workers: list[Server], redis: RedisServer
) -> None:
    before = [store_errors(worker) for worker in workers]
    with redis.stopped():
        began = time.monotonic()
        one = await opened(workers[0], "192.0.2.5")
        took = time.monotonic() - began
        assert one.status == 200
        assert took < 0.6  # a quarter of a second, on a machine that is busy
        async with many(workers, 150, "192.0.2.5") as let_in:
            assert len(let_in) == 3 * MOST - 1
        await one.close()
    assert all(store_errors(worker) > at for worker, at in zip(workers, before, strict=True))
    await asyncio.sleep(1.5)


async def test_a_worker_that_is_killed_gives_its_places_back_within_the_lease(
    workers: list[Server],
) -> None:
    streams = [await opened(workers[number % 3], "192.0.2.6") for number in range(MOST)]
    assert [one.status for one in streams] == [200] * MOST
    lost = len(streams[2::3])
    workers[2].process.kill()
    died = time.monotonic()
    while sum(one.status == 200 for one in streams) < MOST + lost:
        assert time.monotonic() < died + LEASE_SECONDS + 1
        streams.append(await opened(workers[len(streams) % 2], "192.0.2.6"))
    assert time.monotonic() > died + LEASE_SECONDS / 2 - 0.1
    async with many(workers[:2], 10, "192.0.2.6") as more:
        assert more == []
    await asyncio.gather(*(one.close() for one in streams))
