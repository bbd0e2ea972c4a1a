"""`on_end`: a function of the mark that gets the events of each stream, however it has ended."""

import asyncio
import functools
import gc
import logging
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import (
    ConfigurationError,
    EndInfo,
    Event,
    SSEMiddleware,
    current_stream,
    current_trace_id,
    drain,
    resume_endpoint,
    streaming,
)
from sse_middleware.stream.end_callback import CollectedEvents, EndCallback
from sse_middleware.stream.shutdown import SHUTDOWN
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running, stream_of
from tests.support.limiting import asked
from tests.support.resuming import UNCAPPED, Counting, living, now, opened, resumable, value

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")
TRACE = (b"x-trace-id", b"trace-1")
KINDS = pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
OUTER: ContextVar[str] = ContextVar("OUTER", default="")


class Saving:
    """A function for `on_end` that records its calls.

    Attributes:
        calls: its arguments.
        contexts: the values of `OUTER`, and the trace ids.
        times: when it was called.
    """

    def __init__(self, pause: float = 0.0, failure: Exception | None = None) -> None:
        self.calls: list[tuple[EndInfo, list[Event]]] = []
        self.contexts: list[tuple[str, str | None]] = []
        self.times: list[float] = []
        self.returned: list[str] = []
        self._pause = pause
        self._failure = failure

    async def __call__(self, info: EndInfo, events: list[Event]) -> None:
        self.calls.append((info, events))
        self.contexts.append((OUTER.get(), current_trace_id()))
        self.times.append(now())
        await asyncio.sleep(self._pause)
        self.returned.append(info.stream_id)
        if self._failure is not None:
            raise self._failure

    @property
    def reasons(self) -> list[str]:
        return [info.reason for info, _ in self.calls]

    @property
    def data(self) -> list[str]:
        """The data of the events of the only call."""
        ((_, events),) = self.calls
        return [event.data for event in events]


def saving(app: Any, on_end: Any, *, mark: dict[str, Any] | None = None, **options: Any) -> Any:
    marks = {"*": streaming(on_end=on_end, **(mark or {}))}
    return resumable(app, **{"marks": marks, **UNCAPPED, **options})


def numbers(last: int) -> list[str]:
    return [str(number) for number in range(1, last + 1)]


@KINDS
async def test_a_finished_stream_is_passed_once_with_its_parsed_events(headers: Any) -> None:
    save = Saving()

    async def answer(request: Request) -> Response:
        current_stream().name("chat:7")
        current_stream().annotate(chat=7)

        async def events() -> AsyncIterator[bytes]:
            yield b": hello\n\nevent: token\r\ndata: a\r\ndata: b\r\n\r\n"
            current_stream().add_tokens(3)
            await asyncio.sleep(2)
            yield b"data: {}\n\ndata: last\n\n: bye\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = saving(Starlette(routes=[Route("/chats/{chat}", answer)]), save)
    got = await handle(app, headers=[*headers, ANN, TRACE], path="/chats/7")
    await asyncio.sleep(0.1)
    ((info, events),) = save.calls
    assert events == [Event("a\nb", "token"), Event("{}"), Event("last")]
    assert info == EndInfo(
        stream_id=got.headers[b"x-stream-id"].decode(),
        name="chat:7",
        route="/chats/{chat}",
        reason="finished",
        trace_id="trace-1",
        chunks=3,
        tokens=3,
        duration_seconds=info.duration_seconds,
        truncated=False,
        annotations={"chat": 7},
    )
    assert info.duration_seconds == pytest.approx(2)


@KINDS
@pytest.mark.parametrize("keep", [True, False])
async def test_a_stream_that_is_not_kept_is_passed_too(headers: Any, *, keep: bool) -> None:
    save = Saving()
    await handle(saving(Counting(3), save, mark={"keep": keep}), headers=headers)
    await asyncio.sleep(0.1)
    assert (save.reasons, save.data) == (["finished"], numbers(3))


async def _raise(_scope: Any, _receive: Any, send: Any) -> None:
    await stream_of(b"data: 1\n\n")({}, None, _but_the_last(send))  # type: ignore[arg-type]
    raise ValueError("swordfish")


async def _return(_scope: Any, _receive: Any, send: Any) -> None:
    await stream_of(b"data: 1\n\n")({}, None, _but_the_last(send))  # type: ignore[arg-type]


def _but_the_last(send: Any) -> Any:
    async def only(message: Any) -> None:
        if message.get("body") != b"":
            await send(message)

    return only


