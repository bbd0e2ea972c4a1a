"""Requests that are attached to a stream of another worker, with a real Redis between them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, streaming
from sse_middleware.http.routes import Attach
from sse_middleware.stores.redis import RedisStore
from sse_middleware.stores.redis.claims import CLAIM_SECONDS
from sse_middleware.testing.streams import eventually
from tests.support.asgi import Exchange, http_scope, running
from tests.support.redis_server import RedisServer
from tests.support.redis_stores import stores
from tests.unit.resume.test_attach import ANN, user

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    running_server.client.flushall()
    return running_server


ANSWER = b"".join(b"data: %d\n\n" % number for number in range(1, 4))


class Model:
    """A handler on several workers that thinks until it is let go."""

    def __init__(self, *, is_stream: bool = True) -> None:
        self.runs = 0
        self.thought = asyncio.Event()
        self._is_stream = is_stream

    async def __call__(self, _: Request) -> Response:
        self.runs += 1
        await self.thought.wait()
        if not self._is_stream:
            return JSONResponse({}, 503)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        for number in range(1, 4):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(0.02)


@asynccontextmanager
async def workers(
    server: RedisServer,
    model: Model,
    count: int,
    attach: Attach = "running",
    cache_ttl: float | None = None,
) -> AsyncIterator[tuple[list[SSEMiddleware], list[RedisStore]]]:
    """Run workers that share a Redis."""

    async def chat(request: Request) -> Response:
        return await model(request)

    mark = streaming(attach=attach, cache_ttl=cache_ttl)
    async with stores(server, count) as made:
        yield (
            [
                SSEMiddleware(
                    Starlette(routes=[Route("/chat", mark(chat), methods=["POST"])]),
                    identify=user,
                    store=store,
                    max_readers=500,
                    heartbeat_interval=None,  # five hundred requests may block the loop for seconds
                )
                for store in made
            ],
            made,
        )


def post() -> Exchange:
    return Exchange(http_scope(headers=[ANN], path="/chat", method="POST"), body=b"hi")


async def send_all(apps: list[SSEMiddleware], exchanges: list[Exchange]) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(
            *[
                apps[number % len(apps)](one.scope, one.receive, one.send)
                for number, one in enumerate(exchanges)
            ]
        )


@pytest.mark.parametrize("attach", ["running", "kept"])
async def test_five_hundred_equal_requests_at_three_workers_run_the_app_once(
    server: RedisServer, attach: Attach
) -> None:
    model = Model()
    async with workers(server, model, 3, attach=attach) as (apps, _):
        exchanges = [post() for _ in range(500)]
        sending = asyncio.ensure_future(send_all(apps, exchanges))
        await eventually_runs(model)

        async def waiting() -> int:
            return sum(len(app._context.readers) for app in apps)

        await eventually(waiting, lambda got: got == 499, "the others were to wait")
        model.thought.set()
        await sending
        assert model.runs == 1
        assert {one.body for one in exchanges} == {ANSWER}
        caches = [one.headers.get(b"x-stream-cache") for one in exchanges]
        assert caches.count(None) == 1
        if attach == "kept":
            late = post()
            await send_all(apps[1:2], [late])
            assert (late.body, late.headers[b"x-stream-cache"]) == (ANSWER, b"hit")
        await eventually_no_claim(server)


async def test_if_the_response_is_no_stream_the_requests_of_all_workers_run(
    server: RedisServer,
) -> None:
    model = Model(is_stream=False)
    async with workers(server, model, 2) as (apps, _):
        exchanges = [post() for _ in range(4)]
        sending = asyncio.ensure_future(send_all(apps, exchanges))
        await eventually_runs(model)
        model.thought.set()
        await sending
        assert model.runs == 4
        assert {one.status for one in exchanges} == {503}
        await eventually_no_claim(server)


async def test_a_claim_is_renewed_as_long_as_the_app_thinks(server: RedisServer) -> None:
    model = Model()
    async with workers(server, model, 2) as (apps, _):
        first, second = post(), post()
        sending = asyncio.ensure_future(send_all(apps, [first, second]))
        await eventually_runs(model)
        for _ in range(12):
            (key,) = claims(server)
            assert server.client.pttl(key) > 0
            await asyncio.sleep(CLAIM_SECONDS / 10)
        model.thought.set()
        await sending
        assert model.runs == 1
        assert (first.body, second.body) == (ANSWER, ANSWER)


async def test_a_claim_of_a_process_that_has_died_expires(server: RedisServer) -> None:
    model = Model()
    async with AsyncExitStack() as stack:
        apps, (here, _) = await stack.enter_async_context(workers(server, model, 2))
        dead, second = post(), post()
        thinking = asyncio.ensure_future(apps[0](dead.scope, dead.receive, dead.send))
        await eventually_runs(model)
        task = here._session().claims._task
        assert task is not None
        task.cancel()  # the process does nothing any more
        waiting = asyncio.ensure_future(send_all(apps[1:], [second]))
        await eventually_runs(model, 2)
        model.thought.set()
        await waiting
        assert second.body == ANSWER
        await thinking


async def test_if_redis_is_lost_meanwhile_the_requests_run(server: RedisServer) -> None:
    model = Model()
    async with workers(server, model, 2) as (apps, _):
        exchanges = [post(), post()]
        sending = asyncio.ensure_future(send_all(apps, exchanges))
        await eventually_runs(model)
        await asyncio.sleep(0.1)
        server.client.flushall()
        await eventually_runs(model, 2)
        model.thought.set()
        await sending
        assert {one.body for one in exchanges} == {ANSWER}


async def test_a_finished_stream_and_its_names_are_kept_in_redis_for_the_time_of_the_mark(
    server: RedisServer,
) -> None:
    model = Model()
    model.thought.set()
    async with workers(server, model, 1, attach="kept", cache_ttl=900) as (apps, _):
        await send_all(apps, [post()])

        async def seconds() -> list[int]:
            keys = [key for key in server.all_keys() if key.endswith((":name", ":log", ":info"))]
            return sorted(int(server.client.ttl(key)) for key in keys)

        await eventually(
            seconds, lambda got: len(got) == 3 and 880 < got[0] <= got[-1] <= 900, "900 seconds"
        )


def claims(server: RedisServer) -> list[str]:
    return [key for key in server.all_keys() if key.endswith(":claim")]


async def eventually_runs(model: Model, count: int = 1) -> None:
    async def runs() -> int:
        return model.runs

    await eventually(runs, lambda got: got == count, f"{count} runs")


async def eventually_no_claim(server: RedisServer) -> None:
    async def held() -> list[str]:
        return claims(server)

    await eventually(held, lambda got: not got, "no claim")


async def test_a_request_that_looks_before_a_stream_opens_and_claims_after_its_end_follows_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    model.thought.set()
    async with workers(server, model, 2) as (apps, (_, there)):
        first, late = post(), post()
        claim = there.claim

        async def claim_late(name: str, stream_id: str) -> str:
            await send_all(apps[:1], [first])
            await eventually_no_claim(server)
            return await claim(name, stream_id)

        monkeypatch.setattr(there, "claim", claim_late)
        await send_all(apps[1:], [late])
        assert (first.body, late.body, model.runs) == (ANSWER, ANSWER, 1)
        assert late.headers[b"x-stream-id"] == first.headers[b"x-stream-id"]
        await eventually_no_claim(server)


async def test_a_request_that_waits_follows_its_stream_though_another_has_its_name(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    async with workers(server, model, 2) as (apps, (_, there)):
        first, waiting, next_one = post(), post(), post()
        claimant = there.claimant

        async def claimant_late(name: str) -> str | None:
            model.thought.set()
            await sending
            await eventually_no_claim(server)
            await send_all(apps[:1], [next_one])
            await eventually_no_claim(server)
            return await claimant(name)

        sending = asyncio.ensure_future(send_all(apps[:1], [first]))
        await eventually_runs(model)
        monkeypatch.setattr(there, "claimant", claimant_late)
        await send_all(apps[1:], [waiting])
        assert model.runs == 2
        assert waiting.body == ANSWER
        assert waiting.headers[b"x-stream-id"] == first.headers[b"x-stream-id"]


async def test_a_client_that_does_not_read_keeps_no_other_request_waiting(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    model.thought.set()
    async with workers(server, model, 2) as (apps, (_, there)):
        first, late = post(), post()
        late.block()
        claim = there.claim

        async def claim_late(name: str, stream_id: str) -> str:
            monkeypatch.setattr(there, "claim", claim)
            await send_all(apps[:1], [first])
            await eventually_no_claim(server)
            return await claim(name, stream_id)

        monkeypatch.setattr(there, "claim", claim_late)
        async with running(apps[1], late):

            async def has_followed() -> int:
                return len(apps[1]._context.readers)

            await eventually(has_followed, lambda got: got == 1, "the late request was to follow")
            await eventually_no_claim(server)
            late.unblock()
            await late.until_end()
        assert late.body == first.body == ANSWER
