"""The response start is held while its limits are being checked; the app is never suspended in it.

The leases are in a store that answers slowly, in several steps. A response start that waits for it
would make apps leak: a generator that has not begun when its task is cancelled never runs its
`finally` blocks.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware._once import OncePerLoop
from sse_middleware.limits.slots import Slot
from tests.support.admission import LET_IN, MANY
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.clock import VirtualClockLoop
from tests.support.limiting import ANY, answer, limited
from tests.support.observed_runs import MESSAGES, STARTS, Run, is_same
from tests.support.resuming import value
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio

STEP_SECONDS = 0.1
STEPS = 3
CHECK_SECONDS = STEPS * STEP_SECONDS
DURING = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
"""Times at which a check is suspended in each of its steps, or about to continue."""
LONG_SECONDS = 100.0


class SlowLeases:
    """Leases in a slow store.

    Args:
        is_full: whether the store has no lease.

    Attributes:
        leased: the slots that have a lease.
        asked: the number of requests for a lease.
    """

    def __init__(self, *, is_full: bool = False) -> None:
        self.leased: set[Slot] = set()
        self.asked = 0
        self._is_full = is_full

    async def take(self, slot: Slot, _: str) -> int | None:
        self.asked += 1
        self.leased.add(slot)  # as long as it is unknown whether there is a lease, there may be one
        for _step in range(STEPS):
            await asyncio.sleep(STEP_SECONDS)
        if self._is_full:
            self.leased.discard(slot)
            return None
        return len(self.leased)

    def hold(self, slot: Slot) -> None:
        assert slot in self.leased

    def drop(self, slot: Slot) -> None:
        self.leased.discard(slot)

    async def close(self) -> None:
        pass


def slow(app: ASGIApp, *, is_full: bool = False, **options: Any) -> tuple[SSEMiddleware, Any]:
    """Return `app` inside a middleware whose leases are in a slow store, and these leases."""
    leases: Any = SlowLeases(is_full=is_full)
    wrapped = limited(app, **{"max_streams_per_client": 1000, **options})
    assert wrapped._admission is not None
    wrapped._admission._leases = OncePerLoop(lambda: leases)
    return wrapped, leases


both = pytest.mark.parametrize("mark", ["*", ()], ids=["marked", "unmarked"])
kinds = pytest.mark.parametrize(
    ("mark", "headers"),
    [((), ANY), ("*", ANY), ("*", EVENTSOURCE)],
    ids=["unmarked", "plain", "eventsource"],
)
"""Requests that are checked after their response start."""


async def assert_rejected(exchange: Exchange, headers: Any) -> None:
    """Check that the response is a rejection and nothing else."""
    if headers is EVENTSOURCE:  # it retries later
        await exchange.until_end()
        assert exchange.names == ["start"]
        assert int(exchange.retry or 0) >= 5000
    else:
        assert await answer(exchange) == MANY
    assert exchange.messages[0][1]["type"] == "http.response.start"
    assert {message["type"] for _, message in exchange.messages[1:]} == {"http.response.body"}
    assert b"data: 1" not in exchange.body


def exchange_with(headers: Any, method: str = "GET") -> Exchange:
    return Exchange(http_scope(headers=headers, method=method, client=("192.0.2.1", 50000)))


@asynccontextmanager
async def left_clean(app: SSEMiddleware, leases: SlowLeases) -> AsyncIterator[None]:
    """Check after the block that no slot, lease or task is left; each slot is released once."""
    released: list[Slot] = []
    drop = leases.drop

    def count(slot: Slot) -> None:
        released.append(slot)
        drop(slot)

    leases.drop = count  # type: ignore[method-assign]
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(LONG_SECONDS)
    assert app._admission is not None
    assert len(app._admission.slots) == 0
    assert leases.leased == set()
    assert len(released) == len(set(released))
    names = [str(task) for task in asyncio.all_tasks() - before]
    assert [name for name in names if "BackgroundWriter" not in name] == []


class Holding:
    """An app whose body holds a resource, which only its `finally` block releases."""

    def __init__(self) -> None:
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._held += 1
        await StreamingResponse(self._events(), media_type="text/event-stream")(
            scope, receive, send
        )

    async def held_in_the_end(self) -> int:
        """Return the number of resources that are held after unused generators are finalized."""
        gc.collect()
        await asyncio.sleep(1)
        return self._held

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(1)
        finally:
            self._held -= 1


@kinds
async def test_the_app_is_not_suspended_in_its_response_start(mark: Any, headers: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        coroutine: Any = send(stream_start())
        with pytest.raises(StopIteration):
            coroutine.send(None)
        await asyncio.sleep(LONG_SECONDS)

    wrapped, leases = slow(app, mark=mark)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(headers)) as exchange:
        assert await answer(exchange) == LET_IN


@kinds
async def test_a_silent_app_has_its_start_sent_as_soon_as_it_is_admitted(
    mark: Any, headers: Any
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(LONG_SECONDS)
        await send(body(b"data: 1\n\n"))
        await send(body(b"", more=False))

    wrapped, leases = slow(app, mark=mark)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(headers)) as exchange:
        began = asyncio.get_running_loop().time()
        assert await answer(exchange) == LET_IN
        assert exchange.messages[0][0] - began == pytest.approx(CHECK_SECONDS, abs=0.01)
        await exchange.until("message")
        await exchange.until_end()


@kinds
async def test_nothing_reaches_the_client_before_a_rejection(mark: Any, headers: Any) -> None:
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        try:
            await send(body(b"data: 1\n\n"))
            ends.append((await receive())["type"])
            ends.append((await receive())["type"])
            await send(body(b"data: 2\n\n"))
        finally:
            ends.append("finally")

    wrapped, leases = slow(app, is_full=True, mark=mark)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(headers)) as exchange:
        await assert_rejected(exchange, headers)
        assert exchange.task is not None
        await exchange.task
    assert ends in (
        ["http.request", "http.disconnect", "finally"],
        ["http.disconnect", "http.disconnect", "finally"],
    )


@kinds
@pytest.mark.parametrize("at", [*DURING, 0.35])
async def test_a_body_that_has_begun_always_runs_its_finally_blocks(
    mark: Any, headers: Any, at: float
) -> None:
    holding, registry = Holding(), CollectorRegistry()
    wrapped, leases = slow(holding, mark=mark, linger_seconds=0, registry=registry)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(headers)) as exchange:
        await asyncio.sleep(at)
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
        assert exchange.messages[0][1]["type"] == "http.response.start"
        if at < CHECK_SECONDS:
            assert len(exchange.messages) == 1, "the check has continued without a client"
            assert asyncio.get_running_loop().time() == pytest.approx(exchange.messages[0][0])
    assert await holding.held_in_the_end() == 0
    assert value(registry, "sse_streams_active") == 0


@kinds
@pytest.mark.parametrize("at", [*DURING, 0.35])
async def test_a_cancelled_app_has_no_start_and_no_slot(mark: Any, headers: Any, at: float) -> None:
    holding, registry = Holding(), CollectorRegistry()
    wrapped, leases = slow(holding, mark=mark, registry=registry)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(headers)) as exchange:
        await asyncio.sleep(at)
        assert exchange.task is not None
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        assert bool(exchange.messages) is (at > CHECK_SECONDS)
    assert await holding.held_in_the_end() == 0
    assert value(registry, "sse_streams_active") == 0


@kinds
@pytest.mark.parametrize("is_full", [False, True], ids=["admitted", "rejected"])
@pytest.mark.parametrize("at", [*DURING, 0.35])
@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_an_app_that_ends_before_its_body_has_the_response_that_it_has_without_a_check(
    how: str, at: float, mark: Any, headers: Any, *, is_full: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(at)
        if how == "raises":
            raise ValueError("swordfish")

    registry = CollectorRegistry()
    wrapped, leases = slow(app, is_full=is_full, mark=mark, registry=registry)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(headers)) as exchange:
        assert exchange.task is not None
        await asyncio.wait((exchange.task,))
        assert isinstance(exchange.task.exception(), ValueError) is (how == "raises")
        if is_full:
            await assert_rejected(exchange, headers)
        else:
            assert await answer(exchange) == LET_IN
            is_notified = headers is EVENTSOURCE
            error = ["error"] * (how == "raises")
            assert exchange.names == (["start", *error] if is_notified else [])
            family = "unmarked" if not mark else "eventsource" if is_notified else "plain"
            outcome = "error" if how == "raises" else "incomplete"
            labels = {"route": "unmatched", "family": family, "outcome": outcome}
            assert value(registry, "sse_streams_total", **labels) == 1
    assert value(registry, "sse_streams_active") == 0


@both
@pytest.mark.parametrize("at", DURING)
async def test_an_app_that_continues_without_its_client_writes_as_without_the_middleware(
    mark: Any, at: float
) -> None:
    messages = [stream_start(), body(b"data: 1\n\n"), body(b"", more=False)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(messages[0])
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        for message in messages[1:]:
            await send(message)

    wrapped, leases = slow(app, mark=mark)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(ANY)) as exchange:
        await asyncio.sleep(at)
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
        assert all(a is b for (_, a), b in zip(exchange.messages, messages, strict=True))


@both
@pytest.mark.parametrize("is_sent", [True, False], ids=["sends", "silent"])
@pytest.mark.parametrize("exc", [OSError("gone"), RuntimeError("swordfish")], ids=repr)
async def test_an_exception_of_the_server_in_a_held_start_is_raised_once(
    exc: Exception, mark: Any, *, is_sent: bool
) -> None:
    caught: list[Exception] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        if is_sent:
            try:
                await send(body(b"data: 1\n\n"))
            except (OSError, RuntimeError) as error:
                caught.append(error)

    wrapped, leases = slow(app, mark=mark)
    exchange = exchange_with(ANY)
    exchange.refusal = exc
    async with left_clean(wrapped, leases), running(wrapped, exchange):
        assert exchange.task is not None
        await asyncio.wait((exchange.task,))
        raised = exchange.task.exception()
    if is_sent and not (mark and isinstance(exc, OSError)):
        assert caught == [exc]
    assert raised is (exc if isinstance(exc, RuntimeError) and not is_sent else None)


@both
@pytest.mark.parametrize("disconnects", [True, False])
@pytest.mark.parametrize("exc", [OSError("gone"), RuntimeError("swordfish")], ids=repr)
async def test_an_exception_of_the_server_does_not_replace_that_of_the_app(
    exc: Exception, mark: Any, caplog: pytest.LogCaptureFixture, *, disconnects: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        listening = asyncio.ensure_future(receive())
        await send(stream_start())
        await asyncio.sleep(0.05)
        listening.cancel()
        raise ValueError("its own")

    wrapped, leases = slow(app, mark=mark)
    exchange = exchange_with(ANY)
    exchange.refusal = exc
    async with left_clean(wrapped, leases), running(wrapped, exchange):
        if disconnects:
            exchange.disconnect()
        assert exchange.task is not None
        with pytest.raises(ValueError, match="its own") as raised:
            await exchange.task
    assert raised.value.__context__ is None
    assert ("RuntimeError" in caplog.text) is isinstance(exc, RuntimeError)


@both
async def test_an_exception_of_a_blocked_start_does_not_replace_that_of_the_app(mark: Any) -> None:
    class Failing(Exchange):
        async def send(self, message: Message) -> None:
            await super().send(message)
            raise RuntimeError("swordfish")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(CHECK_SECONDS + 0.05)
        raise ValueError("its own")

    wrapped, leases = slow(app, mark=mark)
    exchange = Failing(http_scope(headers=ANY, client=("192.0.2.1", 50000)))
    exchange.block()
    async with left_clean(wrapped, leases), running(wrapped, exchange):
        await asyncio.sleep(CHECK_SECONDS + 0.1)
        exchange.unblock()
        assert exchange.task is not None
        with pytest.raises(ValueError, match="its own"):
            await exchange.task


async def test_a_check_that_fails_unexpectedly_is_raised_and_the_app_can_respond() -> None:
    class Failing(SlowLeases):
        async def take(self, *_: object) -> int | None:
            raise ValueError("swordfish")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        with pytest.raises(ValueError, match="swordfish"):
            await send(body(b"data: 1\n\n"))
        await send(body(b"data: 2\n\n", more=False))

    wrapped, _ = slow(app)
    leases: Any = Failing()
    assert wrapped._admission is not None
    wrapped._admission._leases = OncePerLoop(lambda: leases)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(ANY)) as exchange:
        assert exchange.task is not None
        await exchange.task
        assert exchange.status == 200
        assert exchange.body == b"data: 2\n\n"


@both
async def test_the_tasks_of_an_app_write_in_order_and_a_cancelled_one_stops_no_other(
    mark: Any,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        tasks: list[asyncio.Task[None]] = [
            asyncio.create_task(send(body(b"data: %d\n\n" % number)))  # type: ignore[arg-type]
            for number in range(4)
        ]
        cancelled, *others = tasks
        await asyncio.sleep(STEP_SECONDS)
        cancelled.cancel()
        await asyncio.gather(*others)
        assert cancelled.cancelled()
        await send(body(b"", more=False))

    wrapped, leases = slow(app, mark=mark)
    async with left_clean(wrapped, leases), running(wrapped, exchange_with(ANY)) as exchange:
        await exchange.until_end()
        assert [event.data for event in exchange.events] == ["1", "2", "3"]


async def test_a_blocked_client_gets_no_body_before_its_start() -> None:
    """The start is sent by a task, in which the server may suspend it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n", more=False))

    wrapped, leases = slow(app, mark=())
    async with left_clean(wrapped, leases):
        exchange = exchange_with(ANY)
        exchange.block()
        async with running(wrapped, exchange):
            await asyncio.sleep(1)
            assert exchange.overlaps == 0
            exchange.unblock()
            await exchange.until_end()
            kinds = [message["type"] for _, message in exchange.messages]
            assert kinds == ["http.response.start", "http.response.body"]


