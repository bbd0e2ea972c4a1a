"""A gateway and the service to which it passes requests on, each with the middleware."""

import asyncio
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import current_stream, streaming
from sse_middleware.http.inner_service import InnerServices
from sse_middleware.stream.shutdown import SHUTDOWN
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running
from tests.support.resuming import (
    UNKNOWN,
    Counting,
    id_of,
    left,
    memory,
    read,
    resumable,
    returning,
    stop,
)

pytestmark = pytest.mark.anyio

STOP = "/s?sse_cancel"


class Passing:
    """The app of a gateway, which passes each request on to a service as it is."""

    def __init__(self, service: ASGIApp) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = {name: value for name, value in scope.items() if not name.startswith("sse_")}
        await self._service(kept, receive, send)


def both(app: ASGIApp, service: dict[str, Any] | None = None, **gateway: Any) -> ASGIApp:
    """Return a gateway that passes requests on to a service; both mark all streams."""
    registry = CollectorRegistry()
    inner = resumable(app, registry=registry, **(service or {}))
    return resumable(Passing(inner), store=memory(), registry=CollectorRegistry(), **gateway)


async def test_a_stream_has_one_start_one_end_and_the_ids_and_heartbeats_of_the_service() -> None:
    service = {"heartbeat_interval": 2.0, "stream_max_seconds": 30.0}
    app = both(Counting(5, pause=1.5), service, heartbeat_interval=0.5, stream_max_seconds=4.0)
    exchange = await read(app, path="/s")
    assert exchange.names.count("start") == exchange.names.count("complete") == 1
    assert exchange.names.count("message") == 5
    assert 2 <= exchange.names.count("heartbeat") <= 4
    for name, value in (
        (b"x-heartbeat-interval", b"2"),
        (b"x-stream-max-seconds", b"30"),
    ):
        assert [found for header, found in exchange.start["headers"] if header == name] == [value]
    names = [name for name, _ in exchange.start["headers"]]
    assert len(names) == len(set(names))
    stream_id = exchange.headers[b"x-stream-id"].decode()
    assert f'"stream_id":"{stream_id}"' in exchange.events[0].data
    assert exchange.messages[-1][1].get("more_body", False) is False


async def test_an_app_that_announces_its_own_heartbeats_is_no_service() -> None:
    headers = {"X-Stream-ID": "chat-42", "X-Heartbeat-Interval": "5", "X-Silence-Threshold": "15"}
    exchange = await read(resumable(Counting(3, headers=headers)), path="/s")
    assert (exchange.names[0], exchange.names[-1]) == ("start", "complete")
    assert exchange.headers[b"x-stream-id"] == b"chat-42"


async def test_the_service_is_named_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    app = both(Counting(2))
    with caplog.at_level(logging.INFO, "sse_middleware"):
        for _ in range(2):
            await read(app, path="/s")
    assert caplog.text.count("has a mark in the service from which the app receives it") == 1


async def test_a_stream_that_is_cut_is_resumed_from_the_service_without_a_reset() -> None:
    counting = Counting(6)
    app = both(counting)
    async with left(app, 2, path="/s") as first:
        async with returning(app, id_of(first, 2), path="/s") as second:
            await second.until("complete")
        assert [name for name in second.names if name != "heartbeat"] == [
            "start",
            *["message"] * 4,
            "complete",
        ]
        assert [event.data for event in second.events if event.event == "message"] == list("3456")
        assert second.headers[b"x-stream-id"] == first.headers[b"x-stream-id"]
    assert len(counting.scopes) == 1


async def test_a_client_that_has_only_the_start_does_not_run_the_app_again() -> None:
    counting = Counting(3)
    app = both(counting)
    async with left(app, 1, path="/s") as first:
        start = first.events[0].id
        assert start is not None
        async with returning(app, start, path="/s") as second:
            await second.until("complete")
    assert [event.data for event in second.events if event.event == "message"] == list("123")
    assert len(counting.scopes) == 1


