"""What `subscribe` gives is taken as it is, by the responses of the frameworks and by us."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from sse_middleware import EventParser
from sse_middleware.channels import publish_event, subscribe
from sse_middleware.errors import EventFormatError
from sse_middleware.testing import EVENTSOURCE_HEADERS
from tests.support.asgi import Exchange, handle, http_scope, running
from tests.support.channel_contract import new_channel
from tests.support.middleware import marking
from tests.support.resuming import memory, resumable, resume

pytestmark = pytest.mark.anyio


def by_starlette(channel: str) -> ASGIApp:
    async def endpoint(_: Request) -> Response:
        return StreamingResponse(subscribe(channel), media_type="text/event-stream")

    app = Starlette()
    app.add_route("/", endpoint)
    return app


def by_sse_starlette(channel: str) -> ASGIApp:
    response = pytest.importorskip("sse_starlette").EventSourceResponse

    async def endpoint(_: Request) -> Any:
        return response(subscribe(channel))

    app = Starlette()
    app.add_route("/", endpoint)
    return app


def by_fastapi(channel: str) -> ASGIApp:
    fastapi, sse = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.sse")
    app = fastapi.FastAPI()

    async def endpoint() -> Any:
        return sse.EventSourceResponse(subscribe(channel))

    app.get("/", response_model=None)(endpoint)
    return app  # type: ignore[no-any-return]


def by_a_generator_of_fastapi(channel: str) -> ASGIApp:
    fastapi, sse = pytest.importorskip("fastapi"), pytest.importorskip("fastapi.sse")
    app = fastapi.FastAPI()

    async def endpoint() -> AsyncIterator[Any]:
        async for event in subscribe(channel):
            yield sse.ServerSentEvent(event=event.event, raw_data=event.data)

    app.get("/", response_class=sse.EventSourceResponse)(endpoint)
    return app  # type: ignore[no-any-return]


FRAMEWORKS = [by_starlette, by_sse_starlette, by_fastapi, by_a_generator_of_fastapi]


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_response_passes_events_on_as_they_are(
    framework: Callable[[str], ASGIApp],
) -> None:
    channel = new_channel()
    await publish_event(channel, "worker_ack", {})
    await publish_event(channel, "step", {"text": 'a "b"\nc: é \u2028'})
    await publish_event(channel, "complete", None)
    exchange = await handle(framework(channel))
    assert [(event.event, event.data) for event in exchange.events] == [
        ("worker_ack", "{}"),
        ("step", '{"text":"a \\"b\\"\\nc: é \u2028"}'),
        ("complete", "null"),
    ]


@pytest.mark.parametrize("framework", FRAMEWORKS[:3])
async def test_the_bytes_are_those_of_the_event(framework: Callable[[str], ASGIApp]) -> None:
    channel = new_channel()
    await publish_event(channel, "complete", {"é": 1})
    exchange = await handle(framework(channel))
    assert exchange.body == 'event: complete\ndata: {"é":1}\n\n'.encode()


@pytest.mark.parametrize("framework", FRAMEWORKS[:3])
async def test_a_reader_that_was_cut_is_resumed_by_the_middleware(
    framework: Callable[[str], ASGIApp],
) -> None:
    channel = new_channel()
    app = resumable(framework(channel))
    await publish_event(channel, "worker_ack", {})
    exchange = Exchange(http_scope(headers=EVENTSOURCE_HEADERS))
    async with running(app, exchange):
        await publish_event(channel, "step", 1)
        await exchange.until("step")
        exchange.disconnect()
        await asyncio.sleep(0.01)
        await publish_event(channel, "step", 2)
        await asyncio.sleep(0.1)
        await publish_event(channel, "complete", {})
        rest = await resume(app, exchange.last_event_id)
    assert [(event.event, event.data) for event in rest.events] == [
        ("start", rest.events[0].data),
        ("step", "2"),
        ("complete", "{}"),
    ]


async def test_a_reader_continues_by_channel_ids_in_any_process() -> None:
    channel = new_channel()

    async def endpoint(request: Request) -> Response:
        history = request.headers.get("last-event-id")
        events = subscribe(channel, history=history, ids=True)
        return StreamingResponse(events, media_type="text/event-stream")

    def process() -> ASGIApp:
        app = Starlette()
        app.add_route("/", endpoint)
        return marking(app, store=memory())

    for number in range(3):
        await publish_event(channel, "step", number)
    one = Exchange(http_scope(headers=EVENTSOURCE_HEADERS))
    async with running(process(), one):
        await one.until_count(2, "step")
    cut = next(event.id for event in one.events if event.data == "0")
    await publish_event(channel, "complete", {})
    rest = await resume(process(), cut or "")
    assert [(event.event, event.data) for event in rest.events if event.event != "start"] == [
        ("step", "1"),
        ("step", "2"),
        ("complete", "{}"),
    ]


async def test_a_bad_name_can_be_refused_before_the_stream_begins() -> None:
    async def endpoint(request: Request) -> Response:
        return StreamingResponse(subscribe(request.query_params["session"]))

    async def refuse(_: Request, exc: Exception) -> Response:
        return Response(str(exc), 400)

    app = Starlette(exception_handlers={EventFormatError: refuse})
    app.add_route("/", endpoint)
    exchange = await handle(marking(app), query_string=b"session=%20")
    assert exchange.status == 400
    assert b"1 to 200" in exchange.body


async def test_a_client_that_leaves_is_followed_no_more() -> None:
    channel = new_channel()
    exchange = Exchange(http_scope())
    await publish_event(channel, "worker_ack", {})
    async with running(by_starlette(channel), exchange):
        await exchange.until("worker_ack")
        exchange.disconnect()
        async with asyncio.timeout(5):
            assert exchange.task is not None
            await asyncio.wait((exchange.task,))
    from sse_middleware.channels.settings import MEMORY  # noqa: PLC0415

    assert channel not in MEMORY()._feeds


async def test_a_page_can_parse_an_envelope_itself() -> None:
    channel = new_channel()
    await publish_event(channel, "error", {"error": "no"})
    (event,) = [event async for event in subscribe(channel, envelope=True)]
    (parsed,) = EventParser().feed(event)
    assert parsed.event == "message"
    assert parsed.data == '{"event_type":"error","payload":{"error":"no"}}'
