"""When the server ends, streams end in time with the reason, and new clients reconnect later."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import current_stream, drain, streaming
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stream.shutdown import SHUTDOWN
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_start,
)
from tests.support.draining import assert_shut_down, deaf, draining, now
from tests.support.middleware import marking
from tests.support.resuming import (
    Counting,
    counted,
    id_of,
    opened,
    read,
    resumable,
    resume,
    returning,
    texts,
    value,
)

pytestmark = pytest.mark.anyio

DRAIN = 5.0


class SharedStore(MemoryStore):
    """A memory store that is declared as shared with other workers."""

    is_shared = True


def shared() -> SharedStore:
    return SharedStore(ttl=60.0, clock=asyncio.get_running_loop().time)


@pytest.mark.parametrize("app", [Counting(1000), deaf], ids=["listening", "deaf"])
async def test_a_stream_continues_for_the_drain_and_then_ends_with_the_reason(app: Any) -> None:
    async with opened(resumable(app)) as exchange:
        await exchange.until_count(2, "message")
        async with draining():
            began = now()
            await exchange.until_end()
            assert now() - began == pytest.approx(DRAIN, abs=0.05)
            assert_shut_down(exchange)
            assert exchange.task is not None
            await exchange.task
        assert now() - began < DRAIN + 1
    assert exchange.names.count("complete") == 1


async def test_a_stream_that_ends_during_the_drain_ends_as_usual() -> None:
    async with opened(resumable(Counting(4))) as exchange:
        await exchange.until_count(2, "message")
        began = now()
        async with draining():
            await exchange.until_end()
        assert now() - began < DRAIN
        assert json.loads(exchange.events[-1].data)["reason"] == "finished"


async def test_a_drain_of_nothing_is_over_at_once() -> None:
    began = now()
    await drain()
    await drain()
    assert now() - began < 0.1


async def test_a_plain_stream_ends_uncleanly_for_its_client_must_not_take_it_for_whole() -> None:
    app = resumable(Counting(1000))
    async with running(app, Exchange(http_scope(headers=[]))) as exchange:
        await exchange.until_count(2, "message")
        async with draining():
            assert exchange.task is not None
            await exchange.task
        assert not exchange.ended


async def test_a_stream_of_openais_chunks_ends_with_an_error() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        while True:
            await send(body(b'data: {"object":"chat.completion.chunk","choices":[]}\n\n'))
            await asyncio.sleep(1)

    async with running(resumable(app), Exchange(http_scope(headers=[]))) as exchange:
        await exchange.until_count(2, "message")
        async with draining():
            await exchange.until_end()
        *_, error, done = exchange.events
        assert json.loads(error.data)["error"]["code"] == "shutdown"
        assert done.data == "[DONE]"


async def test_a_stream_that_the_rollout_leaves_out_is_left_alone() -> None:
    async with opened(resumable(Counting(9), rollout_percent=0)) as exchange:
        await exchange.until_count(2, "message")
        async with draining():
            await exchange.until_end()
        assert texts(exchange) == counted(1, 9)
        assert exchange.names == ["message"] * 9


async def test_an_app_can_send_a_last_event() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert not current_stream().draining
        await send(stream_start())
        await send(body(b"data: hello\n\n"))
        while not current_stream().draining:  # noqa: ASYNC110 - as an app would
            await asyncio.sleep(0.1)
        await send(body(b"data: goodbye\n\n"))
        await send(body(b"", more=False))

    async with opened(resumable(app)) as exchange:
        await exchange.until_count(1, "message")
        async with draining():
            await exchange.until_end()
        assert texts(exchange) == ["hello", "goodbye"]
        assert json.loads(exchange.events[-1].data)["reason"] == "finished"


async def test_the_metrics_show_the_drain() -> None:
    registry = CollectorRegistry()
    async with opened(resumable(Counting(1000), registry=registry)) as exchange:
        await exchange.until_count(2, "message")
        async with draining():
            pass
    how = {"route": "unmatched", "family": "eventsource", "outcome": "shutdown"}
    assert value(registry, "sse_streams_total", **how) == 1
    assert value(registry, "sse_streams_active") == 0


async def test_a_thousand_streams_end_together_with_spread_retry_intervals() -> None:
    app = resumable(Counting(1000))
    exchanges = [Exchange(http_scope(headers=EVENTSOURCE)) for _ in range(1000)]
    tasks = [asyncio.ensure_future(app(x.scope, x.receive, x.send)) for x in exchanges]
    await asyncio.sleep(2)
    async with draining():
        began = now()
        await asyncio.wait(tasks)
    assert now() - began < DRAIN + 0.5
    for exchange in exchanges:
        assert_shut_down(exchange)
    assert len({exchange.retry for exchange in exchanges}) > 300
    assert len(SHUTDOWN.drain_for(asyncio.get_running_loop())) == 0


async def test_all_apps_of_a_process_are_drained() -> None:
    inner = resumable(Counting(1000))
    apps = [resumable(Counting(1000)), marking(inner, registry=CollectorRegistry())]
    async with opened(apps[0]) as one, opened(apps[1]) as other:
        await one.until_count(2, "message")
        async with draining():
            await one.until_end()
            await other.until_end()
        for exchange in (one, other):
            assert_shut_down(exchange)
            assert exchange.names.count("complete") == 1


# Readers


async def test_with_the_memory_store_readers_stay_and_receive_the_end() -> None:
    app = resumable(Counting(1000))
    async with opened(app) as first:
        await first.until_count(2, "message")
        async with returning(app, id_of(first, 1)) as reader:
            await reader.until("message")
            async with draining():
                await reader.until_end()
            for exchange in (first, reader):
                assert_shut_down(exchange)
            assert texts(reader) == texts(first)[1:]


async def test_with_a_shared_store_clients_are_disconnected_at_once_and_the_log_is_completed() -> (
    None
):
    counting, store = Counting(5), shared()
    app, elsewhere = (resumable(counting, store=store) for _ in range(2))
    async with opened(app) as first:
        await first.until_count(2, "message")
        async with returning(app, id_of(first, 1)) as reader:
            await reader.until("message")
            began = now()
            async with draining():
                await first.until_end()
                await reader.until_end()
                assert now() - began < 0.1
                for exchange in (first, reader):
                    assert exchange.names[-1] == "heartbeat"
                    assert exchange.last_event_id == id_of(first, 2)
                    assert exchange.retry is not None
                    assert 1000 <= exchange.retry <= 2000
                found = await store.find(str(json.loads(first.events[0].data)["stream_id"]))
                assert found is not None
    SHUTDOWN.drain_for(asyncio.get_running_loop()).is_draining = False  # another worker
    again = await resume(elsewhere, id_of(first, 2))
    assert texts(again) == counted(3, 5)
    assert json.loads(again.events[-1].data)["reason"] == "finished"
    assert counting.ends == ["finished"]


async def test_a_stream_in_a_shared_store_sends_its_end_to_all_followers() -> None:
    store = shared()
    app = resumable(Counting(1000), store=store, linger_seconds=60)
    async with opened(app) as first:
        await first.until_count(2, "message")
        async with draining() as over:
            await first.until_end()
            loop = SHUTDOWN.drain_for(asyncio.get_running_loop())
            loop.is_draining = False  # another worker
            async with returning(resumable(deaf, store=store), id_of(first, 2)) as again:
                await again.until_end()
            loop.is_draining = True
            assert_shut_down(again)
            assert texts(again) == counted(3, len(texts(again)) + 2)
            await over


@pytest.mark.parametrize("options", [{"linger_seconds": 0}, {"replay_max_events": 0}])
async def test_a_client_that_cannot_resume_is_not_disconnected(options: dict[str, Any]) -> None:
    async with opened(resumable(Counting(1000), store=shared(), **options)) as exchange:
        await exchange.until_count(2, "message")
        async with draining():
            began = now()
            await exchange.until_end()
            assert now() - began == pytest.approx(DRAIN, abs=0.05)
        assert exchange.names[-1] == "complete"


async def test_a_lingering_stream_ends_with_the_others() -> None:
    counting = Counting(1000)
    async with opened(resumable(counting, linger_seconds=60)) as exchange:
        await exchange.until_count(2, "message")
        exchange.disconnect()
        await asyncio.sleep(1)
        began = now()
        async with draining():
            assert exchange.task is not None
            await exchange.task
        assert now() - began < DRAIN + 1
    assert counting.ends == ["cancelled"]


async def test_no_time_means_at_once() -> None:
    async with opened(resumable(Counting(1000), drain_seconds=0)) as exchange:
        await exchange.until_count(2, "message")
        began = now()
        async with draining():
            await exchange.until_end()
        assert now() - began < 0.2
        assert_shut_down(exchange)


async def test_clients_reconnect_within_a_short_drain() -> None:
    app = resumable(Counting(1000), store=shared(), drain_seconds=0.5)
    async with opened(app) as exchange:
        await exchange.until_count(2, "message")
        async with draining():
            await exchange.until_end()
        assert exchange.retry is not None
        assert 250 <= exchange.retry <= 500


# Requests during the drain


async def _answered(scope: Scope, receive: Receive, send: Send) -> None:
    await Counting(3)(scope, receive, send)


@asynccontextmanager
async def ending() -> AsyncIterator[None]:
    """Begin to drain without a stream, and remain in this state."""
    await drain()
    yield


async def test_an_eventsource_during_the_drain_reconnects_with_its_event_id() -> None:
    counting = Counting(3)
    app = resumable(counting)
    whole = await read(app)
    async with ending():
        for exchange, held in (
            (await read(app), ""),
            (await resume(app, id_of(whole, 2)), id_of(whole, 2)),
        ):
            assert exchange.status == 200
            assert exchange.ended
            assert exchange.names == ["start"]
            assert exchange.headers[b"cache-control"] == b"no-store, no-transform"
            assert exchange.retry is not None
            assert 1000 <= exchange.retry <= 2000
            if held:
                assert exchange.last_event_id == held
    assert len(counting.scopes) == 1


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (b"text/event-stream", 503),
        (b"text/event-stream; charset=utf-8", 503),
        (b"application/json, text/event-stream", 200),
        (b"*/*", 200),
        (b"", 200),
    ],
)
async def test_other_clients_that_show_that_they_want_a_stream_get_503(
    accept: bytes, status: int
) -> None:
    async with ending():
        exchange = await handle(resumable(Counting(3)), headers=[(b"accept", accept)])
    assert exchange.status == status
    if status == 503:
        assert exchange.headers[b"retry-after"] == b"1"
        assert json.loads(exchange.body)["error"]["code"] == "shutdown"


async def test_a_marked_endpoint_is_known_before_it_runs() -> None:
    @streaming
    async def marked(request: Any) -> PlainTextResponse:
        raise AssertionError

    @streaming(enabled=False)
    async def left_out(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    routes = [Route("/marked", marked, methods=["POST"]), Route("/out", left_out)]
    app = marking(Starlette(routes=routes), registry=CollectorRegistry())
    async with ending():
        assert (await handle(app, method="POST", path="/marked")).status == 503
        assert (await handle(app, path="/out")).status == 200
        assert (await handle(app, path="/out", headers=EVENTSOURCE)).status == 200


async def test_a_response_that_is_no_stream_passes_unchanged_during_the_drain() -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": []}
    end: Message = {"type": "http.response.body", "body": b"ok"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send(end)

    async with ending():
        exchange = await handle(marking(app), headers=[(b"accept", b"*/*")])
    assert [message for _, message in exchange.messages] == [start, end]
    assert all(a is b for (_, a), b in zip(exchange.messages, (start, end), strict=True))


async def test_a_stream_that_could_not_be_foreseen_ends_with_the_others() -> None:
    async with ending():
        app = resumable(Counting(1000))
        async with running(app, Exchange(http_scope(headers=[]))) as exchange:
            began = now()
            assert exchange.task is not None
            await exchange.task
            assert now() - began == pytest.approx(DRAIN, abs=0.1)


async def test_no_client_is_disconnected_if_the_drain_is_off() -> None:
    async with ending():
        exchange = await read(marking(Counting(2), enabled=False))
    assert texts(exchange) == ["1", "2"]


# Threads


def test_streams_of_another_thread_are_drained_from_here() -> None:
    """A server in a thread receives no signal, so `drain()` is called in any other loop."""
    ready = threading.Event()
    app = marking(deaf, registry=CollectorRegistry(), drain_seconds=0.2)
    exchange = Exchange(http_scope(headers=EVENTSOURCE))

    async def serve() -> None:
        async with running(app, exchange):
            await exchange.until_count(1, "message")
            ready.set()
            await exchange.until_end()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    asyncio.run(drain())
    thread.join(60)
    assert not thread.is_alive()
    assert exchange.ended
    assert json.loads(exchange.events[-1].data)["reason"] == "shutdown"
    assert exchange.retry is not None
    assert 100 <= exchange.retry <= 200


# Readiness


async def test_readiness_is_served_below_the_root_path() -> None:
    app = marking(Counting(1), ready_path="/ready", registry=CollectorRegistry())
    for path, root in (("/ready", ""), ("/v1/ready", "/v1")):
        exchange = await handle(app, path=path, root_path=root)
        assert (exchange.status, exchange.body) == (200, b"ready\n")
        assert exchange.headers[b"cache-control"] == b"no-store"
    await drain()
    exchange = await handle(app, path="/ready")
    assert (exchange.status, exchange.body) == (503, b"draining\n")
    assert (await handle(app, path="/ready", method="POST")).status == 200  # the app's


async def test_without_the_setting_the_app_keeps_the_path() -> None:
    exchange = await handle(resumable(Counting(1)), path="/ready")
    assert exchange.headers[b"content-type"].startswith(b"text/event-stream")
