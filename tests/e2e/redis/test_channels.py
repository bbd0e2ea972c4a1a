"""The example's agent: web processes, workers in processes of their own, a Redis between them."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from itertools import count, groupby
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx2 as httpx
import pytest

from example_app.search import SearchIndex, load_passages
from sse_middleware import Event, EventParser
from tests.support.redis_server import RedisServer
from tests.support.servers import running_process, until_logged

pytestmark = pytest.mark.anyio

QUESTION = "What is the global interpreter lock?"
NAMED = {"accept": "text/event-stream;events=named"}
SESSIONS = "/v1/react/sessions"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Site:
    """Two web processes and a Redis; workers come and go.

    Attributes:
        webs: their addresses.

    Args:
        directory: for logs.
        redis: which they share.
        stack: ends the web processes.
        ack: how many seconds each web process waits for a worker.
        idle: how many seconds both wait for its next word.
    """

    def __init__(
        self,
        directory: Path,
        redis: RedisServer,
        stack: ExitStack,
        *,
        ack: tuple[str, ...] = ("20", "1"),
        idle: str = "2",
    ) -> None:
        self._directory = directory
        self._environ = {
            "SSE_REDIS_URL": redis.url,
            "EXAMPLE_IDLE_SECONDS": idle,
            "EXAMPLE_WORD_SECONDS": "0.01",
        }
        self._numbers = count()
        self._workers: list[tuple[ExitStack, Popen[bytes]]] = []
        stack.callback(self.workers, 0)
        logs = [
            stack.enter_context(self._runs("example_app", "--port", "0", ack=seconds))[1]
            for seconds in ack
        ]
        self.webs = [until_logged(log, r"http://\S+?:\d+") for log in logs]

    def workers(self, number: int, *, ready: bool = True) -> list[Popen[bytes]]:
        """Have so many workers, no more and no less, and return them."""
        dead = [one for one in self._workers if one[1].poll() is not None]
        living = [one for one in self._workers if one not in dead]
        self._workers = living[:number]
        for stack, _ in (*dead, *living[number:]):
            stack.close()
        while len(self._workers) < number:
            stack = ExitStack()
            process, log = stack.enter_context(self._runs("example_app.worker"))
            self._workers.append((stack, process))
            if ready:
                until_logged(log, "waits for jobs")
        return [process for _, process in self._workers]

    @contextmanager
    def _runs(
        self, module: str, *arguments: str, ack: str = "20"
    ) -> Iterator[tuple[Popen[bytes], Path]]:
        log = self._directory / f"{next(self._numbers)}.log"
        environ = {**self._environ, "EXAMPLE_ACK_SECONDS": ack}
        with running_process([sys.executable, "-m", module, *arguments], log, environ) as found:
            yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("agent")
    with RedisServer(directory) as redis, ExitStack() as stack:
        yield Site(directory, redis, stack)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        yield client


@pytest.fixture(scope="module")
def answer() -> str:
    return SearchIndex(load_passages()).answer(QUESTION).text


async def ask(client: httpx.AsyncClient, web: str, question: str = QUESTION) -> list[Any]:
    """Return what a session's events say, name and payload."""
    body = {"user_query": question, "model_alias": "any"}
    response = await client.post(web + SESSIONS, json=body)
    assert response.status_code == 200, response.text
    events = EventParser().feed(response.content)
    assert {event.event for event in events} <= {"message"}
    said = [json.loads(event.data) for event in events]
    assert all(one.keys() == {"event_type", "payload"} for one in said)
    return [(one["event_type"], one["payload"]) for one in said]


def whole_session(question: str, answer: str) -> list[Any]:
    return [
        ("worker_ack", {}),
        *(("AgentThoughtStream", {"char": it}) for it in f"I search for: {question}"),
        ("AgentToolCallStart", {"tool_name": "search_documentation"}),
        *(("FinalAnswerStream", {"char": it}) for it in answer),
        ("FinalAnswerStreamEnd", {}),
    ]


async def test_a_worker_that_never_comes_is_told_of(site: Site, client: httpx.AsyncClient) -> None:
    site.workers(0)
    ((name, payload),) = await ask(client, site.webs[1])
    assert name == "error"
    assert payload.keys() == {"error"}
    assert payload["error"]["code"] == "worker_timeout"


async def test_a_browser_may_come_before_the_worker(
    site: Site, client: httpx.AsyncClient, answer: str
) -> None:
    site.workers(0)
    asking = asyncio.ensure_future(ask(client, site.webs[0]))
    await asyncio.sleep(0.5)
    site.workers(1, ready=False)
    assert await asking == whole_session(QUESTION, answer)


async def test_two_workers_do_each_job_once(
    site: Site, client: httpx.AsyncClient, answer: str
) -> None:
    site.workers(2)
    sessions = await asyncio.gather(*(ask(client, site.webs[number % 2]) for number in range(24)))
    for session in sessions:
        assert session == whole_session(QUESTION, answer)


async def events(
    client: httpx.AsyncClient, web: str, headers: dict[str, str] | None = None
) -> AsyncGenerator[Event, None]:
    """Hand out what a client dispatches, while it comes."""
    body = {"user_query": QUESTION, "model_alias": "any"}
    parser = EventParser()
    async with client.stream("POST", web + SESSIONS, json=body, headers=headers) as response:
        assert response.status_code == 200
        async for chunk in response.aiter_bytes():
            for event in parser.feed(chunk):
                yield event


async def test_a_reader_that_is_cut_gets_the_rest_from_another_process(
    site: Site, client: httpx.AsyncClient, answer: str
) -> None:
    said: list[Any] = []
    cursor = ""
    site.workers(2)
    for number, web in enumerate((*site.webs, *site.webs), 1):
        stream = events(client, web, {**NAMED, "last-event-id": cursor} if cursor else NAMED)
        async with aclosing(stream):
            async for event in stream:
                cursor = event.id or cursor
                if event.event == "message":
                    one = json.loads(event.data)
                    said.append((one["event_type"], one["payload"]))
                if number < 4 and len(said) == 50 * number:
                    break
    assert said == whole_session(QUESTION, answer)


async def test_a_worker_that_dies_half_way_is_told_of(
    site: Site, client: httpx.AsyncClient
) -> None:
    (worker,) = site.workers(1)
    names: list[str] = []
    async for event in events(client, site.webs[0]):
        said = json.loads(event.data)
        names.append(said["event_type"])
        if len(names) == 20:
            worker.kill()
    assert [name for name, _ in groupby(names)] == ["worker_ack", "AgentThoughtStream", "error"]
    assert said["payload"]["error"]["code"] == "idle_timeout"


async def test_what_fails_before_the_stream_is_told_as_detail(
    site: Site, client: httpx.AsyncClient
) -> None:
    for body in ({"user_query": " "}, {"model_alias": "any"}, {"user_query": "x" * 1001}):
        response = await client.post(site.webs[0] + SESSIONS, json=body)
        assert response.status_code == 422
        assert response.json().keys() == {"detail"}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_thousand_sessions_at_once_each_get_all_of_their_own(
    tmp_path: Path, answer: str
) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        with RedisServer(tmp_path) as redis, ExitStack() as stack:
            site = Site(tmp_path, redis, stack, ack=("120", "120"), idle="120")
            site.workers(2)
            sessions = await asyncio.gather(
                *(ask(client, site.webs[number % 2]) for number in range(1000)),
                return_exceptions=True,
            )
    whole = whole_session(QUESTION, answer)
    wrong = [session for session in sessions if session != whole]
    assert not wrong, (len(wrong), str(wrong[0])[-300:])
