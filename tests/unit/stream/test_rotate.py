"""At the cap a connection may end while the stream continues, so an endless feed has no end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import current_stream, streaming
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_start,
)
from tests.support.resuming import (
    LINGER,
    UNKNOWN,
    Counting,
    Listening,
    counted,
    id_of,
    left,
    memory,
    read,
    resumable,
    resume,
    returning,
    stop,
    texts,
    value,
)

pytestmark = pytest.mark.anyio

ROTATE: dict[str, Any] = {"cap_action": "rotate", "stream_max_seconds": 4.5}


def now() -> float:
    return asyncio.get_running_loop().time()


class StrictExchange(Exchange):
    """A server that rejects messages after the end of a response, as servers do.

    Attributes:
        late: the messages that it has rejected.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.late: list[Message] = []

    async def send(self, message: Message) -> None:
        if self.ended:
            self.late.append(message)
            raise RuntimeError(f"{message} follows the end")
        await super().send(message)
        if self.ended:
            self.on_ended()

    def on_ended(self) -> None:
        """Return the message that a server sends to an app that listens after its end."""
        self.disconnect()  # "or after the response has been completed" (ASGI, Disconnect)


class QuietExchange(StrictExchange):
    """A server that is slow to report the end of a connection."""

    def on_ended(self) -> None:
        pass


@asynccontextmanager
async def strictly(
    app: Any, *headers: tuple[bytes, bytes], kind: type[StrictExchange] = StrictExchange
) -> AsyncIterator[StrictExchange]:
    exchange = kind(http_scope(headers=[*EVENTSOURCE, *headers]))
    async with running(app, exchange):
        yield exchange
    assert exchange.late == []


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    """Count, a number a second, without listening."""
    await send(stream_start())
    for number in range(1, 31):
        await send(body(b"data: %d\n\n" % number))
        await asyncio.sleep(1)
    await send(body(b"", more=False))


@pytest.mark.parametrize("app", [Counting(30), deaf], ids=["listening", "deaf"])
async def test_an_endless_feed_is_one_sequence_over_many_connections(app: Any) -> None:
    kept = resumable(app, heartbeat_interval=None, **ROTATE)
    seen: list[str] = []
    exchanges: list[Exchange] = []
    async with strictly(kept) as first:
        await first.until_end()
        exchanges.append(first)
        seen += texts(first)
        while exchanges[-1].names[-1] != "complete":
            retry = exchanges[-1].retry
            assert retry is not None
            await asyncio.sleep(retry / 1000)
            held = exchanges[-1].last_event_id
            async with strictly(kept, (b"last-event-id", held.encode())) as again:
                await again.until_end()
            exchanges.append(again)
            seen += texts(again)
    assert seen == counted(1, 30)
    assert len(exchanges) > 4
    secrets = {str(each.events[0].id).rpartition("-")[0] for each in exchanges}
    assert len({each.headers[b"x-stream-id"] for each in exchanges}) == 1
    assert len(secrets) == 1
    for exchange in exchanges[:-1]:
        assert exchange.names[0] == "start"
        assert exchange.names[-1] == "heartbeat"
        took = exchange.messages[-1][0] - exchange.messages[0][0]
        assert took == pytest.approx(4.3, abs=0.3)  # spread over a tenth


async def test_the_last_heartbeat_of_a_connection_has_a_spread_retry_interval() -> None:
    app = resumable(Counting(99), retry_ms=1000, **ROTATE)
    retries: list[int] = []
    for _ in range(12):
        async with strictly(app) as first:
            await first.until_end()
            last = first.events[-1]
            assert last.event == "heartbeat"
            assert last.id is None
            assert last.retry is not None
            retries.append(last.retry)
            assert first.last_event_id == id_of(first, 5)
            data = json.loads(last.data)
            assert data["remaining_seconds"] == 0
            assert data["total_chunks"] == 5
    assert all(500 <= retry <= 1000 for retry in retries)
    assert len(set(retries)) > 6


