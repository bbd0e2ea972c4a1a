"""The ends of streams, and the response to a client that reconnects after them or to no stream."""

import asyncio
import json
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import resume_endpoint, streaming
from sse_middleware.protocol.stream_end import StreamEnd
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_of,
    stream_start,
)
from tests.support.middleware import marking
from tests.support.resuming import (
    REFUSING,
    TTL,
    UNKNOWN,
    Counting,
    Headers,
    back,
    counted,
    id_of,
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


# The ids of an end


async def test_the_last_id_of_a_finished_stream_shows_whether_there_is_more() -> None:
    whole = await read(resumable(Counting(3)))
    assert whole.events[-1].id == f"{id_of(whole, 3)}.end"
    assert whole.last_event_id == whole.events[-1].id


async def test_a_resume_within_an_ended_stream_gets_the_rest_and_the_same_end() -> None:
    app = resumable(Counting(3))
    whole = await read(app)
    for seq in range(4):
        again = await resume(app, id_of(whole, seq))
        assert texts(again) == counted(seq + 1, 3)
        assert again.events[-1] == whole.events[-1]
        assert again.ended


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_eventsource_is_stopped_after_the_end_even_without_a_log(
    method: str,
) -> None:
    counting = Counting(3)
    app = resumable(counting)
    whole = await read(app)
    for event_id in (whole.last_event_id, UNKNOWN + ".end"):
        again = await handle(app, headers=back(event_id), method=method)
        assert (again.status, again.body, again.ended) == (204, b"", True)
    assert len(counting.scopes) == 1


async def test_the_app_runs_again_with_a_reset_after_an_early_end() -> None:
    app = resumable(Counting(9), stream_max_seconds=2.5)
    whole = await read(app)
    assert whole.last_event_id == f"{id_of(whole, 3)}.cut"
    again = await resume(app, whole.last_event_id)
    assert again.names[0] == "reset"
    reset = json.loads(again.events[0].data)
    assert (reset["reason"], reset["resumed"]) == ("gone", False)
    assert texts(again) == counted(1, 3)


async def test_a_client_that_missed_the_cap_gets_its_end_from_the_log() -> None:
    app = resumable(Counting(9), stream_max_seconds=2.5)
    whole = await read(app)
    again = await resume(app, id_of(whole, 2))
    assert texts(again) == ["3"]
    assert again.events[-1] == whole.events[-1]
    assert json.loads(again.events[-1].data)["reason"] == "duration_cap"


# An end event of the app


OWN_END = b"event: complete\ndata: mine\n\n"


async def test_after_the_apps_own_end_a_stream_is_over() -> None:
    app = resumable(stream_of(b"data: 1\n\n", OWN_END))
    whole = await read(app)
    assert whole.names == ["start", "message", "complete"]
    assert whole.last_event_id == id_of(whole, 2)
    within = await resume(app, id_of(whole, 1))
    assert within.names == ["start", "complete"]
    assert within.events[-1].data == "mine"
    again = await resume(app, whole.last_event_id)
    assert (again.status, again.body) == (204, b"")


# Unknown streams


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_client_of_an_unknown_stream_gets_a_reset_and_a_new_response(method: str) -> None:
    counting = Counting(3)
    app = resumable(counting)
    again = await handle(app, headers=back(UNKNOWN), method=method)
    reset = again.events[0]
    assert reset.event == "reset"
    data = json.loads(reset.data)
    assert data == {
        "reason": "gone",
        "stream_id": again.headers[b"x-stream-id"].decode(),
        "trace_id": again.headers[b"x-trace-id"].decode(),
        "max_duration": 60,
        "heartbeat_interval": 5,
        "silence_threshold": 15,
        "resumed": False,
    }
    assert again.retry == 2000
    assert str(reset.id).endswith("-0")
    assert not str(reset.id).startswith(UNKNOWN[:22])
    assert again.names == ["reset", "message", "message", "message", "complete"]
    assert [str(event.id) for event in again.events[1:4]] == [
        id_of(again, number) for number in (1, 2, 3)
    ]
    assert texts(await resume(app, id_of(again, 1))) == ["2", "3"]


async def test_a_client_that_had_no_event_yet_has_nothing_to_throw_away() -> None:
    again = await resume(resumable(Counting(1)), UNKNOWN.replace("-3", "-0"))
    assert again.names == ["start", "message", "complete"]
    assert json.loads(again.events[0].data)["resumed"] is False
    assert again.events[0].id == id_of(again, 0)
    assert not again.last_event_id.startswith(UNKNOWN[:22])


async def test_a_stream_that_has_ended_is_kept_for_its_time_and_then_unknown() -> None:
    counting = Counting(3)
    app = resumable(counting)
    whole = await read(app)
    await asyncio.sleep(TTL - 1)
    assert texts(await resume(app, id_of(whole, 2))) == ["3"]
    await asyncio.sleep(2)
    assert (await resume(app, id_of(whole, 2))).names[0] == "reset"
    assert len(counting.scopes) == 2


async def test_an_event_that_has_never_been_is_none_of_the_stream() -> None:
    app = resumable(Counting(3))
    whole = await read(app)
    again = await resume(app, id_of(whole, 4))
    assert again.names[0] == "reset"
    assert texts(again) == counted(1, 3)


@pytest.mark.parametrize("event_id", [UNKNOWN, UNKNOWN + ".cut", UNKNOWN.replace("-3", "-0")])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [404, 405])
async def test_a_client_is_stopped_if_the_app_rejects_it(
    status: int, method: str, event_id: str
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": status, "headers": [(b"x-app", b"1")]}
        await send(start)
        await send(body(b"Not "))
        await send(body(b"here", more=False))

    again = await handle(resumable(app), headers=back(event_id), method=method)
    assert again.status == 200
    assert again.headers[b"content-type"].startswith(b"text/event-stream")
    assert b"x-app" not in again.headers
    (reset,) = again.events
    assert reset.event == "reset"
    assert json.loads(reset.data)["reason"] == "gone"
    assert str(reset.id).endswith("-0.end")
    assert json.loads(reset.data)["stream_id"] == again.headers[b"x-stream-id"].decode()
    assert again.ended
    assert (await handle(resumable(app), headers=back(str(reset.id)))).status == 204


@pytest.mark.parametrize("accept", [b"application/json", b"*/*", b"text/html, */*;q=0.8", None])
@pytest.mark.parametrize("event_id", [UNKNOWN, UNKNOWN + ".cut", UNKNOWN.replace("-3", "-0")])
@pytest.mark.parametrize("status", [404, 405])
async def test_a_client_that_reads_no_stream_gets_the_status_of_the_app(
    status: int, event_id: str, accept: bytes | None
) -> None:
    """A JSON API may have a `last_event_id` of its own; a stranger may add one to any address."""
    response = JSONResponse({"detail": "no"}, status, {"x-app": "1"})
    headers = [] if accept is None else [(b"accept", accept)]
    for method in ("GET", "POST"):
        query = f"last_event_id={event_id}".encode()
        got = await handle(resumable(response), headers=headers, query_string=query, method=method)
        assert (got.status, got.body) == (status, b'{"detail":"no"}')
        assert got.headers[b"x-app"] == b"1"


async def test_a_get_for_the_stream_of_a_post_is_stopped_after_the_stream_is_gone() -> None:
    async def answer(request: Request) -> Response:
        raise AssertionError

    routes = [Route("/answers", answer, methods=["POST"])]
    app = resumable(Starlette(routes=routes, exception_handlers=REFUSING))
    again = await resume(app, UNKNOWN, path="/answers")
    assert again.names == ["reset"]
    assert again.last_event_id.endswith("-0.end")


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_any_other_rejection_by_the_app_reaches_the_client(status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"detail": "no"}, status)(scope, receive, send)

    again = await resume(resumable(app), UNKNOWN)
    assert (again.status, again.body) == (status, b'{"detail":"no"}')


