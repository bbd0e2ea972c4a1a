"""The events of an app are transformed, and their order is checked, before they are recorded."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import ConfigurationError, Event, SSEMiddleware, streaming
from tests.support.asgi import EVENTSOURCE, Exchange, body, handle, stream_of, stream_start
from tests.support.log_records import stream_fields
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def upper(event: Event) -> Event:
    return dataclasses.replace(event, data=event.data.upper())


async def ask(app: ASGIApp, headers: Any = None, **options: Any) -> Exchange:
    middleware = SSEMiddleware(app, marks={"/": streaming(name="chat", **options)})
    return await handle(middleware, headers=headers)


async def sent(*chunks: bytes, **options: Any) -> bytes:
    return (await ask(stream_of(*chunks), **options)).body


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_each_event_is_transformed_in_any_chunking(size: int) -> None:
    stream = b"\xef\xbb\xbf: c\n\ndata: one\n\nid: 5\nevent: a\ndata: \xc3\xa9\r\ndata: y\r\n\r\n"
    stream += b"retry: 7\n\ndata: [DONE]\r\r"
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert await sent(*chunks, transform=upper) == (
        b"\xef\xbb\xbf: c\n\ndata: ONE\n\nevent: a\ndata: \xc3\x89\ndata: Y\nid: 5\n\n"
        b"retry: 7\n\ndata: [DONE]\r\r"
    )


async def test_one_event_becomes_none_or_many_or_stays_as_it_is() -> None:
    def transform(event: Event) -> Event | list[Event] | Iterator[Event] | None:
        match event.data:
            case "none":
                return None
            case "many":
                return [event, Event("more", event="b")]
            case "iterator":
                return iter((Event("1"), Event("2")))
            case "nothing":
                return []
        return event

    chunks = [b"data:%b\n: own bytes\n\n" % name for name in (b"none", b"many", b"x", b"nothing")]
    assert await sent(*chunks, b"data: iterator\n\n", transform=transform) == (
        b"data:many\n: own bytes\n\nevent: b\ndata: more\n\ndata:x\n: own bytes\n\n"
        b"data: 1\n\ndata: 2\n\n"
    )


async def test_an_async_transform_keeps_the_order_of_the_tasks_of_an_app() -> None:
    async def slower_first(event: Event) -> Event:
        await asyncio.sleep(1 / int(event.data))
        return event

    async def write(send: Send, data: bytes) -> None:
        await send(body(data))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        async with asyncio.TaskGroup() as group:
            for number in range(1, 6):
                group.create_task(write(send, b"data: %d\n\n" % number))
        await send(body(b"", more=False))

    exchange = await ask(app, transform=slower_first)
    assert [event.data for event in exchange.events] == list("12345")


async def test_a_class_is_instantiated_for_each_stream() -> None:
    class Numbered:
        def __init__(self) -> None:
            self.number = 0

        def __call__(self, event: Event) -> Event:
            self.number += 1
            return dataclasses.replace(event, data=f"{self.number} {event.data}")

    for _ in range(2):
        body = await sent(b"data: x\n\n", b"data: y\n\n", transform=Numbered)
        assert body == b"data: 1 x\n\ndata: 2 y\n\n"


def fail(event: Event) -> Any:
    if event.data == "bad":
        raise ValueError("secret")
    return event


async def fail_later(event: Event) -> Any:
    await asyncio.sleep(0)
    return fail(event)


@pytest.mark.parametrize(
    "transform",
    [
        fail,
        fail_later,
        lambda event: 5 if event.data == "bad" else event,
        lambda event: "data: forged" if event.data == "bad" else event,
        lambda event: b"bytes" if event.data == "bad" else event,
        lambda event: [event, None] if event.data == "bad" else event,
        lambda event: Event("x", event="a\ndata: y") if event.data == "bad" else event,
    ],
)
async def test_an_event_whose_transform_fails_is_dropped_logged_and_counted(
    transform: Callable[[Event], Any], caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    app = stream_of(b"data: 1\n\ndata: bad\n\n", b"data: bad\n\n", b"data: 2\n\n")
    middleware = SSEMiddleware(
        app, marks={"/": streaming(name="chat", transform=transform)}, registry=registry
    )
    caplog.set_level(logging.INFO, "sse_middleware")
    assert (await handle(middleware)).body == b"data: 1\n\ndata: 2\n\n"
    assert registry.get_sample_value("sse_transform_errors_total", {"route": "chat"}) == 2
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "an event of route chat cannot be transformed, and is dropped" in error.getMessage()
    (fields,) = stream_fields(caplog)
    assert fields["transform_errors"] == 2


async def test_what_cannot_be_parsed_is_dropped_if_there_is_a_transform() -> None:
    chunks = (b"data: 1\n\ndata: ", b"x" * 2000, b"\n\n", b"data: 2\n\n", b"data: incomplete")
    assert await sent(*chunks, transform=upper, max_event_bytes=1024) == b"data: 1\n\ndata: 2\n\n"
    assert await sent(*chunks, order=("a", "b"), max_event_bytes=1024) == b"".join(chunks)


async def test_a_body_that_is_no_event_stream_is_passed_on() -> None:
    assert await sent(b"\n", b'{"da', b'ta":\n\n1}', transform=upper) == b'\n{"data":\n\n1}'


async def test_the_log_and_the_numbers_are_those_of_the_transformed_events() -> None:
    ended: list[Any] = []

    def double(event: Event) -> list[Event]:
        return [event, event]

    exchange = await ask(
        stream_of(b"data: 1\n\n", b"data: 2\n\n"),
        EVENTSOURCE,
        transform=double,
        on_end=lambda info, events: ended.append((info.chunks, [event.data for event in events])),
    )
    app_events = [event for event in exchange.events if event.event == "message"]
    assert [event.data for event in app_events] == ["1", "1", "2", "2"]
    assert len({event.id for event in app_events}) == 4
    complete = json.loads(exchange.events[-1].data)
    assert complete["total_chunks"] == 4
    await until(lambda: bool(ended), "on_end was not called")
    assert ended == [(4, ["1", "1", "2", "2"])]


async def test_an_app_whose_events_are_all_dropped_reaches_its_cap() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        while True:
            await send(body(b"data: x\n\n"))
            await asyncio.sleep(0.01)

    exchange = await ask(app, EVENTSOURCE, transform=lambda _: None, stream_max_seconds=1)
    assert exchange.names == ["start", "complete"]


async def test_a_cancelled_transform_ends_the_app() -> None:
    async def hang(_: Event) -> None:
        await asyncio.sleep(3600)

    exchange = await ask(
        stream_of(b"data: 1\n\n"), EVENTSOURCE, transform=hang, stream_max_seconds=9
    )
    assert json.loads(exchange.events[-1].data)["reason"] == "duration_cap"


async def test_a_violation_of_the_order_is_logged_once_with_its_trace_id_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    chunks = [b"event: %b\ndata: 1\n\n" % name for name in (b"done", b"token", b"token")]
    mark = streaming(name="chat", order=("token", "done"))
    caplog.set_level(logging.DEBUG, "sse_middleware")
    app = SSEMiddleware(stream_of(*chunks), marks={"/": mark}, registry=registry)
    exchange = await handle(app)
    assert exchange.body == b"".join(chunks)
    assert registry.get_sample_value("sse_order_violations_total", {"route": "chat"}) == 2
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    trace_id = exchange.headers[b"x-trace-id"].decode()
    assert warning.getMessage().startswith("an event 'token' of route chat follows an event 'done'")
    assert trace_id in warning.getMessage()
    names = [
        message for message in caplog.messages if message.startswith("event 'token' of stream")
    ]
    assert len(names) == 2


async def test_the_order_is_that_of_the_transformed_events(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def rename(event: Event) -> Event | None:
        return None if event.data == "drop" else dataclasses.replace(event, event="token")

    chunks = (b"event: done\ndata: drop\n\n", b"event: done\ndata: 1\n\n")
    await sent(*chunks, transform=rename, order=("token", "done"))
    assert not caplog.records


async def test_a_file_cannot_be_transformed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send({"type": "http.response.pathsend", "path": __file__})

    with pytest.raises(RuntimeError, match="need events that the app sends itself"):
        await ask(app, transform=upper)


def test_a_transform_that_cannot_be_called_is_not_allowed() -> None:
    with pytest.raises(ConfigurationError, match="transform is 5"):
        streaming(transform=5)  # type: ignore[call-overload]