async def test_a_rotation_sends_no_retry_interval_longer_than_the_linger() -> None:
    app = resumable(Counting(99), linger_seconds=1.2, retry_ms=60_000, **ROTATE)
    async with strictly(app) as first:
        await first.until_end()
        assert first.events[0].retry == 1200
        assert first.retry is not None
        assert 600 <= first.retry <= 1200
        await asyncio.sleep(first.retry / 1000)
        async with returning(app, first.last_event_id) as again:
            assert (await again.until("message")).data == "6"


async def test_the_connection_of_a_reader_has_a_time_of_its_own_and_rotates_too() -> None:
    counting = Counting(99)
    app = resumable(counting, **ROTATE)
    async with strictly(app) as first:
        await first.until_count(3, "message")
        async with strictly(app, (b"last-event-id", id_of(first, 1).encode())) as reader:
            start = json.loads((await reader.until("start")).data)
            assert start["max_duration"] == 4.5
            came = now()
            await reader.until_end()
            assert now() - came == pytest.approx(4.3, abs=0.3)  # spread over a tenth
            assert reader.names[-1] == "heartbeat"
            assert reader.events[-1].retry is not None
            assert 1000 <= reader.events[-1].retry <= 2000
            assert reader.last_event_id == id_of(first, 7)
    assert counting.ends == ["cancelled"]


async def test_a_feed_without_a_resume_expires() -> None:
    counting = Counting(999)
    registry = CollectorRegistry()
    store = memory()
    app = resumable(counting, store=store, registry=registry, **ROTATE)
    async with strictly(app) as first:
        await first.until_end()
        ended = now()
        assert value(registry, "sse_lingering_streams") == 1
        assert value(registry, "sse_streams_active") == 1
        assert first.task is not None
        await first.task
        assert now() - ended == pytest.approx(LINGER, abs=0.1)
    assert counting.ends == ["cancelled"]
    assert len(store) == 0
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0
    assert (await resume(app, id_of(first, 1))).names[0] == "reset"


async def test_a_deaf_feed_without_a_resume_is_cancelled_a_second_later() -> None:
    async with strictly(resumable(deaf, **ROTATE)) as first:
        await first.until_end()
        ended = now()
        assert first.task is not None
        await first.task
        assert now() - ended == pytest.approx(LINGER + 1, abs=0.1)
    assert first.ended
    assert first.names[-1] == "heartbeat"


async def test_a_silent_feed_rotates_and_is_resumed_after_its_start() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(6)
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(1)
        await send(body(b"", more=False))

    kept = resumable(app, **ROTATE)
    async with strictly(kept) as first:
        await first.until_end()
        assert first.names == ["start", "heartbeat"]
        again = await resume(kept, first.last_event_id)
        assert again.names == ["start", "message", "complete"]


async def test_a_feed_that_ends_between_two_connections_has_an_end_for_the_next_one() -> None:
    app = resumable(Counting(6), **ROTATE)
    async with strictly(app) as first:
        await first.until_end()
        await asyncio.sleep(2.5)
        again = await resume(app, first.last_event_id)
    assert again.names == ["start", "message", "complete"]
    assert again.last_event_id == f"{id_of(first, 6)}.end"


@pytest.mark.parametrize("way", ["cancel", "fail", "return", "end"])
@pytest.mark.parametrize("kind", [StrictExchange, QuietExchange])
async def test_nothing_follows_the_end_of_a_connection_for_any_end_of_its_stream(
    way: str, kind: type[StrictExchange]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 8):
            await send(body(b"data: %d\n\n" % number))
            await asyncio.sleep(1)
        if way == "cancel":
            await asyncio.sleep(5)
        elif way == "fail":
            raise ValueError
        elif way == "end":
            await send(body(b"data: last\n\n", more=False))

    kept = resumable(app, **ROTATE)
    async with strictly(kept, kind=kind) as first:
        await first.until_end()
        count = len(first.messages)
        if way == "cancel":
            await asyncio.sleep(3)
            assert (await stop(kept, id_of(first, 1))).status == 204
        assert first.task is not None
        (failure,) = await asyncio.gather(first.task, return_exceptions=True)
        assert isinstance(failure, ValueError) == (way == "fail")
    assert len(first.messages) == count
    again = await resume(kept, id_of(first, 6))
    last = {"cancel": "complete", "fail": "error", "return": "error", "end": "complete"}[way]
    assert again.names[-1] == last


