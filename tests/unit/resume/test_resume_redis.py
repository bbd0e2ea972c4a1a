"""Streams by public id on two workers with one Redis, and what unknown ids cost there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route

from sse_middleware import EndInfo, Event, SSEMiddleware, resume_endpoint, streaming
from sse_middleware.limits.open_rate import supports_installed_redis
from sse_middleware.stores.redis import RedisStore
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running
from tests.support.limiting import steady_rate
from tests.support.redis_server import RedisServer
from tests.support.resuming import UNKNOWN, stop
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")
BOB = (b"authorization", b"Bearer bob")
LIVE = "/streams"
OTHER_ID = b"0123456789abcdef" * 2


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Answers:
    """An app that sends one number each time that a test lets it, until the last."""

    def __init__(self, count: int = 5) -> None:
        self.allowed = asyncio.Semaphore(0)
        self.count = count
        self.ends: list[str] = []

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            for number in range(1, self.count + 1):
                await self.allowed.acquire()
                body = b"data: %d\n\n" % number
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("finished")

    def allow(self, count: int) -> None:
        for _ in range(count):
            self.allowed.release()


@asynccontextmanager
async def workers(server: RedisServer, answers: Answers, **options: Any) -> AsyncIterator[Any]:
    """Return two apps as two processes have them."""
    apps = []
    for _ in range(2):
        routes = [
            Route("/answer", answers, methods=["GET", "POST"]),
            Route(LIVE, resume_endpoint(finished="replay")),
        ]
        middleware = SSEMiddleware(
            Starlette(routes=routes),
            store=RedisStore(server.patient_url),
            registry=CollectorRegistry(),
            **{"mark": "*", "keep": True, "stream_max_seconds": None, **options},
        )
        apps.append(middleware)
    try:
        yield apps
    finally:
        for app in apps:
            await app._context.store.close()
            if app._admission is not None:
                await app._admission.close()


def requested(
    app: SSEMiddleware, *headers: tuple[bytes, bytes], method: str = "GET", path: str = LIVE
) -> Any:
    return running(app, Exchange(http_scope(method=method, path=path, headers=[*headers])))


async def started(exchange: Exchange) -> tuple[bytes, bytes]:
    """Wait for the response start, and return the header that selects its stream."""
    await exchange._until(lambda: bool(exchange.messages), "a response start")
    return b"x-stream-id", exchange.headers[b"x-stream-id"]


class Queries:
    """Counts the commands with which a store reads, and not those of its background tasks."""

    def __init__(self, store: Any) -> None:
        self.count = 0
        client: Any = store._session().client
        self._query = client.query
        client.query = self._counting

    async def _counting(self, operation: str, *commands: Any) -> Any:
        self.count += len(commands)
        return await self._query(operation, *commands)

    def take(self) -> int:
        """Return the number since the last call."""
        count, self.count = self.count, 0
        return count


async def test_a_stream_is_read_on_another_worker_before_and_after_its_end(
    running_server: RedisServer,
) -> None:
    answers = Answers()
    async with workers(running_server, answers) as (here, there):
        async with requested(here, ANN, method="POST", path="/answer") as first:
            selected = await started(first)  # nothing has been sent
            async with requested(there, ANN, selected) as other:
                answers.allow(5)
                await other.until_end()
            await first.until_end()
        head = await handle(there, headers=[ANN, selected], path=LIVE, method="HEAD")
        late = await handle(there, headers=[ANN, selected], path=LIVE)
    whole = b"".join(b"data: %d\n\n" % number for number in range(1, 6))
    assert first.body == other.body == late.body == whole
    assert (head.status, head.body) == (200, b"")
    assert head.headers[b"x-stream-id"] == selected[1]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_stream_is_stopped_on_another_worker(
    running_server: RedisServer, method: str
) -> None:
    answers = Answers()
    async with (
        workers(running_server, answers) as (here, there),
        requested(here, ANN, method="POST", path="/answer") as first,
    ):
        selected = await started(first)
        answers.allow(1)
        for headers in ([BOB, selected], [selected], [ANN, (b"x-stream-id", OTHER_ID)]):
            refused = await handle(there, headers=headers, path=LIVE, method=method)
            assert (refused.status, refused.body) == (204, b"")
        assert answers.ends == []
        stopped = await handle(there, headers=[ANN, selected], path=LIVE, method=method)
        assert (stopped.status, stopped.body) == (204, b"")
        await until(lambda: answers.ends == ["cancelled"], "the app was to stop")


async def test_a_stop_on_another_worker_passes_the_events_to_on_end_once(
    running_server: RedisServer,
) -> None:
    calls: list[tuple[str, list[str]]] = []

    async def save(info: EndInfo, events: list[Event]) -> None:
        calls.append((info.reason, [event.data for event in events]))

    answers, marks = Answers(), {"*": streaming(on_end=save, keep=True)}
    async with (
        workers(running_server, answers, marks=marks) as (here, there),
        requested(here, ANN, method="POST", path="/answer") as first,
    ):
        selected = await started(first)
        async with requested(there, ANN, selected) as reader:
            answers.allow(2)
            await reader._until(lambda: reader.body.count(b"\n\n") == 2, "two events")
            await handle(there, headers=[ANN, selected], path=LIVE, method="DELETE")
            await until(lambda: bool(calls), "on_end was to be called")
        await until(lambda: answers.ends == ["cancelled"], "the app was to stop")
    assert calls == [("cancelled", ["1", "2"])]


async def test_another_identity_costs_as_many_commands_as_an_unknown_id(
    running_server: RedisServer,
) -> None:
    async with (
        workers(running_server, Answers()) as (here, there),
        requested(here, ANN, method="POST", path="/answer") as first,
    ):
        selected = await started(first)
        assert (
            await handle(there, headers=[ANN, selected], path=LIVE, method="HEAD")
        ).status == 200
        counts, queries = [], Queries(there._context.store)
        for headers in ([ANN, (b"x-stream-id", OTHER_ID)], [BOB, selected], [selected]):
            assert (await handle(there, headers=headers, path=LIVE)).status == 204
            counts.append(queries.take())
        unknown, other, none = counts
        assert (unknown, other) == (9, 9 + 3 + 1)  # the stream itself, and whether it is alive
        assert none == 0


async def test_an_unknown_event_id_costs_nine_commands(running_server: RedisServer) -> None:
    store = RedisStore(running_server.patient_url)
    queries = Queries(store)
    assert await store.find(OTHER_ID.decode()) is None
    assert queries.take() == 9
    await store.close()


@pytest.mark.skipif(not supports_installed_redis(), reason="limits needs redis-py 5.2")
async def test_an_unknown_id_over_the_open_rate_costs_no_command(
    running_server: RedisServer,
) -> None:
    """The ids that no stream has are counted like openings, and over the rate not looked up."""
    answers = Answers()
    rate = {"open_rate": steady_rate(2), "redis_url": running_server.patient_url}
    cursor = (b"last-event-id", UNKNOWN.encode())
    async with (
        workers(running_server, answers, **rate) as (here, _),
        requested(here, ANN, *EVENTSOURCE, path="/answer") as first,
    ):
        selected = await started(first)
        await first.until("start")
        for _ in range(2):
            gone = await handle(here, headers=[ANN, (b"x-stream-id", OTHER_ID)], path=LIVE)
            assert gone.status == 204
        queries = Queries(here._context.store)
        put_off = await handle(here, headers=[ANN, *EVENTSOURCE, cursor], path="/answer")
        assert (put_off.status, put_off.names) == (200, ["start"])
        assert (put_off.last_event_id, put_off.retry is not None) == (UNKNOWN, True)
        for headers in ([ANN, selected], [ANN, (b"x-stream-id", OTHER_ID)]):
            rejected = await handle(here, headers=headers, path=LIVE)
            assert rejected.status == 429
            assert int(rejected.headers[b"retry-after"]) > 0
        assert (await stop(here, UNKNOWN, ANN, path="/answer")).status == 429
        assert queries.take() == 0
        async with requested(here, BOB, cursor, *EVENTSOURCE, path="/answer") as another:
            await another.until("reset")


async def test_a_full_process_looks_nothing_up(running_server: RedisServer) -> None:
    answers = Answers()
    limits = {"max_streams": 1, "max_readers": 1}
    cursor = (b"last-event-id", UNKNOWN.encode())
    async with (
        workers(running_server, answers, **limits) as (here, _),
        requested(here, ANN, method="POST", path="/answer") as first,
    ):
        selected = await started(first)
        async with requested(here, ANN, selected) as reader:
            await started(reader)
            queries = Queries(here._context.store)
            put_off = await handle(here, headers=[ANN, *EVENTSOURCE, cursor], path="/answer")
            assert (put_off.names, put_off.last_event_id) == (["start"], UNKNOWN)
            for public_id in (selected[1], OTHER_ID):
                full = await handle(here, headers=[ANN, (b"x-stream-id", public_id)], path=LIVE)
                assert full.status == 503
            assert queries.take() == 0
