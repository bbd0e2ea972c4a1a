"""A request that is cancelled at any turn of the loop leaves nothing: fresh, lingering, resumed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import current_stream, resume_endpoint
from sse_middleware.stores.base import Batch, LogInfo, LogSnapshot, LogState
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.middleware import marking
from tests.support.resuming import LINGER, TTL, Chunked, back, id_of, opened, texts, value
from tests.support.samples import sampled_turns

pytestmark = pytest.mark.anyio

STEP = 0.0004
TURNS = 60


class TurningStore(MemoryStore):
    """A store that yields to the loop at every call, and records its readers."""

    def __init__(self) -> None:
        super().__init__(ttl=TTL, clock=asyncio.get_running_loop().time)
        self.readers = 0

    async def find(self, stream_id: str) -> LogSnapshot | None:
        await asyncio.sleep(0)
        return await super().find(stream_id)

    async def find_named(self, name: str) -> LogSnapshot | None:
        await asyncio.sleep(0)
        return await super().find_named(name)

    async def cancel(self, stream_id: str) -> bool:
        await asyncio.sleep(0)
        return await super().cancel(stream_id)

    async def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        self.readers += 1
        log = super().follow(stream_id, after)
        try:
            async for batch in log:
                await asyncio.sleep(0)
                yield batch
        finally:
            self.readers -= 1
            await log.aclose()

    def states(self) -> list[LogState]:
        """Return the states of its logs."""
        return [log.snapshot().state for log in self._logs.values()]


class SlowExchange(Exchange):
    """A server with calls that each take some turns of the loop."""

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        await super().send(message)
        await asyncio.sleep(0)

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        return await super().receive()


async def writing(scope: Scope, receive: Receive, send: Send) -> None:
    """Send events in several ways, without listening."""
    current_stream().name("x")
    await send(stream_start())
    await send(body(b"data: 1\n\n"))
    await asyncio.sleep(0)
    for number in range(2, 6):
        await send(body(b"data: %d %b\n\n" % (number, b"x" * 5000)))
    await asyncio.sleep(0.002)
    for number in range(6, 10):
        await send(body(b"data: %d\n\n" % number))
        await asyncio.sleep(0.001)
    await send(body(b"data: 10\n\n", more=False))
    await asyncio.sleep(0)


async def listening(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream as Starlette does, with a task that listens."""

    async def events() -> AsyncIterator[bytes]:
        for number in range(1, 11):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(0.001)

    current_stream().name("x")
    await receive()
    await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)


APPS: list[ASGIApp] = [writing, listening]
each_app = pytest.mark.parametrize("app", APPS, ids=["writing", "listening"])
each_kind = pytest.mark.parametrize("kind", [Exchange, SlowExchange])
once_or_more = pytest.mark.parametrize("often", [False, True], ids=["once", "often"])


async def later(scope: Scope, info: LogInfo) -> bool:
    """Allow a resume, in some turns."""
    await asyncio.sleep(0)
    return True


