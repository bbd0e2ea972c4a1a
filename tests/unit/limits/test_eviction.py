"""Eviction: an older stream ends for a new one, and which of them it is."""

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

from sse_middleware import current_stream, resume_endpoint
from tests.support.admission import FULL, LET_IN, MANY, endless
from tests.support.asgi import EVENTSOURCE, body, handle, stream_start
from tests.support.limiting import PLAIN, answer, asked, limited, reasons, tab
from tests.support.resuming import LINGER, REFUSING, Counting, Deaf, memory, resume, texts, value

pytestmark = pytest.mark.anyio


# An older stream ends


async def test_the_oldest_stream_of_an_eventsource_is_evicted_and_does_not_resume() -> None:
    counting = endless()
    registry = CollectorRegistry()
    app = limited(counting, max_streams_per_client=2, registry=registry)
    async with tab(app) as one, tab(app) as two:
        await one.until_count(2, "message")
        async with tab(app, address="192.0.2.2") as stranger, tab(app) as three:
            await one.until_end()
            assert reasons(one) == ["evicted"]
            assert one.last_event_id.endswith(".end")
            await three.until_count(5, "message")
            assert await answer(three) == LET_IN
            assert not two.ended
            assert not stranger.ended
            back = await handle(
                app, headers=[*EVENTSOURCE, (b"last-event-id", one.last_event_id.encode())]
            )
            assert back.status == 204
            assert not (two.ended or three.ended)
    ended = {"route": "unmatched", "family": "eventsource", "outcome": "evicted"}
    assert value(registry, "sse_streams_total", **ended) == 1
    assert counting.ends.count("cancelled") == 4


async def test_two_tabs_over_a_limit_of_one_do_not_push_each_other_out_for_ever() -> None:
    counting = endless()
    app = limited(counting, max_streams_per_client=1)
    closed: list[int] = []

    async def live(number: int) -> None:
        """Behave as a browser's tab: reconnect until a 204."""
        held = b""
        while True:
            headers = [(b"last-event-id", held)] if held else []
            async with tab(app, *headers) as exchange:
                await exchange.until_end()
                if exchange.status == 204:
                    closed.append(number)
                    return
                held = exchange.last_event_id.encode()
            await asyncio.sleep((exchange.retry or 3000) / 1000)

    tabs = []
    for number in (1, 2):
        tabs.append(asyncio.ensure_future(live(number)))
        await asyncio.sleep(1)
    await asyncio.sleep(300)
    for one in tabs:
        one.cancel()
    results = await asyncio.gather(*tabs, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError]
    assert closed == [1]
    assert len(counting.scopes) == 2


async def test_an_evicted_stream_with_ids_of_the_app_does_not_resume_either() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1000):
            await send(body(b"id: app-%d\ndata: x\n\n" % number))
            await asyncio.sleep(1)

    app = limited(inner, max_streams_per_client=1)
    async with tab(app) as one:
        await one.until_count(2, "message")
        async with tab(app) as two:
            await one.until_end()
            held = one.last_event_id
            assert held.endswith(".end")
            back = await handle(app, headers=[*EVENTSOURCE, (b"last-event-id", held.encode())])
            assert back.status == 204
            assert not two.ended


async def test_an_eventsource_evicts_no_stream_that_cannot_notify_its_client() -> None:
    app = limited(endless(), max_streams_per_client=1)
    async with asked(app, PLAIN) as one:
        await answer(one)
        async with tab(app) as two:
            await two.until_end()
            assert two.status == 200
            assert two.names == ["start"]
            assert 5000 <= int(two.retry or 0) <= 10_000
        assert not one.ended


async def test_set_to_evict_it_ends_any_stream_and_a_plain_client_sees_a_cut() -> None:
    app = limited(endless(), max_streams_per_client=1, limit_action="evict_oldest")
    async with asked(app, PLAIN) as one:
        await one.until("message")
        async with asked(app, PLAIN) as two:
            assert await answer(two) == LET_IN
            assert one.task is not None
            await one.task
            assert not one.ended
            assert not two.ended


async def test_set_to_reject_an_eventsource_gets_a_status_too() -> None:
    counting = endless()
    app = limited(counting, max_streams_per_client=1, max_streams=2, limit_action="reject")
    async with tab(app) as one:
        await answer(one)
        async with tab(app) as two:
            assert await answer(two) == MANY
        async with tab(app, address="192.0.2.2"), tab(app, address="192.0.2.3") as four:
            assert await answer(four) == FULL
        assert not one.ended
    assert len(counting.scopes) == 2