async def test_a_response_that_is_no_stream_passes_as_it_is() -> None:
    messages: list[Message] = [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]},
        {"type": "http.response.body", "body": b"ok"},
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    again = await resume(resumable(app), UNKNOWN)
    assert [id(message) for _, message in again.messages] == [id(each) for each in messages]


async def test_one_warning_is_logged_for_several_processes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = marking(Counting(1))
    for _ in range(2):
        await resume(app, UNKNOWN)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    (warning,) = warnings
    assert "SSE_REDIS_URL" in warning.getMessage()
    assert UNKNOWN[:22] not in caplog.text


async def test_no_warning_about_several_processes_is_logged_if_the_store_may_be_shared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await resume(resumable(Counting(1), store=memory()), UNKNOWN)
    assert "SSE_REDIS_URL" not in caplog.text


# A producer that fails


class BoomError(Exception):
    pass


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    await send(body(b"data: 1\n\n"))
    await asyncio.sleep(1)
    await send(body(b"data: 2\n\n"))
    raise BoomError("a secret")


async def test_a_client_that_missed_the_failure_of_the_app_is_notified() -> None:
    app = resumable(failing)
    async with opened(app) as first:
        await first.until("error")
        assert first.task is not None
        with pytest.raises(BoomError):
            await first.task
    again = await resume(app, id_of(first, 1))
    assert again.names == ["start", "message", "error"]
    assert again.events[-1] == first.events[-1]
    assert json.loads(again.events[-1].data)["error"]["code"] == "internal_error"
    assert b"secret" not in again.body
    assert again.last_event_id == f"{id_of(first, 2)}.cut"
    async with returning(app, again.last_event_id) as fresh:
        await fresh.until_end()
    assert fresh.names == ["reset", "message", "message", "error"]


