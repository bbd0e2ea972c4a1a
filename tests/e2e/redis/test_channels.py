"""The agent of the example: web processes and worker processes that share a Redis."""

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
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

QUESTION = "What is the global interpreter lock?"
NAMED = {"accept": "text/event-stream;events=named"}
SESSIONS = "/v1/react/sessions"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Site:
    """Three web processes and a Redis, with any number of workers.

    Attributes:
        webs: the addresses of two web processes.
        impatient: the address of a web process that soon reports a worker as missing.

    Args:
        directory: for logs.
        redis: of all processes.
        stack: ends the web processes.
    """

    def __init__(
        self,
        directory: Path,
        redis: RedisServer,
        stack: ExitStack,
    ) -> None:
        self._directory = directory
        self._environ = {
            "SSE_REDIS_URL": redis.patient_url,
            "EXAMPLE_WORD_SECONDS": "0.01",
        }
        self._numbers = count()
        self._workers: list[tuple[ExitStack, Popen[bytes]]] = []
        stack.callback(self.workers, 0)
        logs = [
            stack.enter_context(self._runs("example_app", "--port", "0", timeout=seconds))[1]
            for seconds in (120, 120, 3)
        ]
        *self.webs, self.impatient = (until_logged(log, r"http://\S+?:\d+") for log in logs)

    def workers(self, number: int, *, ready: bool = True) -> list[Popen[bytes]]:
        """Start or end workers until there are `number`, and return them."""
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
                until_logged(log, "The worker is ready")
        return [process for _, process in self._workers]

    @contextmanager
    def _runs(
        self, module: str, *arguments: str, timeout: int = 120
    ) -> Iterator[tuple[Popen[bytes], Path]]:
        log = self._directory / f"{next(self._numbers)}.log"
        environ = {
            **self._environ,
            "EXAMPLE_ACK_SECONDS": str(timeout),
            "EXAMPLE_IDLE_SECONDS": str(timeout),
        }
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
    async with httpx.AsyncClient(timeout=HANG_SECONDS, limits=limits) as client:
        yield client


@pytest.fixture(scope="module")
def answer() -> str:
    return SearchIndex(load_passages()).answer(QUESTION).text


async def ask(
    client: httpx.AsyncClient, web: str, question: str = QUESTION, alias: str = "smart_agent"
) -> list[Any]:
    """Return the events of a session, each as its name and payload."""
    body = {"user_query": question, "model_alias": alias}
    response = await client.post(web + SESSIONS, json=body)
    assert response.status_code == 200, response.text
    events = EventParser().feed(response.content)
    assert {event.event for event in events} <= {"message"}
    found = [json.loads(event.data) for event in events]
    assert all(one.keys() == {"event_type", "payload"} for one in found)
    return [(one["event_type"], one["payload"]) for one in found]


def whole_session(question: str, answer: str) -> list[Any]:
    return [
        ("worker_ack", {}),
        *(("AgentThoughtStream", {"char": it}) for it in f"I search for: {question}"),
        ("AgentToolCallStart", {"tool_name": "search_documentation"}),
        *(("FinalAnswerStream", {"char": it}) for it in answer),
        ("FinalAnswerStreamEnd", {}),
    ]


async def test_a_search_is_resumed_by_another_web_process(
    site: Site, client: httpx.AsyncClient
) -> None:
    body, events, parser = {"query": QUESTION}, list[Event](), EventParser()
    headers = {"accept": "text/event-stream"}
    first, second = (f"{web}/search?delay_ms=5" for web in site.webs)
    async with client.stream("POST", first, headers=headers, json=body) as response:
        async for data in response.aiter_bytes():
            events += parser.feed(data)
            if len(events) > 5:
                break
    headers["last-event-id"] = events[4].id or ""
    response = await client.post(second, headers=headers, json=body)
    rest = EventParser().feed(response.content)
    assert rest[0] == events[5]
    ids = [event.id or "" for event in (*events[:5], *rest)]
    assert [found.rpartition("-")[2] for found in ids] == [f"{n + 1}" for n in range(len(ids))]
    assert len({found.rpartition("-")[0] for found in ids}) == 1
    assert rest[-1].event == "done"


