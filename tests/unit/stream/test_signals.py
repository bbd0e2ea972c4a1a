"""Signals: when a handler is installed, and the effect of a second signal or a second server."""

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming
from sse_middleware._once import OncePerKey
from sse_middleware.stream.shutdown import SHUTDOWN, Shutdown
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.draining import assert_shut_down
from tests.support.resuming import Counting, opened, read, resumable
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

DRAIN = 5.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def now() -> float:
    return asyncio.get_running_loop().time()


class Server:
    """A server's handler of signals.

    Attributes:
        received: the signals that it has received.
        should_exit: whether it has received one, as uvicorn shows it.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.should_exit = False

    def handle_exit(self, number: int, _: object) -> None:
        self.received.append(number)

    def start(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self.handle_exit)

    @property
    def is_first(self) -> bool:
        """Whether its own handlers are those that run first."""
        return all(signal.getsignal(number) == self.handle_exit for number in SIGNALS)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start a server in a process in which no stream has been open yet."""
    monkeypatch.setattr(SHUTDOWN, "_is_watching", False)
    server, before = Server(), {number: signal.getsignal(number) for number in SIGNALS}
    server.start()
    try:
        yield server
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """Have a lifespan, and stream until the task is cancelled."""
    if scope["type"] == "lifespan":
        await asyncio.Event().wait()
    await send(stream_start())
    while True:
        await send(body(b"data: x\n\n"))
        await asyncio.sleep(1)


def wrapped(**options: Any) -> SSEMiddleware:
    return SSEMiddleware(endless, **{"registry": CollectorRegistry(), **options})


def lifespan(app: ASGIApp) -> AbstractAsyncContextManager[Exchange]:
    """Run the lifespan of an app."""
    return running(app, Exchange({**http_scope(), "type": "lifespan"}))


def stream(app: ASGIApp, path: str = "/") -> AbstractAsyncContextManager[Exchange]:
    return running(app, Exchange(http_scope(headers=EVENTSOURCE, path=path)))


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_reaches_the_streams_and_then_the_server(
    server: Server, number: signal.Signals
) -> None:
    async with opened(resumable(Counting(1000))) as exchange:
        await exchange.until_count(2, "message")
        signal.raise_signal(number)
        assert server.received == [number]
        assert vars(signal.getsignal(number))["__self__"] is server  # sse-starlette looks for it so
        began = now()
        await exchange.until_end()
        assert now() - began == pytest.approx(DRAIN, abs=0.05)
        assert_shut_down(exchange)


async def test_a_second_signal_ends_at_once(server: Server, monkeypatch: Any) -> None:
    times = iter((100.0, 100.2, 101.5))
    monkeypatch.setattr(
        "sse_middleware.stream.shutdown.time", SimpleNamespace(monotonic=lambda: next(times))
    )
    async with opened(resumable(Counting(1000))) as exchange:
        await exchange.until_count(2, "message")
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # the same Ctrl-C, by way of a parent process
        await asyncio.sleep(1)
        assert not exchange.ended
        began = now()
        signal.raise_signal(signal.SIGINT)
        await exchange.until_end()
        assert now() - began < 0.1
        assert_shut_down(exchange)
    assert len(server.received) == 3


async def test_signals_that_no_server_handles_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    await read(resumable(Counting(1)))
    assert [signal.getsignal(number) for number in SIGNALS] == before


