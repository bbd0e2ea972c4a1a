"""The example in front of its upstream, by one worker and by three: completions, and threads."""

import asyncio
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2 as httpx
import pytest

from tests.support import needs
from tests.support.redis_server import RedisServer
from tests.support.servers import running_process, until_logged
from tests.support.waiting import HANG_SECONDS
from tests.support.workers import working

pytestmark = pytest.mark.anyio

APP = "example_app.app:app"
MESSAGES = [{"role": "user", "content": "What is the global interpreter lock?"}]
MORE = [
    {"role": "assistant", "content": "..."},
    {"role": "user", "content": "What is a generator?"},
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Example(NamedTuple):
    """The addresses of the running workers, and their Redis if they are several."""

    addresses: list[str]
    redis: RedisServer | None = None


@pytest.fixture(scope="module", params=["one worker", "three workers"])
def example(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    directory = tmp_path_factory.mktemp("completions")
    if request.param == "one worker":
        command = [sys.executable, "-m", "example_app", "--port", "0"]
        with running_process(command, directory / "example.log") as (_, log):
            yield Example([until_logged(log, r"http://\S+?:\d+")])
        return
    with (
        RedisServer(directory) as redis,
        working(APP, 3 * [redis.patient_url], directory, {}) as workers,
    ):
        yield Example([worker.server.url for worker in workers], redis)


def arguments(address: str, path: str = "/v1") -> dict[str, Any]:
    return {"api_key": "none", "base_url": f"{address}{path}", "max_retries": 0}


def test_a_stream_has_the_answer_the_usage_and_the_default_model(example: Example) -> None:
    openai = needs.module("openai")
    for address in example.addresses:
        with openai.OpenAI(**arguments(address)) as client:
            extra = {"model": "qwen3-max"}
            chunks = list(client.chat.completions.create(stream=True, messages=MESSAGES, **extra))
            document = client.chat.completions.create(messages=MESSAGES, **extra)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert "only one thread executes Python bytecode at a time" in text
        assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]
        assert chunks[-1].usage.total_tokens > 10
        assert {chunk.model for chunk in chunks} == {"qwen3-max"}
        assert document.choices[0].message.content == text
        assert document.usage == chunks[-1].usage


async def test_the_turns_of_a_conversation_may_be_at_different_workers(example: Example) -> None:
    openai = needs.module("openai")
    texts, parents = list[str](), set[bytes]()
    for turn in range(3):
        address = example.addresses[turn % len(example.addresses)]
        async with openai.AsyncOpenAI(**arguments(address, "/roocode/v1")) as client:
            messages = [*MESSAGES, *MORE * turn]
            create = client.chat.completions.create
            chunks = [
                chunk async for chunk in await create(stream=True, model="m", messages=messages)
            ]
        texts.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        if example.redis is not None:
            client_of_redis: Any = example.redis.client
            parents.update(map(client_of_redis.get, client_of_redis.keys("example-app:session:*")))
    assert len(parents) == (0 if example.redis is None else 3)
    assert all(
        re.fullmatch(r"(?s)<attempt_completion>\s<result>.+</result>\s\S+", t) for t in texts
    )
    assert "bytecode" in texts[0]
    assert texts[1] == texts[2] != texts[0]


def test_a_failure_before_the_answer_is_an_error_of_the_sdk(example: Example) -> None:
    openai = needs.module("openai")
    with openai.OpenAI(**arguments(example.addresses[0])) as client:
        for stream in (True, False):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": " "}], stream=stream
                )
            assert caught.value.body == {
                "message": "The upstream service has failed.",
                "type": "upstream_error",
                "param": None,
                "code": None,
            }


async def test_equal_messages_of_a_thread_are_answered_once_by_all_workers(
    example: Example,
) -> None:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:

        async def post(number: int) -> httpx.Response:
            address = example.addresses[number % len(example.addresses)]
            accept = {"accept": "text/event-stream"}
            body = {"content": "What is a generator?"}
            return await client.post(f"{address}/threads/1/messages", json=body, headers=accept)

        responses = await asyncio.gather(*map(post, range(100)))
        responses += [await post(number) for number in range(3)]
        assert {response.status_code for response in responses} == {200}
        assert len({response.content for response in responses}) == 1
        caches = [response.headers.get("x-stream-cache") for response in responses]
        assert caches.count(None) == 1
        assert caches[-3:] == ["hit"] * 3
        for address in example.addresses:
            turns = (await client.get(f"{address}/threads/1/messages")).json()
            assert [turn["role"] for turn in turns] == ["user", "assistant"]