async def test_the_gateway_passes_a_stop_on_to_the_service() -> None:
    counting = Counting(1000)
    app = both(counting)
    async with left(app, 2, path="/s") as first:
        stopped = await stop(app, id_of(first, 1), path="/s")
        assert stopped.status == 204
        assert first.task is not None
        await first.task
    assert counting.ends == ["cancelled"]
    assert len(counting.scopes) == 1


@pytest.mark.parametrize("gateway", [{}, {"mark": []}], ids=["marked", "unmarked"])
async def test_a_stop_of_an_unknown_stream_runs_no_app(gateway: dict[str, Any]) -> None:
    counting = Counting(3)
    app = both(counting, **gateway)
    await read(app, path="/s")
    for path in ("/s", "/other"):
        stopped = await stop(app, UNKNOWN, path=path)
        assert stopped.status == 204
    assert len(counting.scopes) == 1


async def test_rerun_never_on_both_resumes_and_gives_up_only_if_the_service_does() -> None:
    counting = Counting(4)
    mark = {"mark": [], "marks": {"*": streaming(rerun="never")}}
    app = both(counting, mark, **mark)
    async with (
        left(app, 1, path="/s") as first,
        returning(app, id_of(first, 1), path="/s") as second,
    ):
        await second.until("complete")
    assert [event.data for event in second.events if event.event == "message"] == list("234")
    async with returning(app, "B" * 22 + "-3", path="/s") as unknown:
        await unknown.until("reset")
    assert len(counting.scopes) == 1


async def test_other_clients_get_the_bytes_of_the_app_and_comments_once() -> None:
    app = both(Counting(3, pause=6.0), heartbeat_interval=5.0)
    exchange = await handle(app, path="/s")
    assert exchange.body.replace(b": heartbeat\n\n", b"") == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert exchange.body.count(b": heartbeat") == 3  # in three silences of six seconds


async def test_a_drain_of_the_gateway_ends_the_stream_although_no_setting_says_so() -> None:
    app = both(Counting(8))
    exchange = Exchange(http_scope(headers=EVENTSOURCE, path="/s"))
    async with running(app, exchange):
        await exchange.until("message")
        assert len(SHUTDOWN.drain_for(asyncio.get_running_loop())) == 2  # and that of the service
        exchange.disconnect()


@pytest.mark.parametrize(
    "mark",
    [
        streaming(on_end=lambda *_: None),
        streaming(stream_name=lambda _: "name"),
        streaming(transform=lambda event: event),
        streaming(attach="running"),
    ],
)
async def test_a_mark_that_does_more_than_the_service_is_obeyed(mark: Any) -> None:
    app = both(Counting(2), mark=[], marks={"*": mark}, identify=lambda _: "ann")
    exchange = await read(app, path="/s")
    assert exchange.names.count("message") == 2
    assert exchange.names[0] == "start"


async def test_a_name_that_the_handler_sets_is_obeyed() -> None:
    inner = resumable(Counting(2), registry=CollectorRegistry())

    async def naming(scope: Scope, receive: Receive, send: Send) -> None:
        current_stream().name("chat")
        await Passing(inner)(scope, receive, send)

    app = resumable(naming, identify=lambda _: "ann")
    exchange = await read(app, path="/s")
    assert exchange.names.count("start") == 2  # of both


async def test_the_hint_about_marks_is_not_about_streams_of_a_service(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stream.unmarked._hinted_routes", lambda: hinted)
    hinted: list[str] = []
    with caplog.at_level(logging.INFO, "sse_middleware"):
        await read(both(Counting(1)), path="/s")
        await read(both(Counting(1), mark=[]), path="/s")
    assert hinted == []
    assert "not marked" not in caplog.text


def test_the_paths_that_are_known_are_bounded() -> None:
    paths = InnerServices()
    for number in range(1500):
        paths.add(f"/{number}")
        paths.add("/first")
    assert paths.serve("/first")
    assert paths.serve("/1499")
    assert not paths.serve("/1")