async def test_a_reader_receives_the_failure_of_the_app_at_once() -> None:
    app = resumable(failing)
    async with opened(app) as first:
        await first.until("message")
        async with returning(app, id_of(first, 1)) as again:
            await again.until_end()
    assert again.names == ["start", "message", "error"]
    assert again.ended


async def test_a_producer_that_returns_without_an_end_is_lost() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(1)
        await send(body(b"data: 2\n\n"))

    kept = resumable(app)
    async with opened(kept) as first:
        await first.until("message")
        async with returning(kept, id_of(first, 1)) as reader:
            await reader.until_end()
    for again in (reader, await resume(kept, id_of(first, 1))):
        assert again.names == ["start", "message", "error"]
        error = again.events[-1]
        assert (error.id, error.retry) == (None, 2000)
        assert json.loads(error.data)["error"]["code"] == "producer_lost"
        assert json.loads(error.data)["stream_id"] == first.headers[b"x-stream-id"].decode()
        assert again.last_event_id == id_of(first, 2)
    assert (await resume(kept, id_of(first, 2))).names == ["start", "error"]


async def test_a_producer_that_the_server_cancels_ends_all_its_readers() -> None:
    registry = CollectorRegistry()
    app = resumable(Counting(9), registry=registry)
    async with opened(app) as first:
        await first.until_count(2, "message")
        async with returning(app, id_of(first, 1)) as reader:
            await reader.until("message")
            assert first.task is not None
            first.task.cancel()
            await reader.until_end()
    how = {"route": "unmatched", "family": "eventsource", "outcome": "aborted"}
    assert value(registry, "sse_streams_total", **how) == 1
    assert first.ended
    assert first.names == ["start", "message", "message", "complete"]
    assert json.loads(first.events[-1].data)["reason"] == "shutdown"
    assert first.last_event_id == f"{id_of(first, 2)}.cut"
    assert first.retry is not None
    assert 1000 <= first.retry <= 2000
    # Servers cancel the request of a client that has left, too: it may return.
    for again in (reader, await resume(app, id_of(first, 1))):
        assert again.names[-2:] == ["message", "error"]
        assert again.last_event_id == id_of(first, 2)


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    await send(stream_start())
    await send(body(b"data: 1\n\n"))
    await asyncio.sleep(100)


async def test_a_producer_that_is_cancelled_while_its_client_blocks_us_is_lost() -> None:
    registry = CollectorRegistry()
    app = resumable(silent, registry=registry)
    async with opened(app) as first:
        await first.until_count(1, "message")
        first.block()
        await asyncio.sleep(6)  # a heartbeat is pending
    how = {"route": "unmatched", "family": "eventsource", "outcome": "aborted"}
    assert value(registry, "sse_streams_total", **how) == 1
    lost = await resume(app, id_of(first, 0))
    assert lost.names == ["start", "message", "error"]
    assert json.loads(lost.events[-1].data)["error"]["code"] == "producer_lost"
    assert lost.last_event_id == id_of(first, 1)
    await asyncio.sleep(TTL + 1)
    async with returning(app, lost.last_event_id) as again:
        await again.until("message")
        assert again.names == ["reset", "message"]


# Streams that are not kept


@pytest.mark.parametrize("headers", [EVENTSOURCE, [(b"accept", b"*/*")]], ids=["named", "plain"])
async def test_an_end_that_another_version_has_written_ends_the_response_and_no_more(
    headers: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection closes slowly: its client blocks, and heartbeats would be due meanwhile."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    user = (b"authorization", b"Bearer ann")
    app = Starlette(
        routes=[
            Route("/", Counting(3)),
            Route("/live", resume_endpoint("live", finished="replay")),
        ]
    )
    marks = {"/": streaming(stream_name="live")}
    kept = resumable(app, mark=(), marks=marks, heartbeat_interval=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(StreamEnd, "pack", lambda _: b'{"reason":"of a later version"}')
        await read(kept, user)
    again = Exchange(http_scope(path="/live", headers=[*headers, user]))
    async with running(kept, again):
        await again.until_count(3, "message")
        again.block()
        assert again.task is not None
        await again.task
    assert texts(again) == counted(1, 3)
    assert {"complete", "error"}.isdisjoint(again.names)
    assert reported == []


async def test_nothing_is_resumed_and_ids_stay_if_no_events_are_kept() -> None:
    app = resumable(Counting(3), replay_max_events=0)
    whole = await read(app)
    assert whole.last_event_id == f"{id_of(whole, 3)}.end"
    again = await resume(app, id_of(whole, 2))
    assert again.names[0] == "reset"
    assert texts(again) == counted(1, 3)


async def test_a_plain_client_costs_no_log() -> None:
    store = memory()
    app = resumable(Counting(3), store=store)
    await handle(app)
    assert len(store) == 0
    await handle(app, headers=EVENTSOURCE)
    assert len(store) == 1
