"""Queries of many callers in one pipeline at a time, and callers that wait for answers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sse_middleware.errors import StoreError
from sse_middleware.stores.redis.commands import QueryCoalescer
from sse_middleware.stores.redis.scripts import Command

pytestmark = pytest.mark.anyio

LONG = 1000.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Pipelines:
    """Pipelines that are recorded, and that answer, fail or hang."""

    def __init__(self) -> None:
        self.sent: list[list[Command]] = []
        self.failures: list[BaseException] = []
        self.reported: list[BaseException] = []
        self.hangs = False

    async def send(self, commands: Sequence[Command]) -> Sequence[Any]:
        self.sent.append(list(commands))
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.failures:
            raise self.failures.pop(0)
        return [command[1] for command in commands]


@pytest.fixture
def pipelines() -> Pipelines:
    return Pipelines()


@pytest.fixture
def coalescer(pipelines: Pipelines) -> QueryCoalescer:
    return QueryCoalescer(pipelines.send, LONG, pipelines.reported.append)


async def answer(coalescer: QueryCoalescer, number: int) -> Any:
    return await coalescer.query(("GET", number))


async def answers(coalescer: QueryCoalescer, count: int) -> list[Any]:
    asked = (answer(coalescer, number) for number in range(count))
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_equal_queries_are_sent_once(coalescer: QueryCoalescer, pipelines: Pipelines) -> None:
    asked = (answer(coalescer, number) for number in (1, 2, 1))
    assert await asyncio.gather(*asked) == [1, 2, 1]
    assert pipelines.sent == [[("GET", 1), ("GET", 2)]]


async def test_a_close_is_not_a_cancellation_of_callers(
    coalescer: QueryCoalescer, pipelines: Pipelines
) -> None:
    pipelines.hangs = True
    waiting = asyncio.ensure_future(answers(coalescer, 100))  # more than one pipeline has
    while not pipelines.sent:
        await asyncio.sleep(0)
    await coalescer.close()
    assert {type(one) for one in await waiting} == {StoreError}


async def test_an_unexpected_error_is_not_a_cancellation_of_callers(
    coalescer: QueryCoalescer, pipelines: Pipelines
) -> None:
    pipelines.failures = [TypeError("unexpected")]
    waiting = asyncio.ensure_future(answers(coalescer, 100))
    while not pipelines.sent:
        await asyncio.sleep(0)
    task = coalescer._task
    assert task is not None
    assert {type(one) for one in await waiting} == {StoreError}
    with pytest.raises(TypeError, match="unexpected"):
        await task
    assert await answers(coalescer, 2) == [0, 1]
