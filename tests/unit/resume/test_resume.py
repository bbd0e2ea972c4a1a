"""A client that reconnects gets exactly the rest of its stream, and the app does not run again."""

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming
from tests.support.asgi import EVENTSOURCE, Exchange, body, handle, http_scope, stream_start
from tests.support.resuming import (
    REFUSING,
    UNKNOWN,
    Counting,
    back,
    bytes_after,
    counted,
    id_of,
    left,
    memory,
    opened,
    opening,
    read,
    resumable,
    resume,
    returning,
    stop,
    texts,
    value,
)

pytestmark = pytest.mark.anyio

PARAMETERS = ["last_event_id", "lastEventId", "evs_last_event_id"]


def wall_time() -> float:
    """Return the time of day by the clock of the loop."""
    return 1_800_000_000 + asyncio.get_running_loop().time()


# The position of the event id


@pytest.mark.parametrize("seq", range(6))
async def test_a_resume_after_any_event_gets_the_very_bytes_that_follow(
    seq: int,
) -> None:
    app = resumable(Counting(5), heartbeat_interval=None)
    whole = await read(app)
    cursor = id_of(whole, seq)
    again = await resume(app, cursor)
    assert again.body == opening(again) + bytes_after(whole, cursor)
    assert texts(again) == counted(seq + 1, 5)
    assert again.ended


@pytest.mark.parametrize("parameter", PARAMETERS)
@pytest.mark.parametrize("query", [b"%b=%b", b"a=1&%b=%b&b=2", b"a;b&%b=%b&%%00=%%ff", b"&&%b=%b&"])
async def test_an_event_id_may_be_in_the_query(parameter: str, query: bytes) -> None:
    counting = Counting(5)
    app = resumable(counting)
    cursor = id_of(await read(app), 3)
    again = await read(app, query_string=query % (parameter.encode(), cursor.encode()))
    assert texts(again) == counted(4, 5)
    assert again.events[0].id == cursor
    assert len(counting.scopes) == 1


async def test_any_client_with_an_event_id_of_ours_resumes() -> None:
    app = resumable(Counting(5))
    cursor = id_of(await read(app), 3)
    again = await handle(app, headers=[(b"last-event-id", cursor.encode())])
    assert again.names == ["start", "message", "message", "complete"]


@pytest.mark.parametrize("parameter", PARAMETERS)
async def test_the_event_id_of_the_header_has_precedence_over_that_of_the_query(
    parameter: str,
) -> None:
    app = resumable(Counting(5))
    whole = await read(app)
    query = f"{parameter}={id_of(whole, 1)}".encode()
    assert texts(await resume(app, id_of(whole, 4), query_string=query)) == ["5"]


async def test_of_several_ids_in_the_query_the_first_one_of_ours_counts() -> None:
    app = resumable(Counting(5))
    whole = await read(app)
    query = f"last_event_id=7&lastEventId={id_of(whole, 4)}&evs_last_event_id={id_of(whole, 1)}"
    assert texts(await read(app, query_string=query.encode())) == ["5"]


async def test_an_escaped_event_id_in_the_query_is_accepted() -> None:
    app = resumable(Counting(5))
    cursor = "".join(f"%{ord(character):02x}" for character in id_of(await read(app), 4))
    assert texts(await read(app, query_string=f"lastEventId={cursor}".encode())) == ["5"]


async def test_the_path_of_a_stream_counts_and_the_rest_of_its_query_does_not() -> None:
    counting = Counting(5)
    app = resumable(counting)
    cursor = id_of(await read(app, path="/a", query_string=b"q=1"), 4)
    assert texts(await resume(app, cursor, path="/a", query_string=b"q=2")) == ["5"]
    elsewhere = await resume(app, cursor, path="/b", query_string=b"q=1")
    assert elsewhere.names[0] == "reset"
    assert len(counting.scopes) == 2