async def test_a_client_that_does_not_read_at_the_cap_gets_its_end_when_it_soon_does() -> None:
    kept = resumable(deaf, heartbeat_interval=None, **ROTATE)
    async with strictly(kept) as first:
        await first.until_count(4, "message")
        first.block()
        await asyncio.sleep(1.8)
        first.unblock()
        await first.until_end()
        assert texts(first) == counted(1, 5)
        assert first.names[-1] == "heartbeat"
        async with returning(kept, first.last_event_id) as again:
            await again.until_count(3, "message")
        assert texts(again)[:3] == ["6", "7", "8"]
    assert first.overlaps == 0


async def test_a_client_that_never_reads_again_keeps_the_app_no_longer_than_it_lingers() -> None:
    kept = resumable(deaf, heartbeat_interval=None, **ROTATE)
    async with strictly(kept) as first:
        await first.until_count(2, "message")
        first.block()
        began = now()
        assert first.task is not None
        await first.task
        assert now() - began < 4.5 + LINGER + 3
    assert texts(first) == counted(1, 2)


async def test_a_client_that_does_not_read_at_the_cap_is_resumed_on_another_connection() -> None:
    kept = resumable(deaf, heartbeat_interval=None, **ROTATE)
    async with strictly(kept) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(6)
        async with returning(kept, id_of(first, 2)) as again:
            await again.until_count(3, "message")
            assert texts(again)[:3] == ["3", "4", "5"]


async def test_a_client_that_reads_again_long_after_the_cap_gets_an_end_and_no_event() -> None:
    kept = resumable(deaf, heartbeat_interval=None, **ROTATE)
    async with strictly(kept) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(8)
        first.unblock()
        await first.until_end()
        assert texts(first) == counted(1, 3)
        assert first.names[-1] == "message"
        again = await resume(kept, first.last_event_id)
        assert texts(again)[:1] == ["4"]
    assert first.overlaps == 0
    assert not first.late


async def test_the_app_is_not_disconnected_if_only_a_connection_ends() -> None:
    remaining: list[float | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 11):
            remaining.append(current_stream().remaining_seconds)
            await send(body(b"data: %d\n\n" % number))
            await asyncio.sleep(1)
        await send(body(b"", more=False))

    kept = resumable(app, **ROTATE)
    async with strictly(kept) as first:
        await first.until_end()
        again: Exchange = first
        while again.names[-1] != "complete":
            again = await resume(kept, again.last_event_id)
    assert remaining == [None] * 10


# Without kept events, the end disconnects the app


@pytest.mark.parametrize(
    ("event", "options"),
    [(b"id: 7\ndata: x\n\n", {}), (b"data: x\n\n", {"replay_max_events": 0})],
    ids=["own ids", "nothing kept"],
)
async def test_an_app_without_kept_events_is_disconnected(
    event: bytes, options: dict[str, Any]
) -> None:
    disconnects: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        listening = asyncio.ensure_future(receive())
        await send(stream_start())
        await send(body(event))
        assert (await listening)["type"] == "http.disconnect"
        disconnects.append(now())

    kept = resumable(app, **ROTATE, **options)
    async with strictly(kept) as first:
        await first.until_end()
        ended = now()
        assert first.task is not None
        await first.task
    assert disconnects == [pytest.approx(ended, abs=0.01)]
    assert first.names[-1] == "heartbeat"
    assert first.events[-1].retry is not None
    assert first.ended


