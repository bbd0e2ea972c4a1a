"""The programs of docs/frameworks.md, each on a real server."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import Server, serving
from tests.support.waiting import HANG_SECONDS

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
FRAMEWORKS = {
    "Starlette": "starlette",
    "FastAPI": "fastapi",
    "Litestar": "litestar",
    "Django": "django",
    "Quart": "quart",
    "Plain ASGI": "starlette",
}
"""The package that each section of the page needs."""
WORDS = ["to", "be", "continued"]
NAMED = ("Django", "Quart", "Plain ASGI")
"""The frameworks whose routes the middleware does not know."""
DJANGO = {
    "project/__init__.py": "",
    "project/settings.py": (
        "SECRET_KEY = 'docs'\nALLOWED_HOSTS = ['*']\nROOT_URLCONF = 'project.urls'\n"
    ),
    "project/urls.py": (
        "from django.urls import path\nfrom project import views\n"
        "urlpatterns = [path('answers', views.answers)]\n"
    ),
}
"""The other files of a project of Django."""
ENVIRON = {"SSE_DRAIN_SECONDS": "0.2"}


class Read(NamedTuple):
    """The part of a stream that a client has read."""

    events: list[Event]
    body: bytes

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]

    @property
    def words(self) -> list[str]:
        return [event.data for event in self.events if event.event == "message"]

    @property
    def reason(self) -> str:
        return str(json.loads(self.events[-1].data)["reason"])


def programs(heading: str) -> list[str]:
    """Return the programs of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found


def write(heading: str, directory: Path, *, change: Callable[[str], str] = str) -> str:
    """Write the files of a section, and return the app."""
    files: dict[str, str] = {**DJANGO} if heading == "Django" else {}
    for program in programs(heading):
        (name,) = re.findall(r"\A# (\S+\.py)\n", program) or ["app.py"]
        files[name] = change(program)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return "project.asgi:application" if heading == "Django" else "app:app"


@contextmanager
def served(
    heading: str, directory: Path, *, change: Callable[[str], str] = str
) -> Iterator[Server]:
    """Serve the program of a section."""
    for package in ("uvicorn", FRAMEWORKS[heading]):
        pytest.importorskip(package, reason=f"this environment has no {package}")
    app = write(heading, directory, change=change)
    more = ("--app-dir", str(directory))
    with serving("uvicorn-h11", app, directory, ENVIRON, *more) as server:
        yield server


async def read(
    server: Server, headers: dict[str, str], *, until: Callable[[Read], bool] | None = None
) -> Read:
    """Read the stream to its end, or until a condition holds; then disconnect."""
    parser, found = EventParser(), Read([], b"")
    async with (
        httpx.AsyncClient(timeout=HANG_SECONDS) as client,
        client.stream("GET", f"{server.url}/answers", headers=headers) as response,
    ):
        assert response.status_code == 200
        async for chunk in response.aiter_raw():
            found = Read(found.events + parser.feed(chunk), found.body + chunk)
            if until is not None and until(found):
                break
    return found


def test_the_page_has_a_section_for_each_framework() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == list(FRAMEWORKS)


@pytest.mark.parametrize("heading", FRAMEWORKS)
def test_a_program_streams_resumes_and_drains(heading: str, tmp_path: Path) -> None:
    async def run(server: Server) -> None:
        plain, cut = await asyncio.gather(
            read(server, {"accept": "*/*"}),
            read(server, EVENTSOURCE, until=lambda found: bool(found.words)),
        )
        assert plain.body.replace(b"\r\n", b"\n") == b"".join(
            b"data: %s\n\n" % word.encode() for word in WORDS
        )
        assert cut.names == ["start", "message"]
        resumed = await read(server, {**EVENTSOURCE, "last-event-id": cut.events[-1].id or ""})
        assert json.loads(resumed.events[0].data)["resumed"]
        assert cut.words + resumed.words == WORDS
        assert (resumed.names[-1], resumed.reason) == ("complete", "finished")
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            metrics = (await client.get(f"{server.url}/metrics")).text
        routes = set(re.findall(r'^sse_streams_total\{.*route="([^"]+)"', metrics, re.MULTILINE))
        assert routes == {"answers" if heading in NAMED else "/answers"}

        def stop(found: Read) -> bool:
            if len(found.words) == 1:
                server.process.terminate()
            return False

        stopped = await read(server, EVENTSOURCE, until=stop)
        assert (stopped.names[-1], stopped.reason) == ("complete", "shutdown")
        await asyncio.to_thread(server.process.wait, HANG_SECONDS)

    with served(heading, tmp_path) as server:
        asyncio.run(run(server))
        assert "Traceback" not in server.log_text()


def test_in_the_list_of_litestar_the_middleware_serves_no_metrics(tmp_path: Path) -> None:
    def change(program: str) -> str:
        assert "SSEMiddleware(Litestar([answers]), mark=" in program
        program = program.replace(
            'SSEMiddleware(Litestar([answers]), mark="/answers")',
            "Litestar([answers], middleware=[DefineMiddleware(SSEMiddleware, mark='/answers')])",
        )
        return f"from litestar.middleware import DefineMiddleware\n{program}"

    async def run(server: Server) -> None:
        found = await read(server, EVENTSOURCE)
        assert (found.words, found.reason) == (WORDS, "finished")
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            assert (await client.get(f"{server.url}/metrics")).status_code == 404

    with served("Litestar", tmp_path, change=change) as server:
        asyncio.run(run(server))


def test_a_timeout_of_quart_ends_a_stream_that_sends_events(tmp_path: Path) -> None:
    def change(program: str) -> str:
        assert "response.timeout = None" in program
        return program.replace("response.timeout = None", "response.timeout = 1.5")

    with (
        served("Quart", tmp_path, change=change) as server,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        asyncio.run(read(server, EVENTSOURCE))


def test_a_synchronous_generator_makes_django_collect_the_answer(tmp_path: Path) -> None:
    def change(program: str) -> str:
        synchronous = program.replace("async def words", "def words")
        return synchronous.replace("await asyncio.sleep(1)", "pass")

    with served("Django", tmp_path, change=change) as server:
        asyncio.run(read(server, EVENTSOURCE))
        assert "must consume synchronous iterators" in server.log_text()