@KINDS
@pytest.mark.parametrize(("app", "reason"), [(_raise, "error"), (_return, "incomplete")])
async def test_an_app_that_fails_is_passed_with_its_reason(
    headers: Any, app: Any, reason: str
) -> None:
    save = Saving()
    async with running(saving(app, save), Exchange(http_scope(headers=headers))):
        await asyncio.sleep(1)
    assert (save.reasons, save.data) == ([reason], ["1"])


@KINDS
async def test_a_cap_is_a_reason(headers: Any) -> None:
    save = Saving()
    app = saving(Counting(9), save, mark={"stream_max_seconds": 2.5})
    async with asked(app, headers) as exchange:
        await asyncio.sleep(5)
    assert exchange.messages
    assert (save.reasons, save.data) == (["duration_cap"], numbers(3))


async def test_a_stop_is_a_reason() -> None:
    save = Saving()
    answer = Route("/answer", Counting(9), methods=["GET"])
    routes = [answer, Route("/live", resume_endpoint("x"))]
    app = saving(Starlette(routes=routes), save, mark={"stream_name": "x"})
    async with opened(app, ANN, path="/answer") as first:
        await first.until_count(2, "message")
        await handle(app, headers=[ANN], path="/live", method="DELETE")
        await first.until_end()
    assert (save.reasons, save.data) == (["cancelled"], numbers(2))


@pytest.mark.parametrize(
    ("mark", "key", "name"),
    [({}, [], ""), ({}, [(b"idempotency-key", b"k")], "k"), ({"stream_name": "x"}, [], "x")],
)
async def test_an_attached_request_causes_no_second_call_and_the_name_is_that_of_the_app(
    mark: dict[str, Any], key: Any, name: str
) -> None:
    save = Saving()

    @streaming(on_end=save, attach="running", **mark)
    async def answer(request: Request) -> Response:
        chunks = (b"data: 1\n\n", b"data: 2\n\n")

        async def events() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk
                await asyncio.sleep(1)

        return StreamingResponse(events(), media_type="text/event-stream")

    app = resumable(Starlette(routes=[Route("/answer", answer)]))
    async with asked(app, [*key], ANN, path="/answer") as first:
        await asyncio.sleep(0.5)
        second = await handle(app, headers=[ANN, *key], path="/answer")
        await first.until_end()
    await asyncio.sleep(0.1)
    assert second.body == first.body
    assert second.headers[b"x-stream-cache"] == b"coalesced"
    assert [(info.name, len(events)) for info, events in save.calls] == [(name, 2)]


async def test_an_eviction_is_a_reason() -> None:
    save = Saving()
    app = saving(Counting(3), save, max_streams_per_client=1)
    async with opened(app, ANN) as first:
        await first.until("message")
        async with opened(app, ANN) as second:
            await second.until_end()
    await asyncio.sleep(0.1)
    assert save.reasons == ["evicted", "finished"]


async def test_a_client_that_leaves_a_kept_stream_leaves_the_whole_answer() -> None:
    save = Saving()
    app = saving(Counting(5), save)
    async with opened(app, ANN) as first:
        await first.until_count(2, "message")
        first.disconnect()
        await asyncio.sleep(1)
        assert save.calls == []
        await asyncio.sleep(10)
    assert (save.reasons, save.data) == (["finished"], numbers(5))


@KINDS
async def test_a_client_that_does_not_return_is_a_reason(headers: Any) -> None:
    save = Saving()
    app = saving(Counting(99), save, linger_seconds=3)
    async with asked(app, headers) as first:
        await asyncio.sleep(2.5)
        first.disconnect()
        await asyncio.sleep(20)
    wanted = 6 if headers else 3  # a plain stream without a name is not kept
    assert save.reasons == ["disconnected"]
    assert save.data == numbers(wanted)


async def test_a_request_that_the_server_cancels_is_a_reason() -> None:
    save = Saving()
    async with opened(saving(Counting(9), save), ANN) as first:
        await first.until_count(2, "message")
        assert first.task is not None
        first.task.cancel()
        await asyncio.sleep(0.5)
        assert (save.reasons, save.data) == (["aborted"], numbers(2))


@KINDS
async def test_the_client_does_not_wait_for_it(headers: Any) -> None:
    save = Saving(pause=1000)
    exchange = await handle(saving(Counting(2), save), headers=headers)
    assert (exchange.ended, now() - exchange.messages[-1][0] < 1) == (True, True)
    await asyncio.sleep(1)
    assert len(save.calls) == 1
    assert save.returned == []
    await asyncio.sleep(1000)
    assert len(save.returned) == 1