async def test_a_full_process_evicts_from_the_client_with_most_and_never_an_only_stream() -> None:
    app = limited(endless(), max_streams=4)
    async with AsyncExitStack() as stack:
        greedy = [await stack.enter_async_context(tab(app)) for _ in range(3)]
        modest = await stack.enter_async_context(tab(app, address="192.0.2.2"))
        await asyncio.sleep(1)
        others = []
        for number in range(3, 5):
            others.append(await stack.enter_async_context(tab(app, address=f"192.0.2.{number}")))
            await asyncio.sleep(1)
        assert [one.ended for one in greedy] == [True, True, False]
        assert [reasons(one) for one in greedy] == [["evicted"], ["evicted"], []]
        late = await stack.enter_async_context(tab(app, address="192.0.2.9"))
        await late.until_end()
        assert (late.status, late.names) == (200, ["start"])
        assert not any(one.ended for one in (modest, greedy[2], *others))
        more = await stack.enter_async_context(tab(app, address="192.0.2.2"))
        await asyncio.sleep(1)
        assert modest.ended
        assert not more.ended


async def test_no_stream_ends_for_a_client_that_is_rejected() -> None:
    app = limited(endless(), max_streams=4, max_streams_per_client=2)
    async with (
        asked(app, PLAIN),
        asked(app, PLAIN) as plain,
        tab(app, address="192.0.2.2") as one,
        tab(app, address="192.0.2.2") as two,
    ):
        await plain.until("message")
        await two.until("message")
        async with tab(app) as late:
            await late.until_end()
            assert late.names == ["start"]
        await asyncio.sleep(1)
        assert not (one.ended or two.ended or plain.ended)


async def test_of_a_process_overfull_by_returns_one_stream_ends_for_a_new_one() -> None:
    app = limited(endless(), max_streams=2)
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(2):
            gone = await stack.enter_async_context(tab(app))
            await gone.until("message")
            gone.disconnect()
            await asyncio.sleep(0.1)
            readers.append(gone.last_event_id.encode())
        others = [await stack.enter_async_context(tab(app, address="192.0.2.2")) for _ in range(2)]
        back = [
            await stack.enter_async_context(tab(app, (b"last-event-id", held))) for held in readers
        ]
        for one in (*others, *back):
            await one.until("message")
        assert app._admission is not None
        assert len(app._admission.slots) == 4
        newcomer = await stack.enter_async_context(tab(app, address="192.0.2.3"))
        await newcomer.until("message")
        await asyncio.sleep(1)
        assert sum(one.ended for one in (*others, *back)) == 1
        assert len(app._admission.slots) == 4


async def test_a_client_that_is_told_to_retry_is_admitted_later_with_its_event_id() -> None:
    counting = endless()
    app = limited(counting, max_streams=1)
    async with tab(app) as one:
        await one.until("message")
        unknown = b"A" * 22 + b"-3"
        async with tab(app, (b"last-event-id", unknown), address="192.0.2.2") as two:
            await two.until_end()
            assert two.last_event_id.encode() == unknown
        async with tab(app, address="192.0.2.2") as three:
            await three.until_end()
            held = three.last_event_id
            assert held.endswith("-0")
        assert len(counting.scopes) == 1
    async with tab(app, (b"last-event-id", held.encode()), address="192.0.2.2") as four:
        await four.until("message")
        assert four.names[0] == "start"
        assert four.retry == 2000


async def test_a_response_that_is_no_stream_evicts_none() -> None:
    async def denied(request: Request) -> Response:
        return JSONResponse({}, status_code=401)

    inner = Starlette(routes=[Route("/denied", denied), Route("/", endless())])
    app = limited(inner, max_streams_per_client=1)
    async with tab(app) as one:
        await one.until("message")
        for _ in range(3):
            async with tab(app, path="/denied") as other:
                await other.until_end()
                assert other.status == 401
        assert not one.ended


# Streams without a reader


@pytest.mark.parametrize("action", [{}, {"limit_action": "reject"}])
async def test_a_page_that_is_reloaded_twice_is_admitted_each_time(action: Any) -> None:
    counting = endless()
    app = limited(counting, max_streams_per_client=1, max_streams=1, **action)
    async with AsyncExitStack() as stack:
        page = None
        for _ in range(3):
            if page is not None:
                page.disconnect()  # and it is not noticed yet
            page = await stack.enter_async_context(tab(app))
            assert await answer(page) == LET_IN
            await page.until("message")
        assert len(counting.scopes) == 3
        await asyncio.sleep(LINGER + 2)
        assert counting.ends == ["cancelled", "cancelled"]


