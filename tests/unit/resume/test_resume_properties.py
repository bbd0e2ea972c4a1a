"""For any bytes of an app and any cut of its client, each event arrives once, in order."""

import asyncio
import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware.protocol.parser import EventParser
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.clock import VirtualClockLoop
from tests.support.middleware import marking
from tests.support.resuming import memory
from tests.support.samples import sampled

EVENT = st.sampled_from(
    [
        b"data: a\n\n",
        b"data: b\r\ndata: c\r\n\r\n",
        b"event: x\rdata: d\r\r",
        "data: ä€😀\n\n".encode(),
        b": comment\n\n",
        b"data: e\n: comment\ndata: f\n\n",
        b"retry: 7\n\n",
        b"data\n\n",
        b"data: " + b"g" * 300 + b"\n\n",
        b": comment\ndata: h\nretry: 9\n\n",
        b"\n",
    ]
)
Piece = tuple[bytes, float]
"""Some bytes of an app's, and the pause after them."""
Cut = tuple[int, float]
"""The number of bytes after which a connection is cut, and the time until its client reconnects."""
Got = tuple[int, str, str]
"""An event as a page gets it: its number, its type, its data."""

pauses = st.sampled_from([0.0, 0.0, 0.0005, 0.002, 0.02, 0.3])
cuts = st.lists(
    st.tuples(st.integers(0, 900), st.sampled_from([0.0, 0.001, 0.05, 1.0])), max_size=12
)


class SlowExchange(Exchange):
    """A server with writes that each take some turns of the loop."""

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        await super().send(message)
        await asyncio.sleep(0)


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    stream = b"".join(draw(st.lists(EVENT, min_size=1, max_size=12)))
    positions = sorted(draw(st.sets(st.integers(1, len(stream)), max_size=8)))
    bounds = [0, *positions, len(stream)]
    chunks = [stream[one:other] for one, other in pairwise(bounds)]
    return [(chunk, draw(pauses)) for chunk in chunks]


class Client:
    """An `EventSource` and its page, which discards its events at a `reset`.

    Attributes:
        has: the events of the app that the page has.
        resets: how often it had to start again.
        done: whether it has received the end.
    """

    def __init__(self) -> None:
        self.has: list[Got] = []
        self.resets = 0
        self.done = False
        self._held = ""

    def request(self) -> list[tuple[bytes, bytes]]:
        held = [(b"last-event-id", self._held.encode())] if self._held else []
        return [*EVENTSOURCE, *held]

    def take(self, data: bytes) -> None:
        parser = EventParser()
        for event in parser.feed(data):
            if event.event == "start":
                assert json.loads(event.data)["resumed"] or not self.has
            elif event.event == "reset":
                self.resets += 1
                self.has = []
            elif event.event == "complete":
                self.done = True
            elif event.event != "heartbeat":
                assert event.event != "error"
                number = int(str(event.id).rpartition("-")[2])
                self.has.append((number, event.event, event.data))
        self._held = parser.last_event_id or self._held


def expected(written: list[Piece]) -> list[Got]:
    """Return the events that a page without a cut gets from an app's pieces."""
    events = EventParser().feed(b"".join(chunk for chunk, _ in written))
    return [(number, event.event, event.data) for number, event in enumerate(events, 1)]


async def read(
    app: SSEMiddleware, client: Client, positions: list[Cut], kind: type[Exchange]
) -> None:
    """Read a response over as many connections as necessary, and cut the first ones."""
    remaining = iter(positions)
    tasks: list[asyncio.Task[Any]] = []
    for _ in range(200):
        length, wait = next(remaining, (1 << 30, 0.0))
        exchange = kind(http_scope(headers=client.request()))
        tasks.append(asyncio.ensure_future(_serve(app, exchange)))
        await asyncio.sleep(0)
        with suppress(AssertionError):  # it has ended before that
            await exchange._until(lambda: len(exchange.body) >= length, "its bytes")  # noqa: B023
        exchange.disconnect()
        client.take(exchange.body[:length])
        if client.done:
            break
        await asyncio.sleep(wait)
    await asyncio.gather(*tasks)


async def _serve(app: SSEMiddleware, exchange: Exchange) -> None:
    async with running(app, exchange):
        assert exchange.task is not None
        await exchange.task


def in_virtual_time(scenario: Any) -> None:
    async def run() -> None:
        before = asyncio.all_tasks()
        async with asyncio.timeout(10_000):
            await scenario()
        await asyncio.sleep(100)
        assert asyncio.all_tasks() == before

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(run())


def app_that_writes(written: list[Piece], *, listens: bool) -> Any:
    """Return an app that sends pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        left = asyncio.ensure_future(receive()) if listens else None
        await send(stream_start())
        for chunk, pause in written:
            await send(body(chunk))
            await asyncio.sleep(pause)
            if left is not None and left.done():
                return
        await send(body(b"", more=False))
        if left is not None:
            left.cancel()

    return app


@given(
    written=pieces(),
    positions=cuts,
    listens=st.booleans(),
    batch=st.booleans(),
    kind=st.sampled_from([Exchange, SlowExchange]),
    heartbeat=st.sampled_from([None, 0.05]),
    rotates=st.sampled_from([None, 0.05, 0.3]),
)
@settings(max_examples=sampled(100), deadline=None)
def test_a_client_that_is_cut_anywhere_has_each_event_once(
    written: list[Piece],
    positions: list[Cut],
    kind: type[Exchange],
    heartbeat: float | None,
    rotates: float | None,
    *,
    listens: bool,
    batch: bool,
) -> None:
    client = Client()

    async def scenario() -> None:
        app = marking(
            app_that_writes(written, listens=listens),
            store=memory(),
            linger_seconds=60,
            batch=batch,
            heartbeat_interval=heartbeat,
            stream_max_seconds=rotates,
            cap_action="rotate",
        )
        await read(app, client, positions, kind)

    in_virtual_time(scenario)
    assert client.done
    assert client.has == expected(written)
    assert client.resets == 0


@given(
    written=pieces(), positions=cuts, keeps=st.integers(1, 5), linger=st.sampled_from([0, 0.05, 60])
)
@settings(max_examples=sampled(60), deadline=None)
def test_a_client_of_a_store_that_forgets_has_the_end_of_one_answer_and_no_hole(
    written: list[Piece], positions: list[Cut], keeps: int, linger: float
) -> None:
    client = Client()

    async def scenario() -> None:
        app = marking(
            app_that_writes(written, listens=True),
            store=memory(max_events=keeps, ttl=0.5),
            linger_seconds=linger,
        )
        await read(app, client, positions, Exchange)

    in_virtual_time(scenario)
    assert client.done
    whole = expected(written)
    assert client.has == whole[len(whole) - len(client.has) :]
    if not client.resets:
        assert client.has == whole


@pytest.mark.parametrize("listens", [True, False])
def test_a_client_that_is_cut_after_every_byte_has_each_event_once(*, listens: bool) -> None:
    written = [
        (b"data: a\r\n\r\nda", 0.01),
        (b"ta: b\nevent: x\n\n: c\n\n", 0.0),
        ("data: ä\n\n".encode(), 0.01),
    ]
    clients = [Client() for _ in range(800)]

    async def scenario() -> None:
        app = marking(app_that_writes(written, listens=listens), store=memory(), linger_seconds=60)
        for position, client in enumerate(clients):
            await read(app, client, [(position, 0.005)], Exchange)

    in_virtual_time(scenario)
    for position, client in enumerate(clients):
        assert client.has == expected(written), position
        assert client.resets == 0