async def test_an_app_with_its_own_ids_continues_if_a_client_resumes_by_them() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        held = int(dict(scope["headers"]).get(b"last-event-id", b"0"))
        await send(stream_start())
        for number in range(held + 1, 16):
            await send(body(b"id: %d\ndata: %d\n\n" % (number, number)))
            await asyncio.sleep(1)
        await send(body(b"", more=False))

    kept = resumable(app, **ROTATE)
    seen: list[str] = []
    held = ""
    while "15" not in seen:
        exchange = await (resume(kept, held) if held else read(kept))
        held = exchange.last_event_id
        seen += texts(exchange)
        assert exchange.ended
    assert seen == counted(1, 15)


async def test_without_a_linger_the_cap_disconnects_the_app_and_the_client_starts_again() -> None:
    counting = Counting(30)
    store = memory()
    app = resumable(counting, store=store, linger_seconds=0, **ROTATE)
    async with strictly(app) as first:
        await first.until_end()
        assert first.task is not None
        await first.task
    assert first.names[-1] == "heartbeat"
    assert counting.ends == ["cancelled"]
    assert len(store) == 0
    assert (await resume(app, first.last_event_id)).names[0] == "reset"


@pytest.mark.parametrize("kind", [StrictExchange, QuietExchange])
async def test_an_app_writes_nothing_after_the_end_of_its_response_if_the_last_reader_leaves(
    kind: type[StrictExchange],
) -> None:
    listening = Listening(leaves=False)
    app = resumable(listening, linger_seconds=0, **ROTATE)
    async with strictly(app, kind=kind) as first:
        await first.until_count(2, "message")
        async with returning(app, first.last_event_id) as reader:
            await asyncio.sleep(2.9)
            first.block()
            await asyncio.sleep(0.9)  # the connection rotates, and its last write is blocked
            reader.disconnect()
            await asyncio.sleep(0.1)
            first.unblock()
            await first.until_end()
        assert first.task is not None
        await first.task
    assert first.names[-1] == "heartbeat"
    assert [how for _, how in listening.ends] == ["cancelled"]


# Streams that rotate


@pytest.mark.parametrize(
    ("action", "last"), [(None, "complete"), ("complete", "complete"), ("rotate", "heartbeat")]
)
async def test_streams_complete_at_the_cap_unless_they_are_set_to_rotate(
    action: str | None, last: str
) -> None:
    options: dict[str, Any] = {} if action is None else {"cap_action": action}
    app = resumable(Counting(99), stream_max_seconds=2.5, **options)
    async with strictly(app) as first:
        await first.until_end()
    assert first.names == ["start", "message", "message", "message", last]


async def test_a_mark_may_set_its_endpoint_to_rotate() -> None:
    mark = streaming(cap_action="rotate", stream_max_seconds=2.5)
    app = resumable(Counting(99), marks={"/feed": mark})
    async with running(app, StrictExchange(http_scope(path="/feed", headers=EVENTSOURCE))) as first:
        await first.until_end()
        assert first.names[-1] == "heartbeat"
        async with returning(app, first.last_event_id, path="/feed") as again:
            await again.until_end()
        assert again.names[1:-1] == ["message"] * len(texts(again))
        assert (again.names[0], again.names[-1]) == ("start", "heartbeat")
        assert texts(again)[0] == "4"


async def test_a_plain_client_never_rotates() -> None:
    app = resumable(Counting(99), **ROTATE)
    exchange = await handle(app)
    assert texts(exchange) == counted(1, 5)
    assert not exchange.ended  # it sees a failure, and not a short answer


async def test_each_connection_after_a_reset_rotates() -> None:
    app = resumable(Counting(99), **ROTATE)
    async with returning(app, UNKNOWN) as first:
        await first.until_end()
    assert first.names == ["reset", *["message"] * 5, "heartbeat"]


async def test_the_app_of_a_client_that_left_before_the_cap_continues() -> None:
    counting = Counting(40)
    app = resumable(counting, **ROTATE)
    async with left(app, 2) as first:
        await asyncio.sleep(10)
        async with returning(app, first.last_event_id) as again:
            await again.until_count(3, "message")
            numbers = [int(text) for text in texts(first) + texts(again)]
            assert all(one + 1 == other for one, other in pairwise(numbers))
    assert len(texts(first)) == 2