async def test_the_body_of_a_request_is_read_meanwhile_and_selects_the_stream_later() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(STEP_SECONDS)
        assert (await receive())["body"] == b"question"
        await send(body(b"data: 1\n\n", more=False))

    headers = [*EVENTSOURCE, (b"accept", b"text/event-stream;events=named")]
    wrapped, leases = slow(app)
    exchange = Exchange(http_scope(headers=headers, method="POST"), body=b"question")
    async with left_clean(wrapped, leases), running(wrapped, exchange):
        await exchange.until_end()


async def test_no_check_is_made_twice_and_none_for_a_request_that_was_checked_before_the_app() -> (
    None
):
    wrapped, leases = slow(Holding(), mark=(), linger_seconds=0)
    async with left_clean(wrapped, leases):
        for headers in (ANY, [(b"accept", b"text/event-stream")]):
            async with running(wrapped, exchange_with(headers)) as exchange:
                await exchange.until_count(2)
    assert leases.asked == 2


async def test_limits_of_this_process_alone_hold_no_start() -> None:
    """The messages pass as the same objects, within the app's own calls."""
    messages = [body(b"data: 1\n\n"), body(b"", more=False)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        assert len(exchange.messages) == 1
        for number, message in enumerate(messages):
            await send(message)
            assert exchange.messages[number + 1][1] is message

    for options in ({}, {"rollout_percent": 0}):
        wrapped = limited(app, max_streams=5, max_streams_per_client=5, mark=(), **options)
        exchange = exchange_with(EVENTSOURCE)
        await wrapped(exchange.scope, exchange.receive, exchange.send)


def observed(script: list[Any], *, wrapped: bool) -> Run:
    async def run() -> Run:
        found = Run(script, "nothing", 0.0)
        await found.observe(slow(found.app, mark=())[0] if wrapped else found.app)
        return found

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(run())


@settings(max_examples=sampled(100))
@given(
    start=STARTS,
    after=st.lists(
        st.one_of(MESSAGES, STARTS, st.sampled_from(["receive", "sleep", "yield", "raise"])),
        max_size=6,
    ),
)
def test_the_server_gets_the_same_messages_from_any_app_as_without_the_middleware(
    start: Message, after: list[Any]
) -> None:
    script = [start, *after]
    bare, ours = (observed(script, wrapped=wrapped) for wrapped in (False, True))
    assert len(ours.objects) == len(bare.objects)
    assert all(is_same(*pair) for pair in zip(ours.objects, bare.objects, strict=True))
    without_times = [
        [what for _, *what in run.seen if "server" not in what[0]] for run in (ours, bare)
    ]
    assert without_times[0] == without_times[1]