async def test_a_failure_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    save = Saving(failure=ValueError("swordfish"))
    routes = [Route("/answer", Counting(2), methods=["GET"])]
    app = saving(Starlette(routes=routes), save, registry=registry)
    got = await handle(app, headers=[*EVENTSOURCE, TRACE], path="/answer")
    await asyncio.sleep(0.1)
    assert got.names[-1] == "complete"
    (record,) = [r for r in caplog.records if "on_end" in r.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "on_end of route /answer has failed, trace id trace-1"
    assert "swordfish" in str(record.exc_info)
    assert value(registry, "sse_on_end_errors_total", route="/answer") == 1


async def test_it_runs_in_the_context_of_the_request_even_if_a_timer_has_ended_the_stream() -> None:
    save = Saving()
    inner = saving(Counting(9), save, mark={"stream_max_seconds": 2})

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        OUTER.set(dict(scope["headers"])[b"x-trace-id"].decode())
        await inner(scope, receive, send)

    async with opened(outer, TRACE), opened(outer, (b"x-trace-id", b"trace-2")):
        await asyncio.sleep(5)
    assert sorted(save.contexts) == [("trace-1", "trace-1"), ("trace-2", "trace-2")]


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        ({"replay_max_events": 2}, ["4", "5"]),
        ({"replay_max_events": 1}, ["5"]),
        ({"replay_max_events": 0}, []),
        ({"replay_max_events": 5}, numbers(5)),
    ],
)
async def test_events_over_the_limits_are_missing(limits: dict[str, Any], data: list[str]) -> None:
    for pause in (0.0, 1.0):  # in one chunk, and one by one
        save = Saving()
        chunks = [b"data: %d\n\n" % number for number in range(1, 6)]
        app = stream_of(*(chunks if pause else [b"".join(chunks)]), pause=pause)
        await handle(saving(app, save, **limits), headers=EVENTSOURCE)
        await asyncio.sleep(0.1)
        ((info, events),) = save.calls
        assert [event.data for event in events] == data
        assert (info.truncated, info.chunks) == (len(data) < 5, 5)


async def test_an_event_that_is_too_long_is_missing() -> None:
    save = Saving()
    app = stream_of(b"data: 1\n\n", b"data: %b\n\n" % (b"x" * 4000), b"data: 3\n\n")
    await handle(saving(app, save, max_event_bytes=1024), headers=EVENTSOURCE)
    await asyncio.sleep(0.1)
    ((info, events),) = save.calls
    assert [event.data for event in events] == ["1", "3"]
    assert info.truncated


def test_collected_events_are_bounded_in_bytes() -> None:
    collected = CollectedEvents(100, 25)
    for number in range(10):
        collected.append(b"data: %d\n\n" % number, 1)
        assert collected._size <= 25
    assert collected.is_truncated
    events = asyncio.run(collected.parse())
    assert [event.data for event in events] == ["8", "9"]


def test_collected_events_of_one_chunk_are_dropped_one_by_one() -> None:
    collected = CollectedEvents(3, 1000)
    collected.append(b"".join(b"data: %d\n\n" % number for number in range(10)), 10)
    events = asyncio.run(collected.parse())
    assert [event.data for event in events] == ["7", "8", "9"]
    assert collected.is_truncated


async def test_other_tasks_run_while_many_events_are_parsed() -> None:
    collected, turns = CollectedEvents(100_000, 1 << 24), 0
    collected.append(b"data: %b\n\n" % (b"x" * 80) * 5000, 5000)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.ensure_future(count())
    assert len(await collected.parse()) == 5000
    assert turns >= 20
    counter.cancel()


async def test_the_events_of_an_app_with_its_own_ids_are_passed() -> None:
    save = Saving()
    app = stream_of(b"data: 1\n\n", b"id: x\ndata: 2\n\n", b"data: 3\n\n", pause=1)
    async with opened(saving(app, save), ANN) as exchange:
        await exchange.until_end()
        await asyncio.sleep(0.1)
    assert save.data == ["1", "2", "3"]
    assert [event.id for event in save.calls[0][1]] == [None, "x", None]


@pytest.mark.parametrize(
    "app", [stream_of(b"raw ", b"words", pause=1), PlainTextResponse("ok")], ids=["raw", "text"]
)
async def test_a_response_that_is_no_event_stream_is_not_passed(app: Any) -> None:
    save = Saving()
    await handle(saving(app, save), headers=EVENTSOURCE)
    await asyncio.sleep(0.1)
    assert save.calls == []


