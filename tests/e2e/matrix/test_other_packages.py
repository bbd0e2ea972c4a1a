"""The README's comparison with other packages, cell by cell, with the versions that it names."""

import asyncio
import importlib.metadata
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support import needs
from tests.support.servers import Server, serving
from tests.support.waiting import HANG_SECONDS, wait_until

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio
README = (needs.REPOSITORY / "README.md").read_text()
PACKAGES = ("fastapi", "sse-starlette", "assistant-stream", "fastapi-resumable-stream", "marked")
OTHERS = PACKAGES[:-1]
ANN = {"authorization": "Bearer ann"}


def row(title: str) -> dict[str, str]:
    """Return the cells of a row by package."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {title} |")]
    return dict(zip(PACKAGES, (cell.strip() for cell in line.split("|")[2:-1]), strict=True))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def _versions_of_the_readme() -> None:
    (head,) = [line for line in README.splitlines() if line.startswith("| | FastAPI's own")]
    for package, version in zip(OTHERS, re.findall(r"\(([\d.]+)\)", head), strict=True):
        installed = importlib.metadata.version(package)
        if not f"{installed}.".startswith(f"{version}."):
            pytest.skip(f"the README compares {package} {version}, and {installed} is installed")


@contextmanager
def served(directory: Path, redis: "RedisServer") -> Iterator[Server]:
    app = "tests.e2e.matrix.other_packages_app:app"
    environ = {"SSE_REDIS_URL": redis.patient_url}
    with serving("uvicorn-httptools", app, directory, environ) as server:
        yield server
        server.process.kill()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, running_server: "RedisServer"
) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("server"), running_server) as it:
        yield it


class Answer:
    """What a client has received of one answer.

    Attributes:
        numbers: the numbers in its events.
        is_complete: whether the response has ended as one that is complete.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._chunks = response.aiter_text()
        self._text = ""
        self.is_complete = False

    @property
    def numbers(self) -> list[int]:
        return [int(a or b) for a, b in re.findall(r'data: (\d+)\r?\n|Delta": "(\d+)"', self._text)]

    async def read(self, events: int | None = None) -> None:
        """Read to the end, or until it has a number of events."""
        try:
            async for text in self._chunks:
                self._text += text
                if events is not None and len(self.numbers) >= events:
                    return
            self.is_complete = True
        except httpx.TransportError:
            pass


@asynccontextmanager
async def request(
    server: Server, method: str, path: str, headers: dict[str, str] = ANN
) -> AsyncIterator[Answer]:
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=HANG_SECONDS, headers=headers) as client,
        client.stream(method, path) as response,
    ):
        yield Answer(response)


async def read(server: Server, method: str, path: str) -> Answer:
    async with request(server, method, path) as answer:
        await answer.read()
    return answer


def ends(server: Server, package: str) -> list[str]:
    runs: dict[str, list[str]] = httpx.get(f"{server.url}/runs", timeout=HANG_SECONDS).json()
    return runs.get(package, [])


async def end_of_next_run(server: Server, package: str, before: int) -> str:
    def has_ended() -> bool:
        return len(ends(server, package)) > before

    await asyncio.to_thread(wait_until, has_ended, f"a run of {package} does not end")
    return ends(server, package)[before]


@pytest.mark.parametrize("package", PACKAGES)
async def test_what_an_app_does_whose_client_is_cut(server: Server, package: str) -> None:
    before = len(ends(server, package))
    async with request(server, "POST", f"/{package}/leaves") as answer:
        await answer.read(5)
    end = await end_of_next_run(server, package, before)
    said = row("the client is cut: the app")[package]
    assert end == ("finished" if said.startswith("continues") else "stopped")


@pytest.mark.parametrize("package", PACKAGES)
async def test_what_a_client_gets_that_returns(server: Server, package: str) -> None:
    async with request(server, "POST", f"/{package}/returns?events=30") as answer:
        await answer.read(5)
    got = len(answer.numbers)
    again = await read(server, "GET", f"/{package}/returns?after={got}&events=30")
    said = row("the client returns: it gets")[package]
    expected = range(got if "after" in said else 0, 30)
    assert again.numbers == list(expected)
    assert again.is_complete


async def test_another_user_does_not_get_a_marked_answer(server: Server) -> None:
    async with request(server, "POST", "/marked/foreign?events=60") as answer:
        await answer.read(2)
        async with request(server, "GET", "/marked/foreign", {"authorization": "bob"}) as other:
            await other.read()
    assert other.numbers == []
    assert row("to another user, the answer is")["marked"] == "unknown"


@pytest.mark.parametrize("package", PACKAGES[2:])
async def test_a_stop_ends_the_run(server: Server, package: str) -> None:
    before = len(ends(server, package))
    async with request(server, "POST", f"/{package}/stops?events=1000") as answer:
        await answer.read(2)
        await read(server, "DELETE", f"/{package}/stops")
        assert await end_of_next_run(server, package, before) == "stopped"


@pytest.mark.parametrize("package", PACKAGES)
async def test_what_a_shutdown_does(
    package: str, tmp_path: Path, running_server: "RedisServer"
) -> None:
    with served(tmp_path, running_server) as server:
        async with request(server, "POST", f"/{package}/term?events=30") as answer:
            await answer.read(3)
            server.process.send_signal(signal.SIGTERM)
            await answer.read()
    said = row("SIGTERM: uvicorn")[package]
    assert (len(answer.numbers) == 30) == said.startswith("waits")


@pytest.mark.parametrize("package", PACKAGES)
async def test_what_a_failure_of_redis_does(
    package: str, tmp_path: Path, running_server: "RedisServer"
) -> None:
    with served(tmp_path, running_server) as server:
        async with request(server, "POST", f"/{package}/redis?events=40") as answer:
            await answer.read(3)
            running_server.kill()
            try:
                await answer.read()
            finally:
                running_server.start()
    said = row("Redis fails: the answer")[package]
    assert (len(answer.numbers) == 40) == (said != "is cut")


def test_the_comments_of_a_silent_connection() -> None:
    said = row("a silent connection gets")
    assert f"{needs.module('fastapi.sse')._PING_INTERVAL:.0f} s" in said["fastapi"]
    response = needs.module("sse_starlette").EventSourceResponse
    assert f"{response.DEFAULT_PING_INTERVAL} s" in said["sse-starlette"]
