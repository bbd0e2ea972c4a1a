"""Queries of many callers in one pipeline at a time, and callers that wait for answers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sse_middleware.errors import StoreError
from sse_middleware.stores.circuit_breaker import CircuitBreaker, FailureReport
from sse_middleware.stores.redis.commands import QueryCoalescer
from sse_middleware.stores.redis.scripts import Command
from tests.support.waiting import until

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
        return [int(command[1]) for command in commands]


@pytest.fixture
def pipelines() -> Pipelines:
    return Pipelines()


@pytest.fixture
def breaker() -> CircuitBreaker:
    report = FailureReport((), lambda exc: f"It failed ({exc}).", "All else works.")
    return CircuitBreaker((OSError,), report, "ask", open_seconds=LONG)


@pytest.fixture
def coalescer(pipelines: Pipelines, breaker: CircuitBreaker) -> QueryCoalescer:
    return QueryCoalescer(pipelines.send, LONG, pipelines.reported.append, breaker)


async def answer(coalescer: QueryCoalescer, number: int) -> Any:
    return await coalescer.query(("GET", str(number)))


async def answers(coalescer: QueryCoalescer, count: int) -> list[Any]:
    asked = (answer(coalescer, number) for number in range(count))
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_equal_queries_are_sent_once(coalescer: QueryCoalescer, pipelines: Pipelines) -> None:
    asked = (answer(coalescer, number) for number in (1, 2, 1))
    assert await asyncio.gather(*asked) == [1, 2, 1]
    assert pipelines.sent == [[("GET", "1"), ("GET", "2")]]


async def test_a_close_is_not_a_cancellation_of_callers(
    coalescer: QueryCoalescer, pipelines: Pipelines
) -> None:
    pipelines.hangs = True
    waiting = asyncio.ensure_future(answers(coalescer, 100))  # more than one pipeline has
    await until(lambda: bool(pipelines.sent), "a pipeline was to be sent")
    await coalescer.close()
    assert {type(one) for one in await waiting} == {StoreError}


async def test_an_unexpected_error_is_not_a_cancellation_of_callers(
    coalescer: QueryCoalescer, pipelines: Pipelines
) -> None:
    pipelines.failures = [TypeError("unexpected")]
    queries = [coalescer.query(("GET", str(number))) for number in range(100)]
    task = coalescer._task
    assert task is not None
    found = await asyncio.gather(*queries, return_exceptions=True)
    assert {type(one) for one in found} == {StoreError}
    with pytest.raises(TypeError, match="unexpected"):
        await task
    assert await answers(coalescer, 2) == [0, 1]


async def test_a_failed_pipeline_fails_only_its_own_queries(
    coalescer: QueryCoalescer, pipelines: Pipelines
) -> None:
    pipelines.failures = [OSError("the connection is lost")]
    found = await answers(coalescer, 200)
    assert [type(one) for one in found[:64]] == [OSError] * 64
    assert found[64:] == list(range(64, 200))
    assert len(pipelines.reported) == 1


async def test_queries_that_were_not_sent_fail_if_the_circuit_is_open(
    coalescer: QueryCoalescer, pipelines: Pipelines, breaker: CircuitBreaker
) -> None:
    pipelines.failures = [OSError("no route")]
    breaker.open()
    assert {type(one) for one in await answers(coalescer, 200)} == {OSError}
    assert len(pipelines.sent) == len(pipelines.reported) == 1
    assert await answers(coalescer, 2) == [0, 1]


async def test_no_pipeline_is_sent_for_callers_that_have_gone(
    coalescer: QueryCoalescer, pipelines: Pipelines
) -> None:
    coalescer.query(("GET", "1")).cancel()
    assert await answer(coalescer, 1) == 1
    assert pipelines.sent == [[("GET", "1")]]
    gone = coalescer.query(("GET", "2"))
    gone.cancel()
    task = coalescer._task
    assert task is not None
    await task
    assert len(pipelines.sent) == 1
