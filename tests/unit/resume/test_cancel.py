"""A client that may read a stream may cancel it, from any connection."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import streaming
from tests.support.asgi import Exchange, body, handle, http_scope, stream_start
from tests.support.resuming import (
    TTL,
    UNKNOWN,
    Counting,
    counted,
    id_of,
    left,
    memory,
    opened,
    read,
    resumable,
    resume,
    returning,
    texts,
    value,
)

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")
BOB = (b"authorization", b"Bearer bob")

Way = dict[str, Any]


def delete(event_id: str, *headers: tuple[bytes, bytes]) -> Way:
    return {"method": "DELETE", "headers": [(b"last-event-id", event_id.encode()), *headers]}


def post(event_id: str, *headers: tuple[bytes, bytes]) -> Way:
    query = b"a=1&sse_cancel"
    body = event_id.encode()
    return {"method": "POST", "query_string": query, "headers": [*headers], "body": body}


def post_by_header(event_id: str, *headers: tuple[bytes, bytes]) -> Way:
    held = (b"last-event-id", event_id.encode())
    return {"method": "POST", "query_string": b"sse_cancel=1&a=1", "headers": [held, *headers]}


WAYS = [delete, post, post_by_header]
each_way = pytest.mark.parametrize("way", WAYS)


class Answering:
    """An app that counts on requests for a stream, and rejects all other requests."""

    def __init__(self, count: int = 100, **options: Any) -> None:
        self.counting = Counting(count, **options)
        self.others: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await self.counting(scope, receive, send)
            return
        self.others.append(scope["method"])
        await PlainTextResponse("no such thing", 404)(scope, receive, send)


def assert_cancelled(exchange: Exchange) -> None:
    assert (exchange.status, exchange.body, exchange.ended) == (204, b"", True)
    assert exchange.headers[b"cache-control"] == b"no-store"


@each_way
async def test_a_cancelled_stream_ends_for_all_readers_and_the_app_is_disconnected(
    way: Any,
) -> None:
    answering = Answering()
    registry = CollectorRegistry()
    app = resumable(answering, registry=registry)
    async with opened(app) as first:
        await first.until_count(3, "message")
        async with returning(app, id_of(first, 1)) as reader:
            await reader.until_count(2, "message")
            assert_cancelled(await handle(app, **way(id_of(first, 2))))
            await asyncio.gather(first.until_end(), reader.until_end())
        assert first.task is not None
        await first.task
    for exchange in (first, reader):
        complete = exchange.events[-1]
        assert complete.event == "complete"
        assert json.loads(complete.data)["reason"] == "cancelled"
        assert complete.id == f"{id_of(first, 3)}.end"
    assert texts(first) == counted(1, 3)
    assert texts(reader) == counted(2, 3)
    assert answering.counting.ends == ["cancelled"]
    assert answering.others == []
    cancelled = {"route": "unmatched", "result": "cancelled"}
    assert value(registry, "sse_resumes_total", **cancelled) == 1
    outcome = {"route": "unmatched", "family": "eventsource", "outcome": "cancelled"}
    assert value(registry, "sse_streams_total", **outcome) == 1
    assert value(registry, "sse_streams_active") == 0


@each_way
async def test_a_stream_of_a_marked_route_is_over_for_good(way: Any) -> None:
    app = resumable(Answering(), marks={"/*": streaming()})
    async with opened(app) as first:
        await first.until_count(3, "message")
        await handle(app, **way(id_of(first, 2)))
        await first.until_end()
    assert first.last_event_id == f"{id_of(first, 3)}.end"
    assert (await resume(app, first.last_event_id)).status == 204


@each_way
async def test_a_stream_that_waits_for_a_reader_ends_at_once(way: Any) -> None:
    answering = Answering()
    registry = CollectorRegistry()
    app = resumable(answering, registry=registry)
    async with left(app, 2) as first:
        assert value(registry, "sse_lingering_streams") == 1
        assert_cancelled(await handle(app, **way(id_of(first, 2))))
        began = asyncio.get_running_loop().time()
        assert first.task is not None
        await first.task
        assert asyncio.get_running_loop().time() - began < 1
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0
    again = await resume(app, id_of(first, 1))
    assert again.names == ["start", "message", "complete"]
    assert json.loads(again.events[-1].data)["reason"] == "cancelled"
    assert answering.counting.ends == ["cancelled"]


@each_way
async def test_a_second_cancel_or_one_after_the_end_succeeds(way: Any) -> None:
    answering = Answering(3)
    app = resumable(answering)
    whole = await read(app)
    for event_id in (id_of(whole, 0), id_of(whole, 3), whole.last_event_id):
        for _ in range(2):
            assert_cancelled(await handle(app, **way(event_id)))
    again = await resume(app, id_of(whole, 2))
    assert json.loads(again.events[-1].data)["reason"] == "finished"
    assert answering.others == []


@each_way
async def test_a_cancel_of_an_unknown_stream_does_not_run_the_app(way: Any) -> None:
    answering = Answering(3)
    app = resumable(answering)
    whole = await read(app)
    await asyncio.sleep(TTL + 1)
    for event_id in (UNKNOWN, id_of(whole, 2), whole.last_event_id):
        assert_cancelled(await handle(app, **way(event_id)))
    assert answering.others == []
    assert len(answering.counting.scopes) == 1


@pytest.mark.parametrize("held", [b"", b"7", b"x" * 64, b"x" * 65, b"x" * 1_000_000, b"\xff\0\r\n"])
async def test_a_post_that_stops_no_stream_of_ours_does_not_run_the_app(held: bytes) -> None:
    answering = Answering(3)
    app = resumable(answering)
    for query in (b"sse_cancel", b"sse_cancel=", b"sse_cancel=yes&a=1", b"a=1&sse_cancel"):
        assert_cancelled(await handle(app, method="POST", query_string=query, body=held))
    assert answering.others == []


async def test_a_stop_whose_client_leaves_before_its_body_is_complete_stops_nothing() -> None:
    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    app = resumable(Answering(3))
    async with opened(app) as first:
        await first.until_count(1, "message")
        held = first.last_event_id.encode()
        messages: list[Message] = [
            {"type": "http.request", "body": held[:9], "more_body": True},
            {"type": "http.disconnect"},
        ]
        sent: list[Message] = []
        await app(http_scope(method="POST", query_string=b"sse_cancel"), receive, send)
        await first.until_end()
    assert texts(first) == counted(1, 3)
    assert sent[0]["status"] == 204


async def test_the_body_of_a_stop_may_arrive_in_parts() -> None:
    async def receive() -> Message:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        pass

    app = resumable(Answering())
    async with opened(app) as first:
        await first.until_count(1, "message")
        held = first.last_event_id.encode()
        parts = [b"", held[:5], b"", held[5:], b""]
        await app(http_scope(method="POST", query_string=b"sse_cancel"), receive, send)
        await first.until_end()
    assert json.loads(first.events[-1].data)["reason"] == "cancelled"


@each_way
async def test_the_response_to_another_client_is_that_for_an_unknown_stream(way: Any) -> None:
    answering = Answering()
    app = resumable(answering)
    async with opened(app, ANN, path="/a") as first:
        await first.until_count(2, "message")
        held = first.last_event_id
        for headers, path in (([], "/a"), ([BOB], "/a"), ([ANN], "/b")):
            exchange = await handle(app, path=path, **way(held, *headers))
            unknown = await handle(app, path=path, **way(UNKNOWN, *headers))
            assert (exchange.status, exchange.body) == (204, b"")
            assert exchange.start == unknown.start
        await first.until_count(4, "message")
        assert_cancelled(await handle(app, path="/a", **way(held, ANN)))
        await first.until_end()
    assert answering.others == []


@each_way
@pytest.mark.parametrize("lock", ["authorize_resume", "expires_at"])
async def test_a_stop_needs_the_permission_of_a_read(way: Any, lock: str) -> None:
    def expires_at(scope: Scope) -> float | None:
        return None if is_open else 1.0

    def authorize_resume(scope: Scope, info: object) -> bool:
        return is_open

    is_open = True
    app = resumable(Answering(), **{lock: locals()[lock]})
    async with opened(app) as first:
        await first.until_count(2, "message")
        is_open = False
        assert_cancelled(await handle(app, **way(first.last_event_id)))
        await first.until_count(4, "message")
        is_open = True
        assert_cancelled(await handle(app, **way(first.last_event_id)))
        await first.until_end()
    assert json.loads(first.events[-1].data)["reason"] == "cancelled"


async def test_an_app_with_its_own_delete_keeps_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append((scope["method"], scope["query_string"]))
        await PlainTextResponse("gone", 200)(scope, receive, send)

    asked: list[tuple[str, bytes]] = []
    kept = resumable(app)
    for way in (
        {"method": "DELETE"},
        {"method": "DELETE", "headers": [(b"last-event-id", b"7")]},
        {"method": "DELETE", "query_string": f"last_event_id={UNKNOWN}".encode()},
        {"method": "POST", "query_string": b"sse_cancelled=1&no_sse_cancel=1&a=sse_cancel"},
        {"method": "PUT", "query_string": b"sse_cancel"},
        {"method": "GET", "query_string": b"sse_cancel"},
    ):
        assert (await handle(kept, **way)).body == b"gone"
    assert len(asked) == 6


async def test_a_get_cancels_nothing() -> None:
    app = resumable(Answering(5))
    async with opened(app) as first:
        await first.until_count(2, "message")
        await handle(app, query_string=b"sse_cancel", body=first.last_event_id.encode())
        await first.until_end()
    assert texts(first) == counted(1, 5)
    assert json.loads(first.events[-1].data)["reason"] == "finished"


@each_way
@pytest.mark.parametrize("allowed", ["https://a.example", "*"])
async def test_a_page_of_the_same_origin_can_cancel_across_its_methods(
    way: Any, allowed: str
) -> None:
    origin = (b"origin", b"https://a.example")
    app = resumable(Answering(headers={"access-control-allow-origin": allowed}))
    async with opened(app, origin) as first:
        await first.until_count(2, "message")
        exchange = await handle(app, **way(first.last_event_id, origin))
        assert_cancelled(exchange)
        assert exchange.headers[b"access-control-allow-origin"] == allowed.encode()
        await first.until_end()


@each_way
async def test_a_page_can_cancel_a_public_stream_that_its_get_opened_without_an_origin(
    way: Any,
) -> None:
    # A browser sends the origin with a DELETE or a POST, and not with a GET of the same origin.
    app = resumable(Answering(headers={"access-control-allow-origin": "*"}))
    async with opened(app) as first:
        await first.until_count(2, "message")
        origin = (b"origin", b"https://a.example")
        assert_cancelled(await handle(app, **way(first.last_event_id, origin)))
        await first.until_end()


async def test_a_cancelled_app_that_does_not_listen_is_cancelled_a_second_later() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        try:
            while True:
                await send(body(b"data: x\n\n"))
                await asyncio.sleep(10)
        except asyncio.CancelledError:
            ends.append(asyncio.get_running_loop().time())
            raise

    ends: list[float] = []
    kept = resumable(app)
    async with opened(kept) as first:
        await first.until_count(1, "message")
        await handle(kept, **delete(first.last_event_id))
        cancelled = asyncio.get_running_loop().time()
        assert first.task is not None
        await first.task
    assert ends == [pytest.approx(cancelled + 1, abs=0.1)]
    assert first.names == ["start", "message", "complete"]


async def test_an_app_may_end_its_stream_itself_while_it_is_cancelled() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await receive()
        await send(body(b"data: late\n\n"))
        await send(body(b"", more=False))

    kept = resumable(app)
    async with opened(kept) as first:
        await first.until_count(1, "message")
        await handle(kept, **delete(first.last_event_id))
        assert first.task is not None
        await first.task
    assert first.names == ["start", "message", "complete"]
    assert (await resume(kept, id_of(first, 1))).names == ["start", "complete"]


async def test_a_blocked_client_does_not_keep_a_cancelled_stream() -> None:
    app = resumable(Answering())
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(2)
        assert_cancelled(await handle(app, **delete(id_of(first, 1))))
        assert first.task is not None
        async with asyncio.timeout(20):
            await asyncio.wait([first.task])
    again = await resume(app, id_of(first, 1))
    assert again.names[-1] == "complete"
    assert json.loads(again.events[-1].data)["reason"] == "cancelled"


async def test_a_cancelled_stream_is_kept_for_its_time() -> None:
    store = memory()
    app = resumable(Answering(), store=store)
    async with opened(app) as first:
        await first.until_count(2, "message")
        await handle(app, **delete(first.last_event_id))
        await first.until_end()
    assert len(store) == 1
    await asyncio.sleep(TTL + 1)
    assert (len(store), store.total_bytes) == (0, 0)
