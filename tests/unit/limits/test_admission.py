"""Limits at work: who is let in, who gives way, and what the others are told."""

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware, current_stream, resume_endpoint, streaming
from tests.support.asgi import EVENTSOURCE, body, handle, stream_start
from tests.support.limiting import ANY, PLAIN, answer, asked, limited, reasons, tab
from tests.support.resuming import (
    LINGER,
    REFUSING,
    Counting,
    Deaf,
    Listening,
    memory,
    resume,
    texts,
    value,
)

pytestmark = pytest.mark.anyio

FULL = (503, "server_full")
MANY = (429, "too_many_streams")
LET_IN = (200, "")


def endless() -> Counting:
    return Counting(1000)


# How many


@pytest.mark.parametrize("most", [1, 3])
async def test_a_process_has_so_many_places_and_gets_them_back(most: int) -> None:
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


async def test_a_hundred_at_once_are_let_in_to_the_unit() -> None:
    app = limited(endless(), max_streams_per_client=7, limit_action="reject")
    async with AsyncExitStack() as stack:
        all_of_them = [
            await stack.enter_async_context(asked(app, ANY if number % 2 else PLAIN))
            for number in range(100)
        ]
        answers = [await answer(one) for one in all_of_them]
    assert answers.count(LET_IN) == 7
    assert answers.count(MANY) == 93


async def test_without_a_limit_nothing_is_asked() -> None:
    app = SSEMiddleware(endless(), trusted_proxies=("10.0.0.1",), limit_action="reject")
    assert app._admission is None


@pytest.mark.parametrize("how", ["ends", "fails", "leaves"])
async def test_a_place_is_given_back_however_a_stream_ends(how: str) -> None:
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


# Whose


async def test_who_tells_its_identity_is_not_known_by_its_address() -> None:
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