async def test_a_missing_worker_is_reported(site: Site, client: httpx.AsyncClient) -> None:
    site.workers(0)
    ((name, payload),) = await ask(client, site.impatient)
    assert name == "error"
    assert payload.keys() == {"error"}
    assert payload["error"]["code"] == "worker_timeout"


async def test_a_browser_may_connect_before_the_worker_starts(
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


async def test_the_alias_selects_the_agent_of_the_worker(
    site: Site, client: httpx.AsyncClient, answer: str
) -> None:
    site.workers(2)
    two = f"{QUESTION} What is a generator?"
    tools = {"extractive": 1, "smart_agent": 2, "qwen3-max": 0}
    for number, (alias, calls) in enumerate(tools.items()):
        session = await ask(client, site.webs[number % 2], two, alias)
        assert [name for name, _ in session].count("AgentToolCallStart") == calls
        assert session[-1] == ("FinalAnswerStreamEnd", {})
    session = await ask(client, site.webs[0], alias="qwen3-max")
    pieces = [payload["char"] for name, payload in session if name == "FinalAnswerStream"]
    assert "".join(pieces) == answer


async def events(
    client: httpx.AsyncClient, web: str, headers: dict[str, str] | None = None
) -> AsyncGenerator[Event, None]:
    """Yield events as they arrive."""
    body = {"user_query": QUESTION, "model_alias": "smart_agent"}
    parser = EventParser()
    async with client.stream("POST", web + SESSIONS, json=body, headers=headers) as response:
        assert response.status_code == 200
        async for chunk in response.aiter_bytes():
            for event in parser.feed(chunk):
                yield event


async def test_a_reader_that_is_cut_receives_the_rest_from_another_process(
    site: Site, client: httpx.AsyncClient, answer: str
) -> None:
    received: list[Any] = []
    last_event_id = ""
    site.workers(2)
    for number, web in enumerate((*site.webs, *site.webs), 1):
        stream = events(
            client, web, {**NAMED, "last-event-id": last_event_id} if last_event_id else NAMED
        )
        async with aclosing(stream):
            async for event in stream:
                last_event_id = event.id or last_event_id
                if event.event == "message":
                    one = json.loads(event.data)
                    received.append((one["event_type"], one["payload"]))
                if number < 4 and len(received) == 50 * number:
                    break
    assert received == whole_session(QUESTION, answer)


async def test_a_worker_that_dies_during_a_job_is_reported(
    site: Site, client: httpx.AsyncClient
) -> None:
    (worker,) = site.workers(1)
    names: list[str] = []
    async for event in events(client, site.impatient):
        last = json.loads(event.data)
        names.append(last["event_type"])
        if len(names) == 20:
            worker.kill()
    assert [name for name, _ in groupby(names)] == ["worker_ack", "AgentThoughtStream", "error"]
    assert last["payload"]["error"]["code"] == "idle_timeout"


async def test_an_error_before_the_stream_is_a_detail_in_json(
    site: Site, client: httpx.AsyncClient
) -> None:
    question = {"user_query": QUESTION}
    for body in (
        {"user_query": " "},
        {"model_alias": "smart_agent"},
        {"user_query": "x" * 1001},
        {**question, "model_alias": "any"},
    ):
        response = await client.post(site.webs[0] + SESSIONS, json=body)
        assert response.status_code == 422
        assert response.json().keys() == {"detail"}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_each_of_a_thousand_sessions_at_once_receives_its_own_events(
    tmp_path: Path, answer: str
) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        with RedisServer(tmp_path) as redis, ExitStack() as stack:
            site = Site(tmp_path, redis, stack)
            site.workers(2)
            sessions = await asyncio.gather(
                *(ask(client, site.webs[number % 2]) for number in range(1000)),
                return_exceptions=True,
            )
    whole = whole_session(QUESTION, answer)
    wrong = [session for session in sessions if session != whole]
    assert not wrong, (len(wrong), str(wrong[0])[-300:])
