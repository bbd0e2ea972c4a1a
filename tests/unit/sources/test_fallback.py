"""A ladder of sources: before its first event, a source that fails leaves no trace."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from sse_middleware import ConfigurationError
from sse_middleware.sources import NoFirstEventError, Source, UpstreamError, fallback, started

pytestmark = pytest.mark.anyio

Items = list[Any]


class Scripted:
    """A source that sends its items; an exception is raised, and a number is a pause."""

    def __init__(self, *items: Any) -> None:
        self.items = items
        self.requests = 0
        self.closed = 0

    async def __call__(self) -> AsyncIterator[Any]:
        self.requests += 1
        try:
            for item in self.items:
                if isinstance(item, float):
                    await asyncio.sleep(item)
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            self.closed += 1


async def read(*scripts: Scripted, **options: Any) -> Items:
    return [item async for item in fallback(*(script() for script in scripts), **options)]


@pytest.mark.parametrize(
    "failing",
    [
        Scripted(OSError()),
        Scripted(UpstreamError("500")),
        Scripted(60.0, "too late"),
        Scripted(),
        Scripted(b": comment\n\n", OSError()),
        Scripted(b"data: ha", b"lf", OSError()),
        Scripted(b"id: 1\n\n", b"da", 60.0),
        Scripted(b"retry: 5\n\n"),
    ],
)
async def test_a_source_that_fails_before_its_first_event_leaves_no_trace(
    failing: Scripted,
) -> None:
    first = Scripted(*failing.items)
    second = Scripted(b": hello\n\nda", b"ta: 1\n\n", b"data: 2\n\n")
    assert await read(first, second, first_event_timeout=5) == list(second.items)
    assert (first.requests, first.closed, second.closed) == (1, 1, 1)


@pytest.mark.parametrize("first", ["text", {"a": 1}, b"data: 1\r\n\r\n", b"no event stream", b""])
async def test_an_item_that_is_no_bytes_and_bytes_of_no_event_stream_are_not_held_back(
    first: object,
) -> None:
    items = [first, b"data: 2\n\n"]
    answer = fallback(Scripted(*items, OSError("later"))(), Scripted("never")())
    received = []
    with pytest.raises(OSError, match="later"):
        async for item in answer:
            received.append(item)  # noqa: PERF401 - the items before the failure
    assert received == items


async def test_a_drip_of_bytes_is_held_back_up_to_its_first_event() -> None:
    data = b"\r\n" * 9 + b": wait\n\nevent: a\nid: 7\ndata: 1\n\n"
    parts = [data[i : i + 1] for i in range(len(data))]
    for end in (len(parts) - 1, len(parts) - 8):
        assert await read(Scripted(*parts[:end], OSError()), Scripted("next")) == ["next"]
    answer = fallback(Scripted(*parts, 60.0)())
    async with aclosing(answer):
        assert b"".join([await anext(answer) for _ in parts]) == data


async def test_an_event_over_the_limit_is_not_held_back() -> None:
    long = b"data: " + bytes(70_000)
    answer = fallback(Scripted(long, 60.0)(), Scripted("next")())
    async with aclosing(answer):
        assert await anext(answer) == long


async def test_the_failure_of_the_last_source_is_raised() -> None:
    scripts = Scripted(OSError("first")), Scripted(UpstreamError("last", status_code=503))
    with pytest.raises(UpstreamError, match="last") as caught:
        await read(*scripts)
    assert caught.value.status_code == 503
    assert [script.closed for script in scripts] == [1, 1]


@pytest.mark.parametrize(("items", "status"), [((60.0, "late"), 504), ((), 502)])
async def test_a_last_source_without_an_event_has_a_status(
    items: tuple[Any, ...], status: int
) -> None:
    with pytest.raises(NoFirstEventError) as caught:
        await read(Scripted(*items), first_event_timeout=1.5)
    assert caught.value.status_code == status


async def test_a_failure_after_the_first_event_ends_the_answer() -> None:
    second = Scripted("never")
    received = []
    with pytest.raises(OSError, match="cut"):
        async for item in fallback(Scripted("one", OSError("cut"))(), second()):
            received.append(item)  # noqa: PERF401 - the items before the failure
    assert received == ["one"]
    assert second.requests == 0


async def test_there_is_no_timeout_after_the_first_event() -> None:
    assert await read(Scripted("one", 60.0, "two"), first_event_timeout=1) == ["one", "two"]


async def test_a_timeout_of_the_source_itself_is_its_failure() -> None:
    with pytest.raises(TimeoutError, match="its own"):
        await read(Scripted(TimeoutError("its own")), first_event_timeout=1)


async def test_an_exception_that_is_no_failure_is_raised_at_once() -> None:
    careless = Source("careless", Scripted(ValueError("a bug")).__call__, failures=(OSError,))
    second = Scripted("never")
    with pytest.raises(ValueError, match="a bug"):
        [item async for item in fallback(careless(), second())]
    assert second.requests == 0


@pytest.mark.parametrize("items", [(60.0,), ("one", 60.0)])
async def test_a_cancelled_answer_closes_its_source_and_tries_no_other(
    items: tuple[Any, ...],
) -> None:
    first, second = Scripted(*items), Scripted("never")
    task = asyncio.ensure_future(read(first, second, first_event_timeout=90))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (first.closed, second.requests) == (1, 0)


async def test_an_answer_that_is_closed_closes_its_source() -> None:
    script = Scripted("one", "two")
    answer = fallback(script())
    assert await anext(answer) == "one"
    await answer.aclose()
    assert script.closed == 1


class Response:
    """A stream of an SDK, which is closed by `close`."""

    def __init__(self, *items: Any, close_fails: bool = False) -> None:
        self.items = items
        self.closed = 0
        self._close_fails = close_fails

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            yield item

    async def close(self) -> None:
        self.closed += 1
        if self._close_fails:
            raise OSError("cannot close")


@pytest.mark.parametrize("close_fails", [False, True])
async def test_a_coroutine_function_may_return_a_stream_of_an_sdk(close_fails: bool) -> None:  # noqa: FBT001 - a parameter
    responses = Response(close_fails=close_fails), Response("one", close_fails=close_fails)

    async def create(number: int) -> Response:
        await asyncio.sleep(0)
        return responses[number]

    source = Source("sdk", create)
    assert [item async for item in fallback(source(0), source(1))] == ["one"]
    assert [response.closed for response in responses] == [1, 1]


async def ask(*ladder: Callable[[], Any]) -> Items:
    return [item async for item in fallback(*(source() for source in ladder))]


async def test_a_source_with_an_open_circuit_is_tried_after_all_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware")
    down, up = Scripted(OSError("secret")), Scripted("up")
    first, second = Source("down", down.__call__, max_failures=2), Source("up", up.__call__)
    for requests in (1, 2, 2, 2):
        assert await ask(first, second) == ["up"]
        assert down.requests == requests
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert caplog.messages[-1] == (
        "The source down has failed (OSError). Other sources answer in its place, if any."
    )
    up.items = (OSError("both"),)
    down.items = ("down again",)
    assert await ask(first, second) == ["down again"]
    assert not first.is_open  # it has answered


async def test_the_only_source_is_tried_though_its_circuit_is_open() -> None:
    script = Scripted(OSError("down"))
    source = Source("only", script.__call__, max_failures=1)
    for requests in (1, 2):
        with pytest.raises(OSError, match="down"):
            await ask(source)
        assert (source.is_open, script.requests) == (True, requests)


async def test_failures_with_an_answer_between_them_open_no_circuit() -> None:
    script = Scripted()
    source = Source("moody", script.__call__, max_failures=2)
    for items in ((OSError(),), ("fine",), (OSError(),)):
        script.items = items
        await ask(source, Scripted("other"))
    assert not source.is_open


async def test_a_failure_after_the_first_event_counts() -> None:
    source = Source("cut", Scripted("one", OSError("cut")).__call__, max_failures=1)
    with pytest.raises(OSError, match="cut"):
        await ask(source)
    assert source.is_open


async def test_a_started_answer_raises_a_failure_before_its_first_event() -> None:
    with pytest.raises(UpstreamError):
        await started(fallback(Scripted(UpstreamError("down"))()))
    answer = await started(fallback(Scripted("one", "two")()))
    assert [item async for item in answer] == ["one", "two"]
    nothing = await started(Response())
    assert [item async for item in nothing] == []
    await nothing.aclose()


async def test_a_started_answer_is_closed_with_its_source() -> None:
    script = Scripted("one", "two")
    answer = await started(fallback(script()))
    await answer.aclose()
    assert script.closed == 1
    await (await started(Response("one"))).aclose()


@pytest.mark.parametrize(
    "make",
    [
        fallback,
        lambda: fallback(Scripted("x")(), first_event_timeout=0),
        lambda: fallback(Scripted.__call__),  # type: ignore[arg-type]
        lambda: Source("", Scripted().__call__),
        lambda: Source("x", Scripted().__call__, max_failures=0),
        lambda: Source("x", Scripted().__call__, open_seconds=-1),
    ],
)
def test_an_argument_out_of_its_bounds_is_an_error_at_once(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        make()
