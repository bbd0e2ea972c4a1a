"""The drain begins when hypercorn waits for its connections, which depends on names of hypercorn.

hypercorn reports no signal to its apps. The drain begins when its main coroutine waits in
`asyncio.Server.wait_closed`, or in `asyncio.wait_for` before Python 3.12.1; they are found by their
names, which may change.
"""

import asyncio
import signal
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

import pytest

from sse_middleware.stream.drain import Drain
from sse_middleware.stream.shutdown import Shutdown, _awaited_code

pytestmark = pytest.mark.anyio

LONG_SECONDS = 5.0  # of the tests' clock; hypercorn is looked at twice a second


def hypercorn(serve: str, wait: str, *, file: str = "hypercorn/asyncio/run.py") -> Any:
    """Return the main coroutine function of a hypercorn with names as given."""
    source = f"""
async def {wait}(closed):
    await closed.wait()

async def {serve}(closing, closed):
    await closing.wait()
    await {wait}(closed)
"""
    names: dict[str, Any] = {}
    exec(compile(source, f"/site-packages/{file}", "exec"), names)
    return names[serve]


class Server:
    """A server that runs its main coroutine in a task."""

    def __init__(self, main: Any) -> None:
        self.closing = asyncio.Event()
        self.closed = asyncio.Event()
        self.task = asyncio.ensure_future(main(self.closing, self.closed))

    async def close(self) -> None:
        self.closing.set()
        self.closed.set()
        await self.task


class Opaque(Coroutine[Any, Any, None]):
    """A coroutine without the attributes of Python's own, as compiled code may have them."""

    def __init__(self, inner: Coroutine[Any, Any, None]) -> None:
        self._inner = inner

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, *args: Any) -> Any:
        return self._inner.throw(*args)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._inner.__await__()


class OddCode(Opaque):
    """A coroutine with a `cr_code` that is no code object."""

    cr_code = "worker_serve"


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Install a server's handler of SIGTERM, and return the signals that it gets."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    try:
        yield numbers
    finally:
        signal.signal(signal.SIGTERM, before)


def watched(shutdown: Shutdown) -> Drain:
    """Return the drain of the running loop, as after the first stream."""
    shutdown.watch()
    return shutdown.drain_for(asyncio.get_running_loop())


async def assert_signal_begins(drain: Drain, handled: list[int]) -> None:
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert drain.is_draining
    assert handled == [signal.SIGTERM]


@pytest.mark.parametrize("wait", ["wait_closed", "wait_for"])
async def test_the_drain_begins_when_hypercorn_waits_for_its_connections(wait: str) -> None:
    server = Server(hypercorn("worker_serve", wait))
    await asyncio.sleep(0)
    shutdown = Shutdown()
    drain = watched(shutdown)
    await asyncio.sleep(LONG_SECONDS)
    assert not drain.is_draining
    server.closing.set()
    await asyncio.sleep(LONG_SECONDS)
    assert drain.is_draining
    assert shutdown.is_draining
    await server.close()


async def test_a_server_whose_app_has_several_lifespans_drains_all_of_it() -> None:
    """Layers inside each other, or apps side by side, each have the middleware."""
    server = Server(hypercorn("worker_serve", "wait_closed"))
    await asyncio.sleep(0)
    shutdown = Shutdown()
    with shutdown.serving(can_end_streams=True), shutdown.serving(can_end_streams=True):
        server.closing.set()
        await asyncio.sleep(LONG_SECONDS)
        assert shutdown.is_draining
    await server.close()


async def test_the_first_of_two_servers_that_ends_begins_no_drain() -> None:
    first, second = (Server(hypercorn("worker_serve", "wait_closed")) for _ in range(2))
    await asyncio.sleep(0)
    drain = watched(Shutdown())
    first.closing.set()
    await asyncio.sleep(LONG_SECONDS)
    assert not drain.is_draining
    second.closing.set()
    await asyncio.sleep(LONG_SECONDS)
    assert drain.is_draining
    await first.close()
    await second.close()


async def test_a_wait_during_the_start_of_hypercorn_begins_no_drain() -> None:
    main = hypercorn("wait_for_startup", "wait_for")

    async def worker_serve(closing: asyncio.Event, closed: asyncio.Event) -> None:
        await main(closing, closed)

    worker_serve.__code__ = worker_serve.__code__.replace(co_filename="/hypercorn/asyncio/run.py")
    server = Server(worker_serve)
    server.closing.set()
    await asyncio.sleep(0)
    drain = watched(Shutdown())
    await asyncio.sleep(LONG_SECONDS)
    assert not drain.is_draining
    await server.close()


@pytest.mark.parametrize(
    "names",
    [
        {"serve": "serve_worker", "wait": "wait_closed"},
        {"serve": "worker_serve", "wait": "wait_until_closed"},
        {"serve": "worker_serve", "wait": "wait_closed", "file": "another/run.py"},
    ],
    ids=lambda names: "-".join(names.values()),
)
async def test_other_names_begin_no_drain_and_signals_still_do(
    names: dict[str, str], handled: list[int]
) -> None:
    server = Server(hypercorn(**names))
    await asyncio.sleep(0)
    drain = watched(Shutdown())
    server.closing.set()
    await asyncio.sleep(LONG_SECONDS)
    assert not drain.is_draining
    await assert_signal_begins(drain, handled)
    await server.close()


@pytest.mark.parametrize("kind", [Opaque, OddCode])
async def test_coroutines_without_code_begin_no_drain_and_signals_still_do(
    kind: type[Opaque], handled: list[int]
) -> None:
    main = hypercorn("worker_serve", "wait_closed")
    server = Server(lambda *events: kind(main(*events)))
    await asyncio.sleep(0)
    drain = watched(Shutdown())
    server.closing.set()
    await asyncio.sleep(LONG_SECONDS)
    assert not drain.is_draining
    await assert_signal_begins(drain, handled)
    await server.close()


async def test_tasks_that_do_not_give_their_coroutine_begin_no_drain(handled: list[int]) -> None:
    class Task(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]
        get_coro = None

    loop = asyncio.get_running_loop()
    closing, closed = asyncio.Event(), asyncio.Event()
    task = Task(hypercorn("worker_serve", "wait_closed")(closing, closed), loop=loop)
    await asyncio.sleep(0)
    drain = watched(Shutdown())
    closing.set()
    await asyncio.sleep(LONG_SECONDS)
    assert not drain.is_draining
    await assert_signal_begins(drain, handled)
    closed.set()
    await task


class RunningTask:
    """A task whose coroutine runs, and must not be asked for the object that it awaits."""

    cr_code = assert_signal_begins.__code__
    cr_running = True

    def get_coro(self) -> "RunningTask":
        return self

    @property
    def cr_await(self) -> None:
        pytest.fail("CPython 3.11 can crash here")


def test_the_awaited_object_of_a_running_coroutine_is_not_requested() -> None:
    """An app's start was one such place: it runs in a task of the event loop."""
    task: Any = RunningTask()
    assert list(_awaited_code(task)) == [RunningTask.cr_code]