class World:
    """A middleware around an app; nothing of a request may be left in it."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.store = TurningStore()
        self.reported: list[dict[str, Any]] = []
        self.before = asyncio.all_tasks()
        asyncio.get_running_loop().set_exception_handler(
            lambda _, reported: self.reported.append(reported)
        )
        self.app = marking(
            app,
            store=self.store,
            registry=self.registry,
            authorize_resume=later,
            **{"linger_seconds": LINGER, "heartbeat_interval": 0.05, **options},
        )

    async def is_empty(self) -> None:
        """Check that nothing runs, is counted or kept, now and after the ttl."""
        await turns(5)
        assert asyncio.all_tasks() == self.before
        assert LogState.RUNNING not in self.store.states()
        assert self.store.readers == 0
        assert value(self.registry, "sse_streams_active") == 0
        assert value(self.registry, "sse_lingering_streams") == 0
        await asyncio.sleep(TTL + 1)
        assert (len(self.store), self.store.total_bytes) == (0, 0)
        assert self.reported == []


async def turns(count: int) -> None:
    for number in range(count):
        await asyncio.sleep(STEP if number % 3 else 0)


async def cancel(exchange: Exchange, *, often: bool) -> None:
    """Cancel a request once, or in every turn until it ends, as anyio does."""
    assert exchange.task is not None
    exchange.task.cancel()
    while often and not exchange.task.done():
        await asyncio.sleep(0)
        exchange.task.cancel()
    await asyncio.wait([exchange.task])


async def at_each_turn(try_at: Callable[[int], Awaitable[bool]], *, limit: int = TURNS) -> None:
    """Try at each turn until a request has ended before it was cancelled.

    Args:
        try_at: tries at a turn and returns whether the request had ended by then.
        limit: the last turn to try, for requests that do not end.
    """
    for turn in sampled_turns(limit):
        if await try_at(turn):
            assert turn > 1
            return


@asynccontextmanager
async def writes_nothing_later(exchange: Exchange) -> AsyncIterator[None]:
    written = len(exchange.messages)
    yield
    assert len(exchange.messages) == written
    assert exchange.overlaps == 0


@each_app
@each_kind
@once_or_more
@pytest.mark.parametrize("blocked", [False, True], ids=["reading", "blocked"])
async def test_a_fresh_stream_cancelled_at_any_turn_leaves_nothing(
    app: ASGIApp, kind: type[Exchange], *, often: bool, blocked: bool
) -> None:
    async def try_at(turn: int) -> bool:
        world = World(app)
        exchange = kind(http_scope(headers=EVENTSOURCE))
        async with running(world.app, exchange):
            await turns(turn // 2)
            if blocked:
                exchange.block()
            await turns(turn - turn // 2)
            assert exchange.task is not None
            done = exchange.task.done()
            await cancel(exchange, often=often)
        async with writes_nothing_later(exchange):
            exchange.unblock()
            await world.is_empty()
        return done

    await at_each_turn(try_at)


@each_app
@each_kind
@once_or_more
@pytest.mark.parametrize("refuses", [False, True], ids=["leaves", "refuses"])
async def test_a_lingering_stream_cancelled_at_any_turn_leaves_nothing(
    app: ASGIApp, kind: type[Exchange], *, often: bool, refuses: bool
) -> None:
    async def try_at(turn: int) -> bool:
        world = World(app)
        exchange = kind(http_scope(headers=EVENTSOURCE))
        async with running(world.app, exchange):
            await exchange.until_count(1, "message")
            if refuses:
                exchange.refusal = OSError("gone")
            else:
                exchange.disconnect()
            await turns(turn)
            assert exchange.task is not None
            done = exchange.task.done()
            await cancel(exchange, often=often)
        async with writes_nothing_later(exchange):
            await world.is_empty()
        return done

    await at_each_turn(try_at)


@each_kind
@once_or_more
async def test_a_stream_that_expires_and_is_cancelled_at_any_turn_leaves_nothing(
    kind: type[Exchange], *, often: bool
) -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        try:
            while True:
                await send(body(b"data: x\n\n"))
                await asyncio.sleep(0.001)
        finally:
            await turns(6)  # it cleans up

    async def try_at(turn: int) -> bool:
        world = World(endless, linger_seconds=0.01, stream_max_seconds=None)
        exchange = kind(http_scope(headers=EVENTSOURCE))
        async with running(world.app, exchange):
            await exchange.until_count(1, "message")
            exchange.refusal = OSError("gone")
            await asyncio.sleep(1.008)  # its second of grace is over soon
            await turns(turn)
            assert exchange.task is not None
            done = exchange.task.done()
            await cancel(exchange, often=often)
        await world.is_empty()
        return done

    await at_each_turn(try_at, limit=80)


@each_kind
@once_or_more
@pytest.mark.parametrize("blocked", [False, True], ids=["reading", "blocked"])
@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
@pytest.mark.parametrize("way", ["get", "post", "name"])
async def test_a_reader_cancelled_at_any_turn_leaves_nothing_and_its_stream_alone(
    kind: type[Exchange], way: str, *, often: bool, blocked: bool, ended: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (resume_endpoint("x") if scope["path"] == "/live" else listening)(
            scope, receive, send
        )

    async def try_at(turn: int) -> bool:
        world = World(app, identify=lambda _scope: "ann")
        named = (b"accept", b"text/event-stream;events=named")
        async with opened(world.app, named, method="POST", body=b"ab") as first:
            await first.until_count(1, "message")
            if ended:
                await first.until_end()
            held = back(id_of(first, 1))
            exchange: Exchange
            if way == "post":
                exchange = Chunked(http_scope(method="POST", headers=held), b"a", b"b")
            else:
                path = "/live" if way == "name" else "/"
                exchange = kind(http_scope(path=path, headers=held))
            async with running(world.app, exchange):
                await turns(turn // 2)
                if blocked:
                    exchange.block()
                await turns(turn - turn // 2)
                assert exchange.task is not None
                done = exchange.task.done()
                await cancel(exchange, often=often)
            async with writes_nothing_later(exchange):
                exchange.unblock()
                await first.until_end()
                assert len(texts(first)) == 10
                assert world.store.readers == 0
        await world.is_empty()
        return done

    await at_each_turn(try_at, limit=40)


@each_kind
@once_or_more
async def test_a_rotating_stream_and_its_reader_cancelled_at_any_turn_leave_nothing(
    kind: type[Exchange], *, often: bool
) -> None:
    options: dict[str, Any] = {"cap_action": "rotate", "stream_max_seconds": 0.05}

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        while True:
            await send(body(b"data: x\n\n"))
            await asyncio.sleep(0.004)

    async def try_at(turn: int) -> bool:
        world = World(endless, **options)
        first = kind(http_scope(headers=EVENTSOURCE))
        async with running(world.app, first):
            await asyncio.sleep(0.045)
            await turns(turn)
            reader = kind(http_scope(headers=back(id_of(first, 1))))
            async with running(world.app, reader):
                await asyncio.sleep(0.045)
                await turns(turn)
                await cancel(reader, often=often)
            await cancel(first, often=often)
        async with writes_nothing_later(first), writes_nothing_later(reader):
            await world.is_empty()
        return False

    await at_each_turn(try_at, limit=40)


@each_kind
@once_or_more
async def test_a_cancel_cancelled_at_any_turn_leaves_nothing(
    kind: type[Exchange], *, often: bool
) -> None:
    async def try_at(turn: int) -> bool:
        world = World(listening)
        async with opened(world.app) as first:
            await first.until_count(1, "message")
            exchange = kind(http_scope(method="DELETE", headers=back(id_of(first, 1))))
            async with running(world.app, exchange):
                await turns(turn)
                assert exchange.task is not None
                done = exchange.task.done()
                await cancel(exchange, often=often)
            await first.until_end()
            assert first.names[-1] == "complete"
        await world.is_empty()
        return done

    await at_each_turn(try_at)


@each_app
async def test_a_client_that_leaves_at_any_turn_leaves_nothing(app: ASGIApp) -> None:
    async def try_at(turn: int) -> bool:
        world = World(app)
        async with opened(world.app) as exchange:
            await turns(turn)
            assert exchange.task is not None
            done = exchange.task.done()
            exchange.disconnect()
            await exchange.task
        await world.is_empty()
        return done

    await at_each_turn(try_at)


async def test_a_reader_that_leaves_at_any_turn_leaves_nothing() -> None:
    async def try_at(turn: int) -> bool:
        world = World(listening)
        async with opened(world.app) as first:
            await first.until_count(1, "message")
            exchange = SlowExchange(http_scope(headers=back(id_of(first, 0))))
            async with running(world.app, exchange):
                await turns(turn)
                assert exchange.task is not None
                done = exchange.task.done()
                exchange.disconnect()
                await exchange.task
            await first.until_end()
        await world.is_empty()
        return done

    await at_each_turn(try_at)
