"""Streams behind express with compression, in place of Next's rewrites, which compress as it does.

What the proxy compresses, it holds back until its buffer is full or the response has ended.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx2 as httpx
import pytest

from tests.support import needs
from tests.support.event_source import events_in
from tests.support.ports import free_port
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import running_process, serving, wait_until_listening
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Site(NamedTuple):
    """The proxy, and the app behind it."""

    proxy: str
    app: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("proxy")
    script = str(needs.NODE_CLIENTS / "express-proxy.mjs")
    port = free_port()
    with serving("uvicorn-httptools", "tests.e2e.matrix.proxied_app:app", directory) as server:
        environ = {"PORT": str(port), "TARGET": server.url}
        log = directory / "proxy.log"
        with running_process([needs.node(), script], log, environ) as (process, _):
            wait_until_listening(port, process, log)
            yield Site(f"http://127.0.0.1:{port}", server.url)


@dataclass
class Reading:
    """A response, as it arrives, decoded."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    status: int = 0

    @property
    def data(self) -> list[str]:
        return [event.data for event in events_in(self.body) if event.type == "message"]


@asynccontextmanager
async def reading(url: str, **headers: str) -> AsyncIterator[Reading]:
    """Read a response until the block ends, and then to its end."""
    found = Reading()

    async def read() -> None:
        async with (
            httpx.AsyncClient(timeout=HANG_SECONDS) as client,
            client.stream(
                "GET", url, headers={**EVENTSOURCE, "accept-encoding": "gzip", **headers}
            ) as response,
        ):
            found.headers, found.status = dict(response.headers), response.status_code
            async for part in response.aiter_bytes():
                found.body += part

    task = asyncio.create_task(read())
    try:
        yield found
        await task
    finally:
        task.cancel()


async def release(site: Site, key: str) -> None:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        await client.get(f"{site.app}/release?key={key}")


async def until_first(found: Reading) -> None:
    await until(lambda: "1" in found.data, lambda: f"the first event is held back: {found}")


async def test_the_proxy_compresses_and_holds_back_what_nothing_forbids(site: Site) -> None:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        answer = await client.get(f"{site.proxy}/document", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    for path in ("unmarked", "library"):  # of which the second one sends `no-store`
        async with (
            reading(f"{site.app}/{path}?key={path}") as direct,
            reading(f"{site.proxy}/{path}?key={path}") as found,
        ):
            await until_first(direct)
            await asyncio.sleep(0.3)
            assert found.data == []
            await release(site, path)
        assert found.headers["content-encoding"] == "gzip"
        assert found.data == direct.data == ["1", "2"]


@pytest.mark.parametrize("path", ["marked", "marked/library"])
async def test_a_marked_stream_passes_at_once(site: Site, path: str) -> None:
    key = f"fresh-{path.replace('/', '-')}"
    async with reading(f"{site.proxy}/{path}?key={key}") as found:
        await until_first(found)
        await release(site, key)
    assert "content-encoding" not in found.headers
    assert "no-transform" in found.headers["cache-control"]
    assert found.data == ["1", "2"]


async def test_a_resumed_stream_passes_at_once(site: Site) -> None:
    url = f"{site.proxy}/marked?key=again"
    async with reading(url) as first:
        await until_first(first)
        start = next(event for event in events_in(first.body) if event.type == "start")
        async with (
            reading(url, **{"last-event-id": start.last_event_id}) as again,
            reading(f"{site.proxy}/marked/by-name/again") as named,
        ):
            for found in (again, named):
                await until_first(found)
            await release(site, "again")
    for found in (again, named):
        assert "content-encoding" not in found.headers
        assert {"no-store", "no-transform"} <= set(found.headers["cache-control"].split(", "))
        assert found.data == ["1", "2"]


async def test_a_stream_that_cannot_be_resumed_passes_at_once(site: Site) -> None:
    unknown = {"last-event-id": "A" * 22 + "-3"}
    async with reading(f"{site.proxy}/marked?key=unknown", **unknown) as found:
        await until_first(found)
        await release(site, "unknown")
    assert "content-encoding" not in found.headers
    assert next(event.type for event in events_in(found.body)) == "reset"