async def test_whoever_identify_names_is_that_and_where_it_fails_the_address_tells() -> None:
    def identify(scope: Scope) -> str | None:
        name = dict(scope["headers"])[b"x-user"].decode()
        return None if name == "nobody" else name

    app = limited(endless(), max_streams_per_client=1, identify=identify)
    async with asked(app, PLAIN, (b"x-user", b"one")), asked(app, PLAIN, (b"x-user", b"nobody")):
        await asyncio.sleep(0.01)
        for headers, expected in (
            ([(b"x-user", b"one")], MANY),
            ([(b"x-user", b"two")], LET_IN),
            ([(b"x-user", b"nobody")], MANY),
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
            told = (b"x-forwarded-for", b"8.8.8.8, 192.0.2.1")
            async with asked(app, PLAIN, told, address="10.0.0.1") as third:
                assert await answer(third) == MANY
            other = (b"x-forwarded-for", b"192.0.2.1, 192.0.2.2")
            async with asked(app, PLAIN, other, address="10.0.0.1") as fourth:
                assert await answer(fourth) == LET_IN


async def test_who_has_no_address_is_not_limited_and_the_operator_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = limited(endless(), max_streams_per_client=1)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            there = asked(app, PLAIN, client=None)
            assert await answer(await stack.enter_async_context(there)) == LET_IN
    assert caplog.text.count("SSE_TRUSTED_PROXIES=unix") == 1


# What does not count


async def test_what_is_no_stream_neither_counts_nor_waits() -> None:
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
    for _ in range(3):  # it seemed to want a stream, got none, and gave the place back
        assert (await handle(app, headers=PLAIN, path="/page")).status == 200
    async with asked(app, both, path="/s") as stream:
        assert await answer(stream) == LET_IN


@pytest.mark.parametrize(
    "options",
    [
        {"only_marked": True},
        {"exclude": ("/*",)},
        {"marks": {"/*": streaming(enabled=False)}},
        {"rollout_percent": 0},
        {"enabled": False},
    ],
)
async def test_streams_that_are_left_alone_are_not_limited(options: Any) -> None:
    app = limited(endless(), max_streams=1, limit_action="reject", **options)
    async with asked(app, PLAIN) as one, tab(app) as other:
        assert await answer(one) == await answer(other) == LET_IN


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


# In place of the response start


async def test_an_app_that_is_refused_at_its_start_hears_that_its_client_is_gone() -> None:
    ends: list[str] = []

    async def later() -> None:
        ends.append("background")

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        events = endless()._events()
        background = BackgroundTask(later)
        response = StreamingResponse(events, media_type="text/event-stream", background=background)
        try:
            await response(scope, receive, send)
        finally:
            ends.append("finally")

    app = limited(streams, max_streams=1)
    async with asked(app, ANY) as first:
        await first.until("message")
        async with asked(app, ANY, address="192.0.2.2") as second:
            assert await answer(second) == FULL
            assert second.task is not None
            await second.task
        assert len(second.messages) == 2
        assert ends == ["background", "finally"]


@pytest.mark.parametrize("app_class", [Deaf, Listening])
async def test_an_app_that_goes_on_behind_a_refusal_is_cancelled(app_class: Any) -> None:
    kept = asyncio.Event()

    async def first_one(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await kept.wait()

    deaf = app_class()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await (first_one if scope["path"] == "/first" else deaf)(scope, receive, send)

    app = limited(inner, max_streams=1)
    async with asked(app, ANY, path="/first") as first:
        await answer(first)
        async with asked(app, ANY, address="192.0.2.2") as second:
            assert await answer(second) == FULL
            assert second.task is not None
            await second.task
        assert not second.messages[-1][1].get("more_body", False)
        assert len(second.messages) == 2
        ((_, how),) = deaf.ends
        assert how == ("CancelledError" if app_class is Deaf else "left")


async def test_an_exception_behind_a_refusal_is_the_apps_own() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        if scope["path"] == "/first":
            await asyncio.sleep(1000)
        raise ValueError("swordfish")

    app = limited(inner, max_streams=1)
    async with asked(app, ANY, path="/first") as first:
        await answer(first)
        async with asked(app, ANY, address="192.0.2.2") as second:
            assert await answer(second) == FULL
            assert second.task is not None
            with pytest.raises(ValueError, match="swordfish"):
                await second.task
        assert b"swordfish" not in second.body


# An older one ends


async def test_the_oldest_of_an_eventsource_ends_for_its_next_and_comes_back_no_more() -> None:
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
        """Live as a browser's tab does: come back until a 204."""
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


async def test_a_stream_with_the_apps_own_ids_comes_back_no_more_either() -> None:
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


async def test_an_eventsource_ends_no_stream_whose_client_would_not_be_told() -> None:
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


async def test_in_a_full_process_who_has_most_gives_way_and_nobody_loses_his_only_one() -> None:
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


async def test_nobody_ends_for_a_client_that_is_not_let_in() -> None:
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
        assert len(app._admission.places) == 4
        newcomer = await stack.enter_async_context(tab(app, address="192.0.2.3"))
        await newcomer.until("message")
        await asyncio.sleep(1)
        assert sum(one.ended for one in (*others, *back)) == 1
        assert len(app._admission.places) == 4


async def test_who_is_put_off_is_let_in_later_with_what_it_held() -> None:
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


async def test_what_turns_out_to_be_no_stream_ends_none() -> None:
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
async def test_a_page_that_is_loaded_anew_twice_is_let_in_each_time(action: Any) -> None:
    counting = endless()
    app = limited(counting, max_streams_per_client=1, max_streams=1, **action)
    async with AsyncExitStack() as stack:
        page = None
        for _ in range(3):
            if page is not None:
                page.disconnect()  # and nobody has heard it yet
            page = await stack.enter_async_context(tab(app))
            assert await answer(page) == LET_IN
            await page.until("message")
        assert len(counting.scopes) == 3
        await asyncio.sleep(LINGER + 2)
        assert counting.ends == ["cancelled", "cancelled"]


async def test_a_deaf_app_is_found_out_to_have_lost_its_client() -> None:
    app = limited(Deaf(), max_streams_per_client=1, limit_action="reject", heartbeat_interval=None)
    async with tab(app) as one:
        await one.until("message")
        one.disconnect()
        async with tab(app) as two:
            assert await answer(two) == LET_IN


@pytest.mark.parametrize("most", [1, 2])
async def test_a_stream_that_waits_for_its_reader_holds_no_place_and_goes_for_the_next(
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


async def test_who_comes_back_needs_no_place() -> None:
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
            async with tab(app) as late:  # the one that goes on counts again
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


async def test_a_client_that_has_blocked_a_write_for_a_second_is_let_in_anew() -> None:
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


async def test_a_stream_by_name_needs_no_place() -> None:
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


# At any moment


async def test_who_leaves_while_it_is_asked_for_takes_no_place() -> None:
    app = limited(endless(), max_streams_per_client=1, limit_action="reject")
    async with tab(app) as one:
        await one.until("message")
        for headers in (EVENTSOURCE, ANY):
            async with asked(app, headers) as two:
                await asyncio.sleep(0.05)  # it is in doubt now
                assert two.messages == []
                assert two.task is not None
                two.task.cancel()
    assert app._admission is not None
    assert len(app._admission.places) == 0
    async with tab(app) as three:
        assert await answer(three) == LET_IN


async def test_a_handler_that_has_not_answered_yet_holds_its_place() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(10)
        await endless()(scope, receive, send)

    app = limited(slow, max_streams=1)
    async with asked(app, PLAIN) as one:
        await asyncio.sleep(1)
        async with asked(app, PLAIN, address="192.0.2.2") as two:
            assert await answer(two) == FULL
        assert await answer(one) == LET_IN


# What is told


async def test_refusals_are_counted_by_route_and_reason_and_no_log_line_has_an_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    app = limited(
        Starlette(routes=[Route("/chats/{id}", endless())]),
        max_streams=2,
        max_streams_per_client=1,
        registry=registry,
    )
    async with asked(app, PLAIN, path="/chats/1") as one:
        await answer(one)
        async with asked(app, PLAIN, path="/chats/2"):
            await asyncio.sleep(1)
        async with tab(app, path="/chats/3", address="192.0.2.2") as two:
            await answer(two)
            async with asked(app, PLAIN, path="/chats/4", address="192.0.2.3"):
                await asyncio.sleep(1)
            async with tab(app, path="/chats/4", address="192.0.2.3"):
                await asyncio.sleep(1)
    route = "/chats/{id}"
    assert value(registry, "sse_rejected_total", route=route, reason="client") == 1
    assert value(registry, "sse_rejected_total", route=route, reason="process") == 2
    assert caplog.text.count(f"stream of route {route} rejected: process") == 2
    assert "192.0.2" not in caplog.text


async def test_a_page_can_read_a_refusal_where_cors_is_outside() -> None:
    inner = Starlette(routes=[Route("/", endless())])
    inner.add_middleware(SSEMiddleware, max_streams=1, stream_max_seconds=None)
    inner.add_middleware(CORSMiddleware, allow_origins=["https://app.example"])
    origin = (b"origin", b"https://app.example")
    async with asked(inner, PLAIN, origin) as one:
        await answer(one)
        async with asked(inner, PLAIN, origin, address="192.0.2.2") as two:
            assert await answer(two) == FULL
        async with tab(inner, origin, address="192.0.2.2") as three:
            await three.until_end()
        for refused in (two, three):
            assert refused.headers[b"access-control-allow-origin"] == b"https://app.example"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"accept", b"")],
        [(b"accept", b"," * 10_000)],
        [(b"accept", b"\xff\xfe;q=\0")],
        [(b"accept", b"text/event-stream"), (b"accept", b"\xff")],
        [(b"accept", b"text/event-stream"), (b"x-forwarded-for", b"\xff" * 50_000)],
        [(b"accept", b"text/event-stream"), (b"authorization", b"\0" * 50_000)],
        [(b"accept", b"text/event-stream"), (b"cookie", b"session=;=;;\xff")],
        [(b"accept", b"text/event-stream"), (b"last-event-id", b"\xff")],
    ],
)
@pytest.mark.parametrize("client", [None, (), ("", 0), ("\udc80", 1), ("[::1", 1), (None, None)])
async def test_hostile_requests_are_let_in_or_refused_like_any_other(
    headers: list[tuple[bytes, bytes]], client: Any
) -> None:
    app = limited(
        endless(),
        max_streams=1,
        max_streams_per_client=1,
        identity_cookies=("session",),
        trusted_proxies=("unix", "0.0.0.0/0", "::/0"),
    )
    async with asked(app, headers, client=client) as one:
        assert await answer(one) == LET_IN
        async with asked(app, headers, client=client) as two:
            assert (await answer(two))[0] in (429, 503)
    assert app._admission is not None
    assert len(app._admission.places) == 0
    assert json.loads(two.body)["error"]["code"] in ("server_full", "too_many_streams")
