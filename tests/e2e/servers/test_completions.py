"""The example in front of its upstream, by one worker and by three: completions, and threads."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support import needs
from tests.support.example_site import ONE_AND_THREE, Site, running_example
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "What is the global interpreter lock?"}]
MORE = [
    {"role": "assistant", "content": "..."},
    {"role": "user", "content": "What is a generator?"},
]
MISSES = r'^sse_resumes_total\{.*result="miss".*\} (\S+)'


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=ONE_AND_THREE)
def example(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with running_example(request.param, tmp_path_factory.mktemp("completions")) as site:
        yield site


def arguments(address: str, path: str = "/v1") -> dict[str, Any]:
    return {"api_key": "none", "base_url": f"{address}{path}", "max_retries": 0}


def test_a_stream_has_the_answer_the_usage_and_the_default_model(example: Site) -> None:
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


async def test_the_turns_of_a_conversation_may_be_at_different_workers(example: Site) -> None:
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


def test_a_failure_before_the_answer_is_an_error_of_the_sdk(example: Site) -> None:
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


async def test_five_hundred_equal_messages_are_answered_by_one_run_on_all_workers(
    example: Site,
) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=HANG_SECONDS, limits=limits) as client:

        async def post(number: int) -> httpx.Response:
            url = f"{example.address(number)}/threads/1/messages"
            accept = {"accept": "text/event-stream"}
            body = {"content": "What is a generator?"}
            return await client.post(url, json=body, headers=accept)

        async def runs() -> int:
            pages = [(await client.get(f"{url}/metrics")).text for url in example.addresses]
            found = re.findall(MISSES, "\n".join(pages), re.MULTILINE)
            return sum(int(float(count)) for count in found)

        responses = await asyncio.gather(*map(post, range(500)))
        responses += [await post(number) for number in range(3)]
        assert {response.status_code for response in responses} == {200}
        assert len({response.content for response in responses}) == 1
        caches = [response.headers.get("x-stream-cache") for response in responses]
        assert caches.count(None) == 1
        assert caches[-3:] == ["hit"] * 3
        assert await runs() == 1
        for address in example.addresses:
            turns = (await client.get(f"{address}/threads/1/messages")).json()
            assert [turn["role"] for turn in turns] == ["user", "assistant"]
