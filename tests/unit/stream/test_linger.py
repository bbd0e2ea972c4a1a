"""Linger: without a reader the app continues for a time, and then it is disconnected."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import streaming
from tests.support.asgi import Exchange, body, http_scope, running, stream_start
from tests.support.resuming import (
    LINGER,
    TTL,
    UNCAPPED,
    Chunked,
    Counting,
    Deaf,
    Listening,
    back,
    counted,
    id_of,
    left,
    memory,
    now,
    opened,
    resumable,
    resume,
    returning,
    texts,
    value,
)

pytestmark = pytest.mark.anyio


# The disconnect of the app


@pytest.mark.parametrize("listeners", [1, 3])
async def test_a_listening_app_is_disconnected_when_no_client_has_resumed(
    listeners: int,
) -> None:
    listening = Listening(listeners=listeners)
    store = memory()
    app = resumable(listening, store=store, **UNCAPPED)
    async with left(app, 2) as first:
        gone = now()
        await asyncio.sleep(LINGER - 0.5)
        assert listening.disconnects == []
        assert first.task is not None
        await first.task
    assert listening.disconnects == [pytest.approx(gone + LINGER, abs=0.1)] * listeners
    ((ended, how),) = listening.ends
    assert ended == pytest.approx(gone + LINGER, abs=0.1)
    assert how == "left"
    assert texts(first) == counted(1, 2)
    assert not first.ended
    assert len(store) == 0
    assert (await resume(resumable(Counting(1), store=store), first.last_event_id)).names[0] == (
        "reset"
    )


async def test_an_app_that_is_disconnected_and_continues_to_write_is_cancelled_a_second_later() -> (
    None
):
    listening = Listening(leaves=False)
    app = resumable(listening, **UNCAPPED)
    async with left(app, 2) as first:
        gone = now()
        assert first.task is not None
        await first.task
        assert not first.task.cancelled()
    ((ended, how),) = listening.ends
    assert how == "cancelled"
    assert ended == pytest.approx(gone + LINGER + 1, abs=1.1)


async def test_an_app_that_does_not_listen_is_cancelled_a_second_later() -> None:
    deaf = Deaf()
    app = resumable(deaf, **UNCAPPED)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.refusal = OSError("gone")
        gone = now() + 1  # with its next write
        assert first.task is not None
        await first.task
    ((ended, how),) = deaf.ends
    assert ended == pytest.approx(gone + LINGER + 1, abs=0.1)
    assert how == "CancelledError"


async def test_an_app_that_never_receives_expires_though_none_of_its_writes_fails() -> None:
    deaf = Deaf()
    registry = CollectorRegistry()
    before = asyncio.all_tasks()
    app = resumable(deaf, registry=registry, heartbeat_interval=5, **UNCAPPED)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.disconnect()
        gone = now()
        await asyncio.sleep(5)
        assert value(registry, "sse_lingering_streams") == 1
        assert first.task is not None
        await first.task
    ((ended, how),) = deaf.ends
    assert how == "CancelledError"
    assert gone + LINGER <= ended <= gone + 5 + LINGER + 1.1
    assert value(registry, "sse_streams_active") == 0
    assert asyncio.all_tasks() == before


async def test_an_app_that_never_receives_leaves_no_pending_receive() -> None:
    before = asyncio.all_tasks()
    async with opened(resumable(Deaf(12))) as first:
        await first.until_end()
        assert first.task is not None
        await first.task
        assert asyncio.all_tasks() == before
    assert texts(first) == counted(1, 12)


async def test_a_body_that_we_have_listened_over_is_still_the_apps() -> None:
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(12)
        got.append(await receive())
        got.append(await receive())
        await send(body(b"data: 2\n\n", more=False))
        got.append(await receive())

    parts = Chunked(
        http_scope(method="POST", headers=[(b"accept", b"text/event-stream;events=named")]),
        b"a",
        b"b",
    )
    async with running(resumable(app), parts) as first:
        await first.until_end()
        first.disconnect()
        assert first.task is not None
        await first.task
    assert [message.get("body") for message in got] == [b"a", b"b", None]
    assert texts(first) == ["1", "2"]


async def test_the_app_sees_a_known_disconnect_when_its_linger_expires() -> None:
    disconnects: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(
            12
        )  # without listening; the middleware listens from the first heartbeat
        for _ in range(2):
            assert (await receive())["type"] == "http.disconnect"
            disconnects.append(now())

    async with opened(resumable(app, heartbeat_interval=5, **UNCAPPED)) as first:
        await first.until("message")
        await asyncio.sleep(6)
        first.disconnect()
        gone = now()
        assert first.task is not None
        await first.task
    assert disconnects == [pytest.approx(gone + LINGER, abs=0.1)] * 2


async def test_an_app_that_polls_is_disconnected_only_after_its_linger() -> None:
    answers: list[tuple[float, bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        await send(stream_start())
        while not await request.is_disconnected():
            answers.append((now(), False))
            await send(body(b"data: x\n\n"))
            await asyncio.sleep(1)
        answers.append((now(), True))

    async with left(resumable(app, **UNCAPPED), 2) as first:
        gone = now()
        assert first.task is not None
        await first.task
    disconnects, yes = answers[-1]
    assert yes
    assert disconnects == pytest.approx(gone + 1 + LINGER, abs=1.1)


async def test_an_app_of_starlettes_is_cancelled_by_starlette_and_its_background_task_runs() -> (
    None
):
    notes: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def events() -> Any:
            try:
                for number in range(1, 1000):
                    yield b"data: %d\n\n" % number
                    await asyncio.sleep(1)
            except asyncio.CancelledError:
                notes.append(f"cancelled at {now() - gone:.0f}")
                raise

        async def background() -> None:
            await asyncio.sleep(3)
            notes.append("background")

        response = StreamingResponse(
            events(), media_type="text/event-stream", background=BackgroundTask(background)
        )
        await Request(scope, receive).body()
        await response(scope, receive, send)

    gone = 0.0
    async with left(resumable(app, **UNCAPPED), 2) as first:
        gone = now()
        assert first.task is not None
        await first.task
    assert notes == ["cancelled at 15", "background"]


async def test_an_app_inside_a_base_http_middleware_lingers_too() -> None:
    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    counting = Counting(8)
    app = resumable(BaseHTTPMiddleware(counting, pass_on))
    async with left(app, 2) as first:
        again = await resume(app, first.last_event_id)
    assert texts(first) + texts(again) == counted(1, 8)
    assert counting.ends == ["finished"]
    endless = Counting(1000)
    async with left(resumable(BaseHTTPMiddleware(endless, pass_on), **UNCAPPED), 2) as first:
        gone = now()
        assert first.task is not None
        await first.task
        assert now() == pytest.approx(gone + LINGER, abs=1.1)
    assert endless.ends == ["cancelled"]


# Clients that resume


async def test_a_resume_in_time_has_no_gap_and_does_not_disconnect_the_app() -> None:
    listening = Listening(40)
    app = resumable(listening, **UNCAPPED)
    async with left(app, 2) as first:
        await asyncio.sleep(LINGER - 0.5)
        again = await resume(app, first.last_event_id)
    assert texts(first) + texts(again) == counted(1, 40)
    assert listening.disconnects == []
    assert [how for _, how in listening.ends] == ["finished"]


async def test_a_reader_keeps_the_app_going_and_its_leaving_starts_the_clock_again() -> None:
    listening = Listening()
    registry = CollectorRegistry()
    app = resumable(listening, registry=registry, **UNCAPPED)
    async with left(app, 2) as first:
        for _ in range(3):
            await asyncio.sleep(LINGER - 1)
            assert value(registry, "sse_lingering_streams") == 1
            async with returning(app, id_of(first, 2)) as reader:
                await reader.until("message")
                await asyncio.sleep(3 * LINGER)
                assert value(registry, "sse_lingering_streams") == 0
                assert listening.disconnects == []
                reader.disconnect()
                gone = now()
        assert first.task is not None
        await first.task
    assert listening.disconnects == [pytest.approx(gone + LINGER, abs=0.1)]
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0


async def test_the_last_of_several_readers_starts_the_clock() -> None:
    listening = Listening()
    app = resumable(listening, **UNCAPPED)
    async with left(app, 2) as first:
        async with returning(app, id_of(first, 1)) as one:
            await one.until("message")
            async with returning(app, id_of(first, 0)) as other:
                await other.until("message")
                one.disconnect()
                await asyncio.sleep(2 * LINGER)
                assert listening.disconnects == []
                other.disconnect()
                gone = now()
        assert first.task is not None
        await first.task
    assert listening.disconnects == [pytest.approx(gone + LINGER, abs=0.1)]


async def test_a_reader_beside_the_first_client_is_enough_when_that_one_leaves() -> None:
    listening = Listening()
    app = resumable(listening, **UNCAPPED)
    async with opened(app) as first:
        await first.until("message")
        async with returning(app, id_of(first, 0)) as reader:
            await reader.until("message")
            first.disconnect()
            await asyncio.sleep(2 * LINGER)
            assert listening.disconnects == []
            assert int(texts(reader)[-1]) >= 2 * LINGER
            assert len(texts(first)) < 3
            reader.disconnect()
            gone = now()
        assert first.task is not None
        await first.task
    assert listening.disconnects == [pytest.approx(gone + LINGER, abs=0.1)]


async def test_a_reader_that_leaves_before_the_first_client_does_not_start_the_clock() -> None:
    listening = Listening(60)
    app = resumable(listening, **UNCAPPED)
    async with opened(app) as first:
        await first.until("message")
        async with returning(app, id_of(first, 0)) as reader:
            await reader.until("message")
        await first.until_end()
    assert listening.disconnects == []
    assert texts(first) == counted(1, 60)


async def test_a_resume_at_the_moment_of_expiry_gets_the_stream_or_its_end() -> None:
    for late in (-0.01, -0.001, 0.0, 0.001, 0.004, 0.01):
        listening = Listening(40)
        app = resumable(listening, **UNCAPPED)
        async with left(app, 2) as first:
            await asyncio.sleep(LINGER - 0.01 + late)
            again = await resume(app, first.last_event_id)
        if again.names[0] == "start":
            assert texts(first) + texts(again) == counted(1, 40)
        else:
            assert again.names[0] == "reset"
            assert texts(again) == counted(1, 40)


async def test_a_client_whose_response_start_is_blocked_has_resumed_in_time() -> None:
    listening = Listening(40)
    app = resumable(listening, **UNCAPPED)
    async with left(app, 2) as first:
        await asyncio.sleep(LINGER - 1)
        again = Exchange(http_scope(headers=back(first.last_event_id)))
        again.block()
        async with running(app, again):
            await asyncio.sleep(2)
            again.unblock()
            await again.until_end()
    assert listening.disconnects == []
    assert again.names[0] == "start"
    assert texts(again) == counted(3, 40)


async def test_a_stream_ends_during_the_blocked_response_start_of_a_reader() -> None:
    app = resumable(Counting(5))
    async with left(app, 2) as first:
        again = Exchange(http_scope(headers=back(first.last_event_id)))
        again.block()
        async with running(app, again):
            await asyncio.sleep(10)
            again.unblock()
            await again.until_end()
    assert texts(again) == counted(3, 5)
    assert again.names == ["start", "message", "message", "message", "complete"]


# Streams that end while they linger


async def test_a_stream_that_ends_while_it_lingers_is_kept_for_the_ttl() -> None:
    counting = Counting(5)
    store = memory()
    app = resumable(counting, store=store)
    async with left(app, 2) as first:
        assert first.task is not None
        await first.task
    assert counting.ends == ["finished"]
    await asyncio.sleep(TTL - 1)
    assert texts(await resume(app, first.last_event_id)) == counted(3, 5)
    await asyncio.sleep(2)
    assert (len(store), store.total_bytes) == (0, 0)


async def test_the_cap_of_a_marked_stream_holds_without_a_reader() -> None:
    listening = Listening()
    app = resumable(listening, marks={"/*": streaming(stream_max_seconds=10)})
    async with left(app, 2) as first:
        assert first.task is not None
        await first.task
    assert len(listening.disconnects) == 1
    again = await resume(app, first.last_event_id)
    assert texts(again) == counted(3, 10)
    assert json.loads(again.events[-1].data)["reason"] == "duration_cap"
    assert again.last_event_id == f"{id_of(first, 10)}.cut"
    assert first.names[-1] == "message"


async def test_an_app_that_fails_while_it_lingers_fails_as_usual_for_its_readers() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        listening = asyncio.ensure_future(receive())
        await send(stream_start())
        for number in range(1, 5):
            await send(body(b"data: %d\n\n" % number))
            await asyncio.sleep(1)
        assert not listening.done()
        listening.cancel()
        raise ValueError

    kept = resumable(app)
    async with left(kept, 2) as first:
        assert first.task is not None
        with pytest.raises(ValueError):
            await first.task
    again = await resume(kept, first.last_event_id)
    assert again.names == ["start", "message", "message", "error"]
    assert first.names == ["start", "message", "message"]


async def test_an_app_that_receives_after_its_end_does_not_wait_for_ever() -> None:
    disconnects: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        for number in range(1, 4):
            await send(body(b"data: %d\n\n" % number))
            await asyncio.sleep(1)
        await send(body(b"", more=False))
        assert (await receive())["type"] == "http.disconnect"
        disconnects.append(now())

    kept = resumable(app)
    for leaves_early in (True, False):
        async with opened(kept) as first:
            await first.until_count(1, "message")
            if leaves_early:
                first.disconnect()
            await asyncio.sleep(5)
            first.disconnect()
            assert first.task is not None
            await first.task
    assert len(disconnects) == 2


async def test_all_tasks_that_listen_at_the_end_of_the_stream_are_disconnected() -> None:
    listening = Listening(4, listeners=3)
    waits: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await listening(scope, receive, send)
        waits.append(await receive())

    async with left(resumable(app), 2) as first:
        assert first.task is not None
        await first.task
    assert [how for _, how in listening.ends] == ["finished"]
    assert [message["type"] for message in waits] == ["http.disconnect"]
