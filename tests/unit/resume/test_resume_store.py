"""If the store is unreachable, a client is disconnected such that it reconnects."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sse_middleware import StoreError
from sse_middleware.stores.base import Batch, LogSnapshot
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import EVENTSOURCE, Exchange, handle
from tests.support.resuming import (
    TTL,
    Counting,
    counted,
    id_of,
    left,
    opened,
    read,
    resumable,
    resume,
    returning,
    texts,
    value,
)

pytestmark = pytest.mark.anyio


class FailingStore(MemoryStore):
    """A store with methods that fail on demand.

    Attributes:
        down: the methods that fail.
        after_batches: how many batches `follow` yields before it fails.
    """

    def __init__(self, *down: str, after_batches: int = 0) -> None:
        super().__init__(ttl=TTL, clock=asyncio.get_running_loop().time)
        self.down = set(down)
        self.after_batches = after_batches

    def _look(self, method: str) -> None:
        if method in self.down:
            raise StoreError(f"{method}: it is down")

    async def find(self, stream_id: str) -> LogSnapshot | None:
        self._look("find")
        return await super().find(stream_id)

    async def find_named(self, name: str) -> LogSnapshot | None:
        self._look("find_named")
        return await super().find_named(name)

    async def cancel(self, stream_id: str) -> bool:
        self._look("cancel")
        return await super().cancel(stream_id)

    async def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        number = 0
        if number >= self.after_batches:
            self._look("follow")
        async for batch in super().follow(stream_id, after):
            yield batch
            number += 1
            if number >= self.after_batches:
                self._look("follow")


def assert_asked_to_reconnect(exchange: Exchange, event_id: str) -> None:
    """Check that an `EventSource` would reconnect soon with its event id."""
    assert exchange.status == 200
    assert exchange.headers[b"content-type"].startswith(b"text/event-stream")
    assert exchange.headers[b"cache-control"] == b"no-store, no-transform"
    assert exchange.names == ["start"]
    assert exchange.last_event_id == event_id
    assert exchange.retry is not None
    assert 1000 <= exchange.retry <= 2000
    assert exchange.ended


async def test_a_client_retries_with_its_own_event_id_if_the_store_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    store = FailingStore()
    counting = Counting(5)
    app = resumable(counting, store=store, registry=registry)
    whole = await read(app)
    store.down.add("find")
    again = await resume(app, id_of(whole, 3))
    assert_asked_to_reconnect(again, id_of(whole, 3))
    assert again.headers[b"x-stream-id"] == whole.headers[b"x-stream-id"]
    result = {"route": "unmatched", "result": "unavailable"}
    assert value(registry, "sse_resumes_total", **result) == 1
    assert "the store is unavailable" in caplog.text
    assert id_of(whole, 3)[:22] not in caplog.text
    store.down.clear()
    assert texts(await resume(app, again.last_event_id)) == counted(4, 5)
    assert len(counting.scopes) == 1


async def test_an_event_id_in_the_query_is_kept_too() -> None:
    store = FailingStore("find")
    event_id = "B" * 22 + "-7"
    query = f"lastEventId={event_id}".encode()
    assert_asked_to_reconnect(
        await read(resumable(Counting(), store=store), query_string=query), event_id
    )


@pytest.mark.parametrize("batches", [0, 1, 2])
async def test_a_reader_keeps_its_position_if_the_store_fails_on_the_way(batches: int) -> None:
    store = FailingStore("follow", after_batches=batches)
    app = resumable(Counting(9), store=store)
    async with left(app, 2) as first:
        async with returning(app, first.last_event_id) as again:
            await again.until_end()
        assert again.names == ["start", *["message"] * batches]
        assert again.last_event_id == id_of(first, 2 + batches)
        assert again.retry == 2000
        assert again.ended
        store.down.clear()
        async with returning(app, again.last_event_id) as third:
            await third.until_end()
    assert texts(third) == counted(3 + batches, 9)


async def test_a_live_stream_does_not_mind_a_store_that_is_down() -> None:
    store = FailingStore("find", "find_named", "follow", "cancel")
    whole = await read(resumable(Counting(3), store=store))
    assert whole.names == ["start", *["message"] * 3, "complete"]


@pytest.mark.parametrize("ending", [".end", ".cut"])
async def test_no_store_is_queried_after_an_end(ending: str) -> None:
    app = resumable(Counting(3), store=FailingStore("find", "find_named", "follow"))
    again = await resume(app, "B" * 22 + "-3" + ending)
    assert again.status == (204 if ending == ".end" else 200)
    assert again.names[:1] == {".end": [], ".cut": ["reset"]}[ending]


@pytest.mark.parametrize("down", ["find", "cancel"])
async def test_a_cancel_does_not_report_success_if_the_store_fails(down: str) -> None:
    store = FailingStore(down)
    app = resumable(Counting(9), store=store)
    async with opened(app) as first:
        await first.until_count(1, "message")
        held = first.last_event_id
        ways: list[dict[str, Any]] = [
            {"method": "DELETE", "headers": [(b"last-event-id", held.encode())]},
            {"method": "POST", "query_string": b"sse_cancel", "body": held.encode()},
        ]
        for way in ways:
            exchange = await handle(app, **way)
            assert exchange.status == 503
            assert exchange.ended
        await first.until_end()
    assert texts(first) == counted(1, 9)


async def test_other_requests_do_not_mind_a_store_that_is_down() -> None:
    app = resumable(Counting(1), store=FailingStore("find", "find_named", "follow", "cancel"))
    for headers in (EVENTSOURCE, [], [*EVENTSOURCE, (b"last-event-id", b"7")]):
        exchange = await handle(app, headers=headers)
        assert texts(exchange) == ["1"]