async def test_a_worker_of_hypercorn_ends_as_by_the_default_handler_but_after_its_streams(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SHUTDOWN, "_is_worker_of_hypercorn", True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    async with opened(resumable(Counting(1000))) as exchange:
        await exchange.until_count(2, "message")
        signal.raise_signal(signal.SIGTERM)
        raised: list[int] = []
        monkeypatch.setattr(signal, "raise_signal", raised.append)
        began = now()
        await exchange.until_end()
        assert now() - began == pytest.approx(DRAIN, abs=0.05)
        assert_shut_down(exchange)
        await asyncio.sleep(9)  # for the lifespan of the app
        assert raised == []
        await asyncio.sleep(2)
        assert raised == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# When a handler is installed


async def test_none_is_installed_for_an_app_without_marks(server: Server) -> None:
    app = wrapped()
    async with lifespan(app), stream(app) as exchange:
        await exchange.until_count(2)
        assert server.is_first


@pytest.mark.parametrize(
    "options",
    [
        {"mark": "/chat"},
        {"marks": {"/chat": streaming()}},
        {"drain_seconds": 3},
        {"ready_path": "/ready"},
    ],
    ids=["mark", "marks", "drain_seconds", "ready_path"],
)
async def test_one_is_installed_at_the_start_if_a_setting_shows_that_a_drain_has_an_effect(
    options: Any, server: Server
) -> None:
    async with lifespan(wrapped(**options)):
        await asyncio.sleep(0)
        assert not server.is_first


async def test_a_decorator_installs_one_with_the_first_stream_that_it_marks(server: Server) -> None:
    app = Starlette(
        routes=[Route("/marked", streaming(Counting(99))), Route("/", Counting(99))],
        lifespan=None,
    )
    app.add_middleware(SSEMiddleware, registry=CollectorRegistry())
    async with lifespan(app), stream(app) as other:
        await other.until_count(1)
        assert server.is_first
        async with stream(app, "/marked") as exchange:
            await exchange.until("message")
            assert not server.is_first
            signal.raise_signal(signal.SIGTERM)
            await exchange.until_end()
            assert_shut_down(exchange)
        assert server.received == [signal.SIGTERM]


async def test_a_server_that_has_its_signal_before_the_first_stream_drains_that(
    server: Server,
) -> None:
    server.should_exit = True
    async with opened(resumable(Counting(1000))) as exchange:
        began = now()
        await exchange.until_end()
        assert now() - began == pytest.approx(DRAIN, abs=0.05)
        assert_shut_down(exchange)


# Handlers that others install


async def test_a_second_server_that_starts_later_has_a_handler_of_ours_too(server: Server) -> None:
    second = Server()
    apps = [resumable(endless) for _ in range(2)]
    async with lifespan(apps[0]), opened(apps[0]) as one:
        await one.until("message")
        second.start()
        async with lifespan(apps[1]), opened(apps[1]) as two:
            await two.until("message")
            signal.raise_signal(signal.SIGTERM)
            assert (second.received, server.received) == ([signal.SIGTERM], [])
            for exchange in (one, two):
                await exchange.until_end()
                assert_shut_down(exchange)


async def test_a_handler_that_calls_the_one_before_it_is_called_once(server: Server) -> None:
    calls: list[int] = []
    async with opened(resumable(Counting(1000))) as exchange:
        await exchange.until("message")
        before: Any = signal.getsignal(signal.SIGTERM)

        def other(number: int, frame: Any) -> None:
            calls.append(number)
            before(number, frame)

        signal.signal(signal.SIGTERM, other)
        for _ in range(3):
            SHUTDOWN.watch()
        signal.raise_signal(signal.SIGTERM)
        assert (calls, server.received) == ([signal.SIGTERM], [signal.SIGTERM])
        began = now()
        await exchange.until_end()
        assert now() - began == pytest.approx(DRAIN, abs=0.05)


async def test_the_handler_of_the_server_is_called_if_ours_fails(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(resumable(Counting(1000))) as exchange:
        await exchange.until("message")
        monkeypatch.setattr(SHUTDOWN, "drain_for", None)
        with pytest.raises(AttributeError):
            signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
    assert server.received == [signal.SIGTERM]


async def test_a_signal_that_is_raised_again_for_another_server_is_no_second_signal(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn does so when it has ended; the streams of the other server have more time."""
    times = iter((100.0, 105.0, 110.0))
    monkeypatch.setattr(
        "sse_middleware.stream.shutdown.time", SimpleNamespace(monotonic=lambda: next(times))
    )
    second = Server()
    app = resumable(endless, drain_seconds=60)
    async with lifespan(app), opened(app) as exchange:
        await exchange.until("message")
        first_handlers = {number: signal.getsignal(number) for number in SIGNALS}
        second.start()
        SHUTDOWN.watch()
        signal.raise_signal(signal.SIGTERM)
        for number, handler in first_handlers.items():  # the second server ends
            signal.signal(number, handler)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(30)
        assert not exchange.ended
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(1)
        assert_shut_down(exchange)
    assert (second.received, server.received) == ([15], [15, 2])


async def test_a_server_after_another_one_in_the_same_loop_is_not_draining(server: Server) -> None:
    for number in (1, 2):
        app = resumable(endless)
        async with lifespan(app):
            await asyncio.sleep(0)
            async with opened(app) as exchange:
                await exchange.until_count(3, "message")
                signal.raise_signal(signal.SIGTERM)
                began = now()
                await exchange.until_end()
                assert now() - began == pytest.approx(DRAIN, abs=0.05)
                assert_shut_down(exchange)
        assert len(server.received) == number
        server.start()


# Threads


async def test_a_stream_in_a_thread_has_the_handlers_installed_in_the_main_thread(
    server: Server,
) -> None:
    """Python installs handlers in the main thread only."""
    ready = threading.Event()
    exchange = Exchange(http_scope(headers=EVENTSOURCE))

    async def serve() -> None:
        async with running(wrapped(mark="*", drain_seconds=0.2), exchange):
            await exchange.until("message")
            ready.set()
            await exchange.until_end()

    async with lifespan(wrapped()):
        await asyncio.sleep(0)
        assert server.is_first
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(HANG_SECONDS)
        await asyncio.sleep(0)
        assert not server.is_first
        signal.raise_signal(signal.SIGTERM)
        thread.join(HANG_SECONDS)
    assert exchange.ended
    assert json.loads(exchange.events[-1].data)["reason"] == "shutdown"
    assert server.received == [signal.SIGTERM]


class EndlessStream:
    """A stream that only its drain knows."""

    drain_seconds = 5.0

    def on_drain(self) -> None:
        """Continue."""

    def on_drain_over(self) -> bool:
        """Continue."""
        return False


async def test_a_loop_that_is_added_during_a_drain_is_drained_too() -> None:
    shutdown, stream = Shutdown(), EndlessStream()
    drain_here = shutdown.drain_for(asyncio.get_running_loop())
    drain_here.add(stream)
    draining = asyncio.create_task(shutdown.drain())
    await asyncio.sleep(0.1)
    other, has_started = asyncio.new_event_loop(), threading.Event()
    other.call_soon(has_started.set)
    thread = threading.Thread(target=other.run_forever)
    thread.start()
    assert has_started.wait(HANG_SECONDS)
    drain_there = shutdown.drain_for(other)
    drain_here.remove(stream)
    await until(draining.done, "the drain is not over")
    other.call_soon_threadsafe(other.stop)
    thread.join(HANG_SECONDS)
    other.close()
    assert drain_there.is_draining


def test_loops_may_be_added_while_a_signal_is_handled() -> None:
    """A server starts in a thread; the handler runs in the main thread."""
    made, loops = OncePerKey[Any, str](lambda _: "value"), [EndlessStream() for _ in range(3)]
    made(loops[0])
    made(loops[1])
    found = []
    for item in made.items():
        made(loops[2])
        found.append(item)
    assert set(found) == {(loop, "value") for loop in loops[:2]}
