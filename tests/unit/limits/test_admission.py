"""Admission: the number of streams per process and per client, and which streams count."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming
from tests.support.admission import FULL, LET_IN, MANY, endless
from tests.support.asgi import EVENTSOURCE, body, handle, stream_start
from tests.support.limiting import ANY, PLAIN, answer, asked, limited, tab
from tests.support.middleware import marking
from tests.support.resuming import memory, value

pytestmark = pytest.mark.anyio


# The number of streams


@pytest.mark.parametrize("most", [1, 3])
async def test_a_process_has_a_number_of_slots_and_gets_them_back(most: int) -> None:
    counting = endless()
    app = limited(counting, max_streams=most)
    async with AsyncExitStack() as stack:
        for number in range(most):
            there = asked(app, PLAIN, address=f"192.0.2.{number}")
            assert await answer(await stack.enter_async_context(there)) == LET_IN
        async with asked(app, PLAIN, address="192.0.2.99") as late:
            assert await answer(late) == FULL
            assert len(counting.scopes) == most
    async with asked(app, PLAIN, address="192.0.2.99") as later:
        assert await answer(later) == LET_IN


@pytest.mark.parametrize("most", [1, 3])
async def test_a_client_has_its_share_and_others_have_theirs(most: int) -> None:
    counting = endless()
    app = limited(counting, max_streams_per_client=most)
    async with AsyncExitStack() as stack:
        for address in ("192.0.2.1", "192.0.2.2"):
            for _ in range(most):
                there = asked(app, PLAIN, address=address)
                assert await answer(await stack.enter_async_context(there)) == LET_IN
            async with asked(app, PLAIN, address=address) as late:
                assert await answer(late) == MANY
    assert len(counting.scopes) == 2 * most


async def test_of_a_hundred_at_once_exactly_the_limit_is_admitted() -> None:
    app = limited(endless(), max_streams_per_client=7, limit_action="reject")
    async with AsyncExitStack() as stack:
        all_of_them = [
            await stack.enter_async_context(asked(app, ANY if number % 2 else PLAIN))
            for number in range(100)
        ]
        answers = [await answer(one) for one in all_of_them]
    assert answers.count(LET_IN) == 7
    assert answers.count(MANY) == 93


async def test_without_a_limit_there_is_no_check() -> None:
    app = marking(endless(), trusted_proxies=("10.0.0.1",), limit_action="reject")
    assert app._admission is None


@pytest.mark.parametrize("how", ["ends", "fails", "leaves"])
async def test_a_slot_is_released_however_a_stream_ends(how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        if how == "leaves":
            await asyncio.sleep(1000)
        if how == "fails":
            raise ValueError("swordfish")
        await send(body(b"", more=False))

    wrapped = limited(app, max_streams=1, limit_action="reject", linger_seconds=0)
    for _ in range(3):
        async with tab(wrapped) as one:
            assert await answer(one) == LET_IN
            await one.until("message")
            if how == "leaves":
                one.disconnect()
            else:
                await one.until_end()
            assert one.task is not None
            await asyncio.sleep(0.2)


# The identity of a client


async def test_an_identity_replaces_the_address() -> None:
    app = limited(endless(), max_streams_per_client=1, identity_cookies=("session",))
    ways = [(b"authorization", b"a"), (b"authorization", b"b"), (b"cookie", b"session=a")]
    async with AsyncExitStack() as stack:
        for way in (*ways, (b"x", b"nothing")):
            there = asked(app, PLAIN, way)
            assert await answer(await stack.enter_async_context(there)) == LET_IN
        for way in (*ways, (b"x", b"nothing")):
            async with asked(app, PLAIN, way) as late:
                assert await answer(late) == MANY
        for way in ways:
            async with asked(app, PLAIN, way, address="198.51.100.1") as elsewhere:
                assert await answer(elsewhere) == MANY


async def test_identify_sets_the_identity_and_the_address_does_if_it_fails() -> None:
    def identify(scope: Scope) -> str | None:
        name = dict(scope["headers"])[b"x-user"].decode()
        return None if name == "unknown" else name

    app = limited(endless(), max_streams_per_client=1, identify=identify)
    async with asked(app, PLAIN, (b"x-user", b"one")), asked(app, PLAIN, (b"x-user", b"unknown")):
        await asyncio.sleep(0.01)
        for headers, expected in (
            ([(b"x-user", b"one")], MANY),
            ([(b"x-user", b"two")], LET_IN),
            ([(b"x-user", b"unknown")], MANY),
            ([], MANY),  # it fails
        ):
            async with asked(app, PLAIN, *headers) as late:
                assert await answer(late) == expected


async def test_a_made_up_forwarded_header_opens_no_second_share() -> None:
    app = limited(endless(), max_streams_per_client=1, trusted_proxies=("10.0.0.1",))
    async with asked(app, PLAIN) as first:
        await answer(first)
        for lie in ((b"x-forwarded-for", b"8.8.8.8"), (b"forwarded", b"for=8.8.8.8")):
            async with asked(app, PLAIN, lie) as second:
                assert await answer(second) == MANY
            forged = (b"x-forwarded-for", b"8.8.8.8, 192.0.2.1")
            async with asked(app, PLAIN, forged, address="10.0.0.1") as third:
                assert await answer(third) == MANY
            other = (b"x-forwarded-for", b"192.0.2.1, 192.0.2.2")
            async with asked(app, PLAIN, other, address="10.0.0.1") as fourth:
                assert await answer(fourth) == LET_IN


async def test_a_client_without_an_address_is_not_limited_and_one_warning_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = limited(endless(), max_streams_per_client=1)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            there = asked(app, PLAIN, client=None)
            assert await answer(await stack.enter_async_context(there)) == LET_IN
    assert caplog.text.count("SSE_TRUSTED_PROXIES=unix") == 1


# Responses that do not count


async def test_a_response_that_is_no_stream_neither_counts_nor_waits() -> None:
    async def page(request: Request) -> Response:
        return JSONResponse({})

    counting = endless()
    app = limited(
        Starlette(routes=[Route("/page", page, methods=["GET", "POST"]), Route("/s", counting)]),
        max_streams=1,
        limit_action="reject",
    )
    both = [(b"accept", b"application/json, text/event-stream")]
    async with asked(app, both, path="/s") as stream:
        assert await answer(stream) == LET_IN
        for headers in (both, ANY, [], [(b"accept", b"text/html,*/*;q=0.8")]):
            assert (await handle(app, headers=headers, path="/page")).status == 200
        for method in ("HEAD", "OPTIONS"):
            status = (await handle(app, headers=PLAIN, path="/page", method=method)).status
            assert status in (200, 405)
    for _ in range(3):  # it seemed to want a stream, got none, and released the slot
        assert (await handle(app, headers=PLAIN, path="/page")).status == 200
    async with asked(app, both, path="/s") as stream:
        assert await answer(stream) == LET_IN


@pytest.mark.parametrize(
    "options",
    [
        {"only_marked": True, "mark": ()},
        {"exclude": ("/*",)},
        {"marks": {"/*": streaming(enabled=False)}},
        {"enabled": False},
    ],
)
async def test_streams_that_are_left_alone_are_not_limited(options: Any) -> None:
    app = limited(endless(), max_streams=1, limit_action="reject", **options)
    async with asked(app, PLAIN) as one, tab(app) as other:
        assert await answer(one) == await answer(other) == LET_IN


@pytest.mark.parametrize("headers", [PLAIN, ANY, EVENTSOURCE], ids=["plain", "any", "tab"])
@pytest.mark.parametrize("mark", ["*", ()], ids=["marked", "unmarked"])
async def test_the_other_arm_of_a_rollout_is_limited_like_an_unmarked_endpoint(
    mark: Any, headers: Any
) -> None:
    registry = CollectorRegistry()
    app = limited(endless(), max_streams=1, rollout_percent=0, mark=mark, registry=registry)
    for _ in range(2):
        async with asked(app, headers) as one:
            assert await answer(one) == LET_IN
            assert b"x-stream-id" not in one.headers
            async with asked(app, headers, address="192.0.2.2") as other:
                assert await answer(other) == FULL
    assert value(registry, "sse_streams_active") == 0
    assert value(registry, "sse_rejected_total", route="unmatched", reason="process") == 2


async def test_a_mark_shows_before_the_handler_that_a_stream_is_wanted() -> None:
    runs: list[str] = []

    async def marked(request: Request) -> Response:
        runs.append("marked")
        return StreamingResponse(endless()._events(), media_type="text/event-stream")

    async def unmarked(request: Request) -> Response:
        runs.append("unmarked")
        return StreamingResponse(endless()._events(), media_type="text/event-stream")

    routes = [Route("/marked", streaming(marked)), Route("/unmarked", unmarked)]
    registry = CollectorRegistry()
    app = limited(Starlette(routes=routes), max_streams=1, registry=registry)
    async with asked(app, ANY, path="/marked") as first:
        await answer(first)
        async with asked(app, ANY, path="/marked", address="192.0.2.2") as second:
            assert await answer(second) == FULL
        assert runs == ["marked"]
        async with asked(app, ANY, path="/unmarked", address="192.0.2.2") as third:
            assert await answer(third) == FULL
        assert runs == ["marked", "unmarked"]
    for route in ("/marked", "/unmarked"):
        assert value(registry, "sse_rejected_total", route=route, reason="process") == 1


async def test_a_mark_is_found_ahead_in_a_router_of_fastapi() -> None:
    fastapi: Any = pytest.importorskip("fastapi")
    sse: Any = pytest.importorskip("fastapi.sse")
    runs: list[str] = []
    router = fastapi.APIRouter(prefix="/chats")

    async def chat(chat: str) -> Any:
        runs.append(chat)
        while True:
            yield {"x": 1}
            await asyncio.sleep(1)

    router.get("/{chat}", response_class=sse.EventSourceResponse)(streaming(chat))
    outer = fastapi.APIRouter()
    outer.include_router(router)
    inner = fastapi.FastAPI()
    inner.include_router(outer, prefix="/v1")
    registry = CollectorRegistry()
    inner.add_middleware(
        SSEMiddleware, max_streams=1, stream_max_seconds=None, registry=registry, store=memory()
    )
    async with asked(inner, ANY, path="/v1/chats/1") as first:
        await first.until("message")
        async with asked(inner, ANY, path="/v1/chats/2", address="192.0.2.2") as second:
            assert await answer(second) == FULL
    assert runs == ["1"]
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    (rejected,) = [sample for sample in samples if sample.name == "sse_rejected_total"]
    (active,) = [sample for sample in samples if sample.name == "sse_streams_total"]
    assert rejected.labels["route"] == active.labels["route"]
    assert rejected.labels["route"].endswith("/chats/{chat}")
