"""One policy for a store that fails: timeouts, the open circuit, pauses and reports."""

import asyncio
import logging
import math

import pytest

from sse_middleware.errors import StoreError
from sse_middleware.stores import circuit_breaker
from sse_middleware.stores.circuit_breaker import Backoff, CircuitBreaker, FailureReport

pytestmark = pytest.mark.anyio

LONG = 1000.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Requests:
    """Requests that are counted, and that answer, fail or hang."""

    def __init__(self) -> None:
        self.count = 0
        self.failure: Exception | None = None

    async def answer(self) -> int:
        self.count += 1
        if self.failure is not None:
            raise self.failure
        return self.count

    async def hang(self) -> int:
        self.count += 1
        await asyncio.Event().wait()
        raise AssertionError("it is cancelled")


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def breaker() -> CircuitBreaker:
    report = FailureReport((), lambda exc: f"It failed ({exc}).", "All else works.")
    return CircuitBreaker((OSError, TimeoutError), report, "ask", open_seconds=LONG)


async def test_answers_are_returned(breaker: CircuitBreaker, requests: Requests) -> None:
    assert [await breaker.call(requests.answer) for _ in range(3)] == [1, 2, 3]
    assert not breaker.is_open


async def test_after_a_failure_no_request_is_sent_until_the_circuit_closes(
    breaker: CircuitBreaker, requests: Requests
) -> None:
    requests.failure = OSError("no route")
    with pytest.raises(StoreError, match="ask: OSError"):
        await breaker.call(requests.answer)
    requests.failure = None
    for _ in range(3):
        with pytest.raises(StoreError, match="did not answer a moment ago"):
            await breaker.call(requests.answer)
    assert requests.count == 1
    breaker.open_until = -math.inf  # as if time had passed
    assert await breaker.call(requests.answer) == 2
    breaker.open()
    breaker.open_until = -math.inf
    assert await breaker.call(requests.answer) == 3


async def test_a_request_without_an_answer_opens_the_circuit(
    breaker: CircuitBreaker, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "FIRST_CALL_TIMEOUT_SECONDS", LONG)
    monkeypatch.setattr(circuit_breaker, "CALL_TIMEOUT_SECONDS", 0.06)
    assert await breaker.call(requests.answer) == 1  # the first one has more time
    with pytest.raises(StoreError, match="TimeoutError"):
        await breaker.call(requests.hang)
    assert breaker.is_open
    assert requests.count == 2


async def test_a_success_does_not_close_the_circuit(
    breaker: CircuitBreaker, requests: Requests
) -> None:
    is_answered = asyncio.Event()

    async def answer_late() -> str:
        await is_answered.wait()
        return "late"

    older = asyncio.ensure_future(breaker.call(answer_late))
    await asyncio.sleep(0)  # it is sent
    requests.failure = OSError("no route")
    with pytest.raises(StoreError):
        await breaker.call(requests.answer)
    is_answered.set()
    assert await older == "late"
    assert breaker.is_open
    breaker.succeeded()
    assert breaker.is_open


async def test_other_errors_are_raised_and_do_not_open_the_circuit(
    breaker: CircuitBreaker, requests: Requests
) -> None:
    requests.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await breaker.call(requests.answer)
    assert not breaker.is_open


async def test_one_failure_a_minute_is_logged(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        breaker.failed(OSError("no route"))
    warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert warnings == ["It failed (no route). All else works."]


def test_pauses_have_other_bounds_on_request() -> None:
    backoff = Backoff(first=0.2, longest=0.5)
    assert [backoff.next() for _ in range(4)] == [0.2, 0.4, 0.5, 0.5]
    backoff.reset()
    assert backoff.next() == 0.2


def test_pauses_grow_to_a_bound_and_begin_again() -> None:
    backoff = Backoff()
    assert [backoff.next() for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next() == 0.05