async def test_a_path_that_a_layer_has_changed_for_the_app_is_the_same_on_the_wire() -> None:
    app = resumable(Counting(5))
    cursor = id_of(await read(app, path="/a", raw_path=b"/v1/a"), 4)
    assert texts(await resume(app, cursor, path="/b", raw_path=b"/v1/a?x=1")) == ["5"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
@pytest.mark.parametrize("ending", ["", ".cut"])
@pytest.mark.parametrize("options", [{}, {"mark": ()}], ids=["marked", "unmarked"])
async def test_an_event_id_of_another_middleware_is_passed_on(
    method: str, ending: str, options: dict[str, Any]
) -> None:
    counting = Counting(1)
    headers = back(UNKNOWN + ending)
    await handle(resumable(counting, **options), headers=headers, method=method)
    (scope,) = counting.scopes
    assert scope["headers"] == headers


async def test_the_app_never_sees_the_event_id_of_a_start() -> None:
    """The client has it until the first id of an app that sets its own, and may read no others."""
    counting, cursor = Counting(1), UNKNOWN.replace("-3", "-0")
    await handle(resumable(counting), headers=back(cursor))
    assert counting.scopes[0]["headers"] == EVENTSOURCE
    await handle(resumable(counting, mark=()), headers=back(cursor))
    assert counting.scopes[1]["headers"] == back(cursor)


async def test_two_services_in_a_row_of_which_the_inner_one_is_marked() -> None:
    """A gateway with the middleware passes requests and responses on, as by `httpx`."""
    service = resumable(Counting(5))

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        await service({**http_scope(headers=scope["headers"])}, receive, send)

    app = SSEMiddleware(gateway)
    first = await read(app)
    assert texts(await resume(app, id_of(first, 2))) == ["3", "4", "5"]
    assert (await resume(app, first.last_event_id)).status == 204


# The start of a resumed response


async def test_a_resumed_response_begins_with_a_start_with_the_event_id_of_the_client() -> None:
    app = resumable(Counting(5), stream_max_seconds=40, retry_ms=1234)
    whole = await read(app)
    again = await resume(app, id_of(whole, 3), (b"x-request-id", b"of-the-second"))
    start = again.events[0]
    assert json.loads(start.data) == {
        "stream_id": whole.headers[b"x-stream-id"].decode(),
        "trace_id": "of-the-second",
        "max_duration": 40,
        "heartbeat_interval": 5,
        "silence_threshold": 15,
        "resumed": True,
    }
    assert (start.event, start.id, start.retry) == ("start", id_of(whole, 3), 1234)
    assert again.names[1:] == ["message", "message", "complete"]


async def test_a_resumed_response_has_the_headers_of_the_first_except_per_response_ones() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        added = [
            (b"X-Model", b"m-1"),
            (b"x-name", "Jörg".encode("latin-1")),
            (b"set-cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
            (b"Date", b"Tue, 15 Nov 1994 08:12:31 GMT"),
            (b"content-length", b"9"),
            (b"cache-control", b"private, max-age=3"),
            (b"vary", b"Accept"),
        ]
        await send(stream_start(added))
        await send(body(b"data: 1\n\n", more=False))

    kept = resumable(app)
    whole = await read(kept)
    again = await resume(kept, id_of(whole, 0), (b"x-trace-id", b"t"))
    assert again.status == 200
    assert again.start["headers"] == [
        (b"content-type", b"text/event-stream"),
        (b"X-Model", b"m-1"),
        (b"x-name", "Jörg".encode("latin-1")),
        (b"vary", b"Accept"),
        (b"vary", b"Last-Event-ID"),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-trace-id", b"t"),
        (b"x-stream-id", whole.headers[b"x-stream-id"]),
        (b"x-stream-max-seconds", b"60"),
        (b"x-heartbeat-interval", b"5"),
        (b"x-silence-threshold", b"15"),
        (b"x-accel-buffering", b"no"),
    ]


async def test_the_options_of_a_mark_apply_to_a_resumed_response() -> None:
    mark = streaming(heartbeat_interval=0.5, stream_max_seconds=33, silence_threshold=None)
    app = resumable(Counting(3), marks={"/*": mark})
    async with left(app) as first, returning(app, id_of(first, 2)) as again:
        beat = await again.until("heartbeat")
        assert json.loads(beat.data)["max_duration"] == 33
        assert again.headers[b"x-heartbeat-interval"] == b"0.5"
        assert again.headers[b"x-silence-threshold"] == b"off"
        start = json.loads(again.events[0].data)
        assert (start["max_duration"], start["silence_threshold"]) == (33, None)


async def test_our_events_keep_the_names_that_a_mark_has_given_them() -> None:
    mark = streaming(event_prefix="sse.", retry_ms=300)
    app = resumable(Counting(3, pause=4), marks={"/*": mark})
    async with left(app, 1) as first, returning(app, id_of(first, 1)) as again:
        await again.until_end()
    assert (first.events[0].event, first.retry) == ("sse.start", 300)
    assert [name for name in again.names if name != "message"] == [
        "sse.start",
        "sse.heartbeat",
        "sse.heartbeat",
        "sse.complete",
    ]
    assert again.retry == 300


@pytest.mark.parametrize("answer", ["resumed", "stopped", "refused", "cancelled"])
async def test_no_cache_may_keep_a_response_of_ours(answer: str) -> None:
    app = resumable(Counting(1))
    cursor = id_of(await read(app), 0)
    if answer == "resumed":
        exchange = await resume(app, cursor)
    elif answer == "stopped":
        exchange = await resume(app, f"{cursor}.end")
    elif answer == "refused":
        exchange = await resume(resumable(Starlette(exception_handlers=REFUSING)), UNKNOWN)
    else:
        exchange = await stop(app, cursor)
    of_stream = b", no-transform" * (answer in ("resumed", "refused"))
    assert exchange.headers[b"cache-control"] == b"no-store" + of_stream
    assert exchange.headers[b"vary"] == b"Last-Event-ID"


# CORS


ORIGIN = (b"origin", b"https://a.example")


async def test_headers_of_cors_are_for_the_origin_that_has_opened_the_stream() -> None:
    counting = Counting(5, headers={"access-control-allow-origin": "https://a.example"})
    app = resumable(counting)
    cursor = id_of(await read(app, ORIGIN), 4)
    again = await resume(app, cursor, ORIGIN)
    assert texts(again) == ["5"]
    assert again.headers[b"access-control-allow-origin"] == b"https://a.example"
    for others in ([(b"origin", b"https://b.example")], []):
        other = await resume(app, cursor, *others)
        assert other.names[0] == "reset"
        assert texts(other) == counted(1, 5)
    assert len(counting.scopes) == 3


async def test_without_headers_of_cors_the_origin_does_not_matter() -> None:
    app = resumable(Counting(5))
    cursor = id_of(await read(app, ORIGIN), 4)
    again = await resume(app, cursor, (b"origin", b"https://b.example"))
    assert texts(again) == ["5"]


# The live events


async def test_missed_and_live_events_are_one_sequence() -> None:
    counting = Counting(6)
    app = resumable(counting)
    async with left(app, 2) as first:
        await asyncio.sleep(1.5)  # the third one is sent in this time
        came = asyncio.get_running_loop().time()
        async with returning(app, first.last_event_id) as again:
            await again.until_end()
    assert texts(again) == counted(3, 6)
    assert json.loads(again.events[-1].data)["reason"] == "finished"
    bodies = [(at - came, m["body"]) for at, m in again.messages if b"data: " in m.get("body", b"")]
    assert [round(at, 1) for at, _ in bodies] == [0.0, 0.5, 1.5, 2.5, 3.5]
    assert len(counting.scopes) == 1
    assert counting.ends == ["finished"]


async def test_a_reader_receives_heartbeats_of_a_silent_stream() -> None:
    app = resumable(Counting(2, pause=12), heartbeat_interval=5)
    async with left(app, 1) as first, returning(app, first.last_event_id) as again:
        await again.until_end()
    beats = ["heartbeat", "heartbeat"]
    assert again.names == ["start", *beats, "message", *beats, "complete"]
    beat = json.loads(again.events[2].data)
    assert beat["total_chunks"] == 1
    assert beat["heartbeat_count"] == 2


async def test_a_client_that_is_cut_again_and_again_gets_each_event_once() -> None:
    counting = Counting(20)
    app = resumable(counting)
    seen: list[str] = []
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.disconnect()
        seen += texts(first)
        held = first.last_event_id
        while seen[-1] != "20":
            async with returning(app, held) as again:
                await again.until_count(len(seen) % 3 + 1, "message")
            seen += texts(again)
            held = again.last_event_id
            await asyncio.sleep(len(seen) % 4)
        assert first.task is not None
        await first.task
    assert seen == counted(1, 20)
    assert len(counting.scopes) == 1


async def test_the_first_client_and_several_readers_each_get_all_of_their_own() -> None:
    counting = Counting(9)
    app = resumable(counting, heartbeat_interval=None)
    async with opened(app) as whole:
        await whole.until_count(4, "message")
        async with (
            returning(app, id_of(whole, 0)) as one,
            returning(app, id_of(whole, 3)) as other,
            returning(app, id_of(whole, 4)) as third,
        ):
            await whole.until_count(6, "message")
            third.disconnect()
            await asyncio.gather(one.until_end(), other.until_end(), whole.until_end())
    assert texts(whole) == counted(1, 9)
    for reader, held in ((one, 0), (other, 3)):
        assert reader.body == opening(reader) + bytes_after(whole, id_of(whole, held))
    assert texts(third) == counted(5, 6)
    assert len(counting.scopes) == 1


async def test_a_slow_reader_delays_neither_the_app_nor_another_reader() -> None:
    counting = Counting(200, pause=0.01)
    app = resumable(counting)
    async with left(app) as first, returning(app, first.last_event_id) as slow:
        await slow.until("message")
        slow.block()
        async with returning(app, first.last_event_id) as quick:
            await quick.until_end()
        assert texts(quick) == counted(3, 200)
        assert len(texts(slow)) < 3
        slow.unblock()
        await slow.until_end()
    assert texts(slow) == counted(3, 200)
    assert slow.overlaps == 0


async def test_a_reader_that_leaves_takes_nothing_along() -> None:
    before = asyncio.all_tasks()
    app = resumable(Counting(8))
    async with opened(app) as whole:
        await whole.until_count(2, "message")
        async with returning(app, id_of(whole, 1)) as reader:
            await reader.until_count(2, "message")
            reader.disconnect()
            assert reader.task is not None
            await reader.task
        written = len(reader.messages)
        await whole.until_end()
    assert texts(whole) == counted(1, 8)
    assert len(reader.messages) == written
    assert not reader.ended
    assert asyncio.all_tasks() == before


async def test_a_reader_is_gone_after_its_server_has_rejected_a_write() -> None:
    app = resumable(Counting(8))
    async with opened(app) as whole:
        await whole.until_count(2, "message")
        async with returning(app, id_of(whole, 1)) as reader:
            await reader.until_count(1, "message")
            reader.refusal = OSError("gone")
            assert reader.task is not None
            await reader.task
        await whole.until_end()
    assert texts(whole) == counted(1, 8)


async def test_a_reader_of_a_thousand_events_gets_few_messages() -> None:
    app = resumable(Counting(1000, pause=0))
    whole = await read(app)
    again = await resume(app, id_of(whole, 0))
    assert texts(again) == counted(1, 1000)
    assert len(again.messages) < 10


async def test_the_time_that_a_reader_has_left_is_that_of_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time", wall_time)
    app = resumable(Counting(100), stream_max_seconds=20, cap_action="complete")
    async with left(app, 8) as first, returning(app, first.last_event_id) as again:
        beat = json.loads((await again.until("heartbeat")).data)
        assert beat["uptime_seconds"] == pytest.approx(12, abs=0.1)
        assert beat["remaining_seconds"] == pytest.approx(8, abs=0.1)
        await again.until_end()
    assert asyncio.get_running_loop().time() - first.messages[0][0] == pytest.approx(20, abs=1.5)
    complete = again.events[-1]
    assert json.loads(complete.data)["reason"] == "duration_cap"
    assert complete.id == f"{id_of(first, 20)}.cut"
    assert texts(first) + texts(again) == counted(1, 20)


async def test_a_slow_reader_that_resumes_after_the_cap_gets_all_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class SlowExchange(Exchange):
        async def send(self, message: Message) -> None:
            await asyncio.sleep(1)
            await super().send(message)

    async def many(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 1001):
            await send(body(b"data: %d %b\n\n" % (number, b"x" * 500)))
        await send(body(b"", more=False))

    monkeypatch.setattr(time, "time", wall_time)
    app = resumable(many, cap_action="complete", stream_max_seconds=10)
    whole = await read(app)
    await asyncio.sleep(30)
    again = SlowExchange(http_scope(headers=back(id_of(whole, 1))))
    await app(again.scope, again.receive, again.send)
    assert [int(text.split()[0]) for text in texts(again)] == list(range(2, 1001))
    assert again.events[-1] == whole.events[-1]


# Logs and metrics


async def test_the_metrics_count_the_results_of_resumes() -> None:
    registry = CollectorRegistry()

    async def endpoint(request: Request) -> Response:
        async def events() -> Any:
            for number in range(1, 7):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(1)

        return StreamingResponse(events(), media_type="text/event-stream")

    app = resumable(
        Starlette(routes=[Route("/items/{id}", endpoint)], exception_handlers=REFUSING),
        registry=registry,
        store=memory(max_events=3),
    )
    route = {"route": "/items/{id}"}
    async with left(app, 2, path="/items/7") as first:
        assert value(registry, "sse_lingering_streams") == 1
        assert value(registry, "sse_streams_active") == 1
        await asyncio.sleep(1)
        async with returning(app, id_of(first, 1), path="/items/7") as again:
            assert await again.until_count(2, "message")
            assert value(registry, "sse_lingering_streams") == 0
            assert value(registry, "sse_streams_active") == 1
            await again.until_end()
    assert value(registry, "sse_resumes_total", **route, result="resumed") == 1
    assert value(registry, "sse_replayed_events_total") == 2
    await resume(app, id_of(first, 2), path="/items/7")
    assert value(registry, "sse_resumes_total", **route, result="truncated") == 1
    assert value(registry, "sse_replayed_events_total") == 5
    await resume(app, UNKNOWN, path="/items/7")
    assert value(registry, "sse_resumes_total", **route, result="gone") == 1
    await resume(app, f"{UNKNOWN}.end", path="/items/7")
    assert value(registry, "sse_resumes_total", route="unmatched", result="ended") == 1
    await resume(app, UNKNOWN, path="/nowhere")
    assert value(registry, "sse_resumes_total", route="unmatched", result="gone") == 1
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0
    outcome = {"family": "eventsource", "outcome": "finished"}
    assert value(registry, "sse_streams_total", **route, **outcome) == 2
    assert value(registry, "sse_events_total", **route, family="eventsource") == 12
    assert value(registry, "sse_disconnects_total") == 1


async def test_the_log_lines_of_a_reader_and_of_the_first_client_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sse_middleware.stream")
    app = resumable(Counting(5))
    async with left(app, 2) as first:
        again = await resume(app, first.last_event_id)
    records: list[Any] = caplog.records
    fields: list[dict[str, Any]] = [record.sse for record in records]
    assert [of["resumed_after"] for of in fields] == [None, 2]
    assert [of["outcome"] for of in fields] == ["finished", "finished"]
    assert [of["disconnects"] for of in fields] == [1, 0]
    assert {of["stream_id"] for of in fields} == {first.headers[b"x-stream-id"].decode()}
    assert fields[0]["trace_id"] == first.headers[b"x-trace-id"].decode()
    assert fields[1]["trace_id"] == again.headers[b"x-trace-id"].decode()
    assert ", resumed: finished after" in records[1].getMessage()
    assert fields[1]["sent_bytes"] == len(again.body)


async def test_a_reader_that_leaves_an_endless_stream_is_reported_as_disconnected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sse_middleware.stream")
    registry = CollectorRegistry()
    app = resumable(Counting(100), registry=registry, stream_max_seconds=None)
    async with opened(app) as first:
        await first.until_count(1, "message")
        async with returning(app, first.last_event_id) as again:
            await again.until_count(1, "message")
            again.disconnect()
            assert again.task is not None
            await again.task
        (record,) = caplog.records
        logged = SimpleNamespace(**record.__dict__["sse"])
        assert (logged.outcome, logged.disconnects, logged.resumed_after) == ("disconnected", 1, 1)
        assert value(registry, "sse_streams_active") == 1
        assert value(registry, "sse_disconnects_total") == 1