async def test_the_disconnect_of_the_client_of_a_deaf_app_is_noticed() -> None:
    app = limited(Deaf(), max_streams_per_client=1, limit_action="reject", heartbeat_interval=None)
    async with tab(app) as one:
        await one.until("message")
        one.disconnect()
        async with tab(app) as two:
            assert await answer(two) == LET_IN


@pytest.mark.parametrize("most", [1, 2])
async def test_a_lingering_stream_holds_no_slot_and_ends_for_the_next_one(
    most: int,
) -> None:
    counting = endless()
    app = limited(counting, max_streams_per_client=most, limit_action="reject")
    async with AsyncExitStack() as stack:
        for _ in range(most):
            one = await stack.enter_async_context(tab(app))
            await one.until("message")
            one.disconnect()
        await asyncio.sleep(0.5)
        assert counting.ends == []
        nxt = await stack.enter_async_context(tab(app))
        assert await answer(nxt) == LET_IN
        await asyncio.sleep(1)
        assert counting.ends == ["cancelled"]
        stranger = await stack.enter_async_context(tab(app, address="192.0.2.2"))
        assert await answer(stranger) == LET_IN
        assert counting.ends == ["cancelled"]


async def test_a_client_that_reconnects_needs_no_slot() -> None:
    counting = Counting(20)
    store = memory()
    app = limited(
        counting, max_streams=1, max_streams_per_client=1, limit_action="reject", store=store
    )
    async with tab(app) as one:
        await one.until_count(2, "message")
        one.disconnect()
        await asyncio.sleep(0.5)
        async with tab(app, address="192.0.2.2") as other:
            assert await answer(other) == LET_IN
            back = asyncio.ensure_future(resume(app, one.last_event_id, client=("192.0.2.1", 1)))
            await asyncio.sleep(2)
            async with tab(app) as late:  # the one that continues counts again
                assert await answer(late) in (MANY, FULL)
            got = await back
    assert texts(got) == [str(number) for number in range(3, 21)]


async def test_several_readers_of_one_stream_count_as_one() -> None:
    counting = Counting(20)
    app = limited(counting, max_streams_per_client=2, limit_action="reject")
    async with tab(app) as one:
        await one.until("message")
        cursor = (b"last-event-id", one.last_event_id.encode())
        async with tab(app, cursor), tab(app, cursor) as reader:
            await reader.until("message")
            async with tab(app) as two, tab(app) as three:
                assert await answer(two) == LET_IN
                assert await answer(three) == MANY


async def test_a_client_that_has_blocked_a_write_for_a_second_is_admitted_again() -> None:
    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        while True:
            await send(body(b"data: x\n\n"))
            await asyncio.sleep(0.01)

    app = limited(flood, max_streams_per_client=1, limit_action="reject")
    async with asked(app, PLAIN) as one:
        await one.until("message")
        one.block()
        await asyncio.sleep(0.1)
        async with asked(app, PLAIN) as two:
            began = asyncio.get_running_loop().time()
            assert await answer(two) == LET_IN
            assert asyncio.get_running_loop().time() - began == pytest.approx(1, abs=0.1)
            async with asked(app, PLAIN) as three:
                assert await answer(three) == MANY


async def test_a_stream_by_name_needs_no_slot() -> None:
    def identify(scope: Scope) -> str:
        return str(dict(scope["headers"]).get(b"x-user", b""))

    async def named(request: Request) -> Response:
        current_stream().name("chat:1")
        return StreamingResponse(endless()._events(), media_type="text/event-stream")

    routes = [Route("/", named), Route("/live", resume_endpoint("chat:1"))]
    app = limited(
        Starlette(routes=routes, exception_handlers=REFUSING),
        max_streams=1,
        limit_action="reject",
        identify=identify,
    )
    user = (b"x-user", b"one")
    async with tab(app, user) as one:
        await one.until("message")
        async with tab(app, user, path="/live") as reader, tab(app, user, path="/live") as other:
            await reader.until("message")
            await other.until("message")
        async with tab(app, user) as late:
            assert await answer(late) == FULL
