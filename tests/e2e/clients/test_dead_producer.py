"""A worker that is killed while it produces an answer: no client takes the answer for complete."""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import httpx2 as httpx
import pytest

from tests.e2e.clients.client_runs import by_node
from tests.support import needs
from tests.support.answers import numbers
from tests.support.named_runs import ANN, NamedRuns, named_runs
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

HELD_AFTER = 5
"""The number of events before the worker is killed."""
EVENTS = numbers(HELD_AFTER)
PARTIAL_FILE = 18
"""The exit status of curl if a response ends uncleanly."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamedRuns]:
    """Run two workers; the first one is killed and started again."""
    with named_runs(tmp_path_factory.mktemp("dying"), LEASE_SECONDS="3") as running:
        yield running


@pytest.fixture
def first(runs: NamedRuns) -> Iterator[str]:
    """Return the URL of the worker that is killed."""
    yield runs.workers[0].server.url
    runs.workers[0].start()


class Answer(NamedTuple):
    """The request for an answer, and the path at which clients follow it."""

    path: str
    live: str
    body: dict[str, Any]


PLAIN = Answer("/answers/plain", "/answers/plain/live", {})
EVENTSOURCE = Answer("/answers/page", "/answers/page/live", {})
COMPLETION = Answer("/v1/chat/completions", "/v1/chat/completions/lost", {"model": "lost"})
RESPONSE = Answer(
    "/v1/responses",
    "/v1/responses/resp_lost",
    {"input": "lost", "background": True, "stream": True},
)


async def until_held(url: str, answer: Answer) -> None:
    """Open an answer, and read the events that precede the kill."""
    async with (
        httpx.AsyncClient(headers=ANN, timeout=HANG_SECONDS) as client,
        client.stream(
            "POST", f"{url}{answer.path}?hold={HELD_AFTER}", json=answer.body
        ) as response,
    ):
        received = b""
        async for chunk in response.aiter_raw():
            received += chunk
            if received.count(b"\n\n") == HELD_AFTER:
                return


async def seen(
    runs: NamedRuns, answer: Answer, *follow: Callable[[str], Awaitable[str]]
) -> list[str]:
    """Kill the worker of an answer that others follow at the other worker; return what they see."""
    await until_held(runs.workers[0].server.url, answer)
    await asyncio.to_thread(runs.wait_until_known, answer.live, ANN)
    other = runs.workers[1].server.url
    wanted = runs.resumes() + len(follow)
    followers = [asyncio.ensure_future(one(other)) for one in follow]
    await asyncio.to_thread(runs.wait_for_resumes, wanted)
    await asyncio.to_thread(runs.workers[0].kill)
    return await asyncio.gather(*followers)


# Clients that receive the bytes of the app


def by_httpx(after: int) -> Callable[[str], Awaitable[str]]:
    async def follow(url: str) -> str:
        received = b""
        async with httpx.AsyncClient(headers=ANN, timeout=HANG_SECONDS) as client:
            try:
                live = f"{url}{PLAIN.live}?after={after}"
                async with client.stream("GET", live) as response:
                    async for chunk in response.aiter_raw():
                        received += chunk
            except httpx.RemoteProtocolError:
                assert received == b"".join(EVENTS[after:])
                return f"{response.status_code}, unclean"
        return f"{response.status_code}, clean"

    return follow


async def by_curl(url: str) -> str:
    command = [needs.program("curl"), "-sN", "-H", "authorization: Bearer ann"]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, f"{url}{PLAIN.live}"],
        capture_output=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.stdout == b"".join(EVENTS)
    return f"exit status {done.returncode}"


async def by_fetch(url: str) -> str:
    outcomes = await asyncio.to_thread(by_node("follow-fetch.mjs"), url, ["plain"])
    assert "".join(outcomes["plain"].events).encode() == b"".join(EVENTS)
    return outcomes["plain"].end


async def test_a_plain_client_gets_an_unclean_end(runs: NamedRuns, first: str) -> None:
    ends = await seen(runs, PLAIN, by_httpx(0), by_httpx(HELD_AFTER), by_curl, by_fetch)
    assert ends == [
        "200, unclean",
        "200, unclean",
        f"exit status {PARTIAL_FILE}",
        "TypeError: terminated",
    ]
    # It asks again: the answer is still not complete, and never continues.
    again = [await by_httpx(after)(runs.workers[1].server.url) for after in (2, HELD_AFTER)]
    assert again == ["200, unclean", "200, unclean"]


# Clients that receive an error in their own form


async def by_eventsource(url: str) -> str:
    outcomes = await asyncio.to_thread(by_node("follow-eventsource.mjs"), url, ["page"])
    events, end = outcomes["page"]
    assert events == [str(number) for number in range(1, HELD_AFTER + 1)]
    return end


async def test_an_eventsource_gets_the_error_producer_lost(runs: NamedRuns, first: str) -> None:
    (end,) = await seen(runs, EVENTSOURCE, by_eventsource)
    name, data = end.split(" ", 1)
    assert name == "error"
    assert json.loads(data)["error"]["code"] == "producer_lost"


def by_openai(read: Callable[[Any], Any]) -> Callable[[str], Awaitable[str]]:
    """Return what follows a stream by OpenAI's SDK, and returns the error that it raises."""

    def run(url: str) -> str:
        package = needs.module("openai")
        with package.OpenAI(api_key="ann", base_url=f"{url}/v1", max_retries=0) as client:
            count = 0
            try:
                for _ in read(client):
                    count += 1
            except package.APIError as exc:
                assert count == HELD_AFTER
                return type(exc).__name__
        return "clean"

    async def follow(url: str) -> str:
        return await asyncio.to_thread(run, url)

    return follow


def response(client: Any) -> Any:
    return client.responses.retrieve("resp_lost", stream=True)


def completion(client: Any) -> Any:
    package = needs.module("openai")
    chunk = package.types.chat.ChatCompletionChunk
    path, stream = COMPLETION.live.removeprefix("/v1"), package.Stream[chunk]
    return client.get(path, cast_to=chunk, stream=True, stream_cls=stream)


async def test_a_response_of_openai_fails_as_a_connection(runs: NamedRuns, first: str) -> None:
    """The SDK raises an error; nothing in its stream can say that it will never continue."""
    (end,) = await seen(runs, RESPONSE, by_openai(response))
    assert end == "APIConnectionError"


async def test_a_chat_completion_ends_with_an_error_of_the_api(runs: NamedRuns, first: str) -> None:
    (end,) = await seen(runs, COMPLETION, by_openai(completion))
    assert end == "APIError"