async def test_what_a_reader_gets_is_passed_once() -> None:
    save = Saving()
    app = saving(Counting(4), save)
    async with opened(app, ANN) as first:
        await first.until_count(2, "message")
        async with opened(app, ANN, (b"last-event-id", first.last_event_id.encode())) as reader:
            await reader.until_end()
    await asyncio.sleep(0.1)
    assert (save.reasons, save.data) == (["finished"], numbers(4))


# The end of the server


async def test_in_a_drain_it_has_until_the_deadline() -> None:
    save = Saving(pause=3)
    app = saving(Counting(2), save, drain_seconds=5)
    async with opened(app, ANN) as exchange:
        await exchange.until_end()
        started = now()
        await drain()
        assert now() - started < 4
    assert len(save.returned) == 1


async def test_what_has_not_returned_at_the_deadline_is_cancelled_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    save = Saving(pause=100)
    app = saving(Counting(2), save, drain_seconds=5, registry=registry)
    async with opened(app, ANN) as exchange:
        await exchange.until_end()
        started = now()
        await drain()
        assert 4.5 < now() - started < 6
    (record,) = [r for r in caplog.records if "on_end" in r.getMessage()]
    assert "SSE_DRAIN_SECONDS" in record.getMessage()
    assert value(registry, "sse_on_end_errors_total", route="unmatched") == 1


async def test_an_answer_that_a_drain_cuts_is_passed_and_the_request_waits_for_it() -> None:
    save = Saving(pause=0.3)
    app = saving(Counting(99), save, drain_seconds=2)
    async with opened(app, ANN) as exchange:
        await exchange.until("message")
        await drain()
        assert exchange.task is not None
        await exchange.task
        assert (save.reasons, len(save.returned)) == (["shutdown"], 1)
        assert len(SHUTDOWN.drain_for(asyncio.get_running_loop())) == 0


async def test_the_lifespan_waits_for_it() -> None:
    save = Saving(pause=3)
    app = saving(Counting(2), save)
    await handle(app, headers=EVENTSOURCE)
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(f"{message['type']} {len(save.returned)}")

    app.app = lifespan
    await app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete 0", "lifespan.shutdown.complete 1"]


async def test_nothing_is_left_after_it() -> None:
    save = Saving()
    app = saving(Counting(2), save)
    gc.collect()
    gc.disable()
    try:
        await handle(app, headers=EVENTSOURCE)
        await asyncio.sleep(0.1)
        assert len(save.calls) == 1
        assert not [thing for thing in gc.get_objects() if isinstance(thing, EndCallback)]
    finally:
        gc.enable()
    assert living(EndCallback) == []


# Functions


def test_a_function_that_is_not_async_runs_in_a_thread_and_in_the_context() -> None:
    calls: list[Any] = []

    def save(info: EndInfo, events: list[Event]) -> int:
        calls.append((info.reason, len(events), threading.current_thread(), current_trace_id()))
        return 1

    class Holder:
        def save(self, info: EndInfo, events: list[Event]) -> None:
            save(info, events)

    class Callable:
        async def __call__(self, info: EndInfo, events: list[Event]) -> None:
            calls.append((info.reason, len(events), threading.current_thread(), current_trace_id()))

    async def scenario() -> None:
        for function in (save, functools.partial(save), Callable(), Holder().save):
            app = saving(stream_of(b"data: 1\n\n"), function)
            await handle(app, headers=[*EVENTSOURCE, TRACE])
            await app._context.end_calls.wait(60)

    asyncio.run(scenario())
    main = threading.main_thread()
    assert [(call[0], call[1], call[2] is main, call[3]) for call in calls] == [
        ("finished", 1, False, "trace-1"),
        ("finished", 1, False, "trace-1"),
        ("finished", 1, True, "trace-1"),
        ("finished", 1, False, "trace-1"),
    ]


def test_what_is_no_function_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="on_end"):
        streaming(on_end="save")  # type: ignore[call-overload]


async def test_a_decorated_endpoint_has_its_own_function() -> None:
    save = Saving()

    @streaming(on_end=save)
    async def answer(request: Request) -> Response:
        return StreamingResponse(iter(["data: 1\n\n"]), media_type="text/event-stream")

    async def other(request: Request) -> Response:
        return StreamingResponse(iter(["data: 2\n\n"]), media_type="text/event-stream")

    routes = [Route("/answer", answer), Route("/other", streaming(other))]
    app = SSEMiddleware(Starlette(routes=routes), registry=CollectorRegistry())
    for path in ("/answer", "/other"):
        await handle(app, path=path)
    await asyncio.sleep(0.1)
    assert save.data == ["1"]
