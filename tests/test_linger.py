"""While nobody reads: the app goes on for a while and does not know, and then it hears."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import streaming
from tests.asgi import Exchange, body, http_scope, running, stream_start
from tests.resuming import (
    LINGER,
    TTL,
    Chunked,
    Counting,
    counted,
    id_of,
    left,
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


def now() -> float:
    return asyncio.get_running_loop().time()


class Listening:
    """An app that counts, a number a second, and waits in other tasks for its client to leave.

    Args:
        count: up to which number; then it ends its response.
        listeners: how many tasks wait.
        leaves: whether it leaves when it hears.

    Attributes:
        heard: when the tasks have heard that the client has left.
        ends: when and how it has ended.
    """

    def __init__(self, count: int = 1000, *, listeners: int = 1, leaves: bool = True) -> None:
        self.heard: list[float] = []
        self.ends: list[tuple[float, str]] = []
        self._count = count
        self._listeners = listeners
        self._leaves = leaves

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        tasks = [asyncio.ensure_future(self._listen(receive)) for _ in range(self._listeners)]
        try:
            await send(stream_start())
            for number in range(1, self._count + 1):
                await send(body(b"data: %d\n\n" % number))
                if self._leaves:
                    await asyncio.wait(tasks, timeout=1, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(1)
                if self._leaves and any(task.done() for task in tasks):
                    self.ends.append((now(), "left"))
                    return
            await send(body(b"", more=False))
            self.ends.append((now(), "finished"))
        except asyncio.CancelledError:
            self.ends.append((now(), "cancelled"))
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _listen(self, receive: Receive) -> None:
        message = await receive()
        assert message["type"] == "http.disconnect"
        self.heard.append(now())


class Deaf:
    """An app that counts, a number a second, and never asks whether its client is there.

    Attributes:
        ends: when and how it has ended.
    """

    def __init__(self, count: int = 1000) -> None:
        self.ends: list[tuple[float, str]] = []
        self._count = count

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send(stream_start())
            for number in range(1, self._count + 1):
                await send(body(b"data: %d\n\n" % number))
                await asyncio.sleep(1)
            await send(body(b"", more=False))
            self.ends.append((now(), "finished"))
        except BaseException as exc:
            self.ends.append((now(), type(exc).__name__))
            raise


UNCAPPED: dict[str, Any] = {"stream_max_seconds": None}


# What the app hears, and when


@pytest.mark.parametrize("listeners", [1, 3])
async def test_a_listening_app_hears_that_its_client_is_gone_when_nobody_has_come_back(
    listeners: int,
) -> None:
    listening = Listening(listeners=listeners)
    store = memory()
    app = resumable(listening, store=store, **UNCAPPED)
    async with left(app, 2) as first:
        gone = now()
        await asyncio.sleep(LINGER - 0.5)
        assert listening.heard == []
        assert first.task is not None
        await first.task
    assert listening.heard == [pytest.approx(gone + LINGER, abs=0.1)] * listeners
    ((ended, how),) = listening.ends
    assert ended == pytest.approx(gone + LINGER, abs=0.1)
    assert how == "left"
    assert texts(first) == counted(1, 2)
    assert not first.ended
    assert len(store) == 0
    assert (await resume(resumable(Counting(1), store=store), first.last_event_id)).names[0] == (
        "reset"
    )


async def test_an_app_that_hears_and_goes_on_writing_is_cancelled_a_second_later() -> None:
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


async def test_an_app_that_never_asks_is_given_up_though_no_write_of_its_own_fails() -> None:
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


async def test_an_app_that_never_asks_leaves_nothing_that_listens_in_its_place() -> None:
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


async def test_a_client_that_we_have_heard_leaving_is_gone_for_the_app_when_it_is_given_up() -> (
    None
):
    heard: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(12)  # without listening; we do from the first heartbeat on
        for _ in range(2):
            assert (await receive())["type"] == "http.disconnect"
            heard.append(now())

    async with opened(resumable(app, heartbeat_interval=5, **UNCAPPED)) as first:
        await first.until("message")
        await asyncio.sleep(6)
        first.disconnect()
        gone = now()
        assert first.task is not None
        await first.task
    assert heard == [pytest.approx(gone + LINGER, abs=0.1)] * 2


async def test_an_app_that_asks_now_and_then_hears_no_while_it_lingers_and_then_yes() -> None:
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
    heard, yes = answers[-1]
    assert yes
    assert heard == pytest.approx(gone + 1 + LINGER, abs=1.1)


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


async def test_an_app_behind_a_base_http_middleware_lingers_too() -> None:
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


# Who comes back


async def test_who_comes_back_in_time_finds_no_seam_and_the_app_hears_nothing() -> None:
    listening = Listening(40)
    app = resumable(listening, **UNCAPPED)
    async with left(app, 2) as first:
        await asyncio.sleep(LINGER - 0.5)
        again = await resume(app, first.last_event_id)
    assert texts(first) + texts(again) == counted(1, 40)
    assert listening.heard == []
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
                assert listening.heard == []
                reader.disconnect()
                gone = now()
        assert first.task is not None
        await first.task
    assert listening.heard == [pytest.approx(gone + LINGER, abs=0.1)]
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
                assert listening.heard == []
                other.disconnect()
                gone = now()
        assert first.task is not None
        await first.task
    assert listening.heard == [pytest.approx(gone + LINGER, abs=0.1)]


async def test_a_reader_beside_the_first_client_is_enough_when_that_one_leaves() -> None:
    listening = Listening()
    app = resumable(listening, **UNCAPPED)
    async with opened(app) as first:
        await first.until("message")
        async with returning(app, id_of(first, 0)) as reader:
            await reader.until("message")
            first.disconnect()
            await asyncio.sleep(2 * LINGER)
            assert listening.heard == []
            assert int(texts(reader)[-1]) >= 2 * LINGER
            assert len(texts(first)) < 3
            reader.disconnect()
            gone = now()
        assert first.task is not None
        await first.task
    assert listening.heard == [pytest.approx(gone + LINGER, abs=0.1)]


async def test_a_reader_that_leaves_before_the_first_client_does_not_start_the_clock() -> None:
    listening = Listening(60)
    app = resumable(listening, **UNCAPPED)
    async with opened(app) as first:
        await first.until("message")
        async with returning(app, id_of(first, 0)) as reader:
            await reader.until("message")
        await first.until_end()
    assert listening.heard == []
    assert texts(first) == counted(1, 60)


async def test_who_comes_back_at_the_moment_of_giving_up_gets_one_thing_or_the_other() -> None:
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


# What ends meanwhile


async def test_what_the_app_has_finished_meanwhile_is_kept_for_its_time() -> None:
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


async def test_the_cap_of_a_marked_stream_holds_while_nobody_reads() -> None:
    listening = Listening()
    app = resumable(listening, marks={"/*": streaming(stream_max_seconds=10)})
    async with left(app, 2) as first:
        assert first.task is not None
        await first.task
    assert len(listening.heard) == 1
    again = await resume(app, first.last_event_id)
    assert texts(again) == counted(3, 10)
    assert json.loads(again.events[-1].data)["reason"] == "duration_cap"
    assert again.last_event_id == f"{id_of(first, 10)}.cut"
    assert first.names[-1] == "message"


async def test_an_app_that_fails_meanwhile_fails_as_ever_and_its_readers_are_told() -> None:
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


async def test_an_app_that_waits_for_its_client_behind_its_end_does_not_wait_for_ever() -> None:
    heard: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        for number in range(1, 4):
            await send(body(b"data: %d\n\n" % number))
            await asyncio.sleep(1)
        await send(body(b"", more=False))
        assert (await receive())["type"] == "http.disconnect"
        heard.append(now())

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
    assert len(heard) == 2


async def test_several_tasks_that_listen_while_the_app_ends_its_stream_all_hear() -> None:
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


# How a client goes away


async def test_a_server_that_refuses_a_write_is_not_heard_of_while_the_app_lingers() -> None:
    deaf = Deaf(8)
    app = resumable(deaf)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.refusal = OSError("gone")
        again = await resume(app, first.last_event_id)
    assert texts(again) == counted(3, 8)
    assert [how for _, how in deaf.ends] == ["finished"]


async def test_a_refused_heartbeat_is_as_good_as_a_refused_write() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(12)
        await send(body(b"data: 2\n\n"))
        await send(body(b"", more=False))

    registry = CollectorRegistry()
    kept = resumable(app, registry=registry)
    async with opened(kept) as first:
        await first.until("message")
        first.refusal = OSError("gone")
        await asyncio.sleep(6)
        assert value(registry, "sse_lingering_streams") == 1
        assert first.task is not None
        await first.task
    assert texts(await resume(kept, first.last_event_id)) == ["2"]
    assert value(registry, "sse_lingering_streams") == 0


async def test_a_burst_that_is_refused_is_kept() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(1)
        for number in range(2, 400):
            await send(body(b"data: %d %b\n\n" % (number, b"x" * 200)))
        await asyncio.sleep(1)
        await send(body(b"data: 400\n\n", more=False))

    kept = resumable(app)
    async with opened(kept) as first:
        await first.until("message")
        first.refusal = OSError("gone")
        assert first.task is not None
        await first.task
    again = await resume(kept, first.last_event_id)
    assert [int(text.split()[0]) for text in texts(again)] == list(range(2, 401))


def test_a_file_that_the_app_sends_while_nobody_reads_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_bytes(b"data: 2\n\ndata: 3\n\n")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        listening = asyncio.ensure_future(receive())
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await asyncio.sleep(0.1)
        assert not listening.done()
        await send({"type": "http.response.pathsend", "path": str(file)})
        listening.cancel()

    async def serve() -> Exchange:  # on a loop that has threads, in which files are read
        kept = resumable(app)
        async with left(kept, 1) as first:
            assert first.task is not None
            await first.task
        return await resume(kept, id_of(first, 0))

    again = asyncio.run(serve())
    assert texts(again) == ["1", "2", "3"]
    assert again.names[-1] == "complete"


async def test_a_write_that_was_blocked_when_the_client_left_is_in_the_log() -> None:
    deaf = Deaf(8)
    app = resumable(deaf)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(3)
        held = first.last_event_id
        first.refusal = OSError("gone")
        first.unblock()  # as a server does that has lost the connection
        again = await resume(app, held)
    assert texts(again)[:3] == ["3", "4", "5"]
    assert texts(again)[-1] == "8"


async def test_a_client_whose_writes_are_blocked_gets_what_is_in_the_log_elsewhere() -> None:
    deaf = Deaf(8)
    app = resumable(deaf)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.block()
        await asyncio.sleep(3)
        async with returning(app, id_of(first, 1)) as again:
            await again.until_count(2, "message")
            first.refusal = OSError("gone")
            first.unblock()
            await again.until_end()
    assert texts(again) == counted(2, 8)


async def test_a_client_that_left_before_any_event_is_gone_at_once() -> None:
    heard: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        await receive()
        heard.append(now())

    store = memory()
    kept = resumable(app, store=store)
    async with opened(kept) as first:
        await first.until("start")
        first.disconnect()
        gone = now()
        assert first.task is not None
        await first.task
    assert heard == [gone]
    assert len(store) == 0


async def test_a_client_that_left_before_the_response_began_is_gone_at_once() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        heard.append((await receive())["type"])
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        heard.append((await receive())["type"])

    async with opened(resumable(app)) as first:
        first.disconnect()
        assert first.task is not None
        await first.task
    assert heard == ["http.disconnect", "http.disconnect"]


# Bounds


async def test_of_too_many_that_wait_the_one_that_has_waited_longest_gives_way() -> None:
    registry = CollectorRegistry()
    apps = [Listening() for _ in range(4)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await apps[int(scope["path"][1:])](scope, receive, send)

    kept = resumable(app, max_lingering=2, registry=registry, **UNCAPPED)
    async with (
        left(kept, 1, path="/0") as first,
        left(kept, 1, path="/1") as second,
        left(kept, 1, path="/2"),
    ):
        assert value(registry, "sse_lingering_streams") == 2
        assert len(apps[0].heard) == 1
        async with returning(kept, id_of(second, 1), path="/1") as reader:
            await reader.until("message")
            async with left(kept, 1, path="/3"):
                assert value(registry, "sse_lingering_streams") == 2
                assert [len(each.heard) for each in apps] == [1, 0, 0, 0]
                reader.disconnect()  # it waits again now, and is the youngest
                await asyncio.sleep(0.01)
                assert [len(each.heard) for each in apps] == [1, 0, 1, 0]
                assert value(registry, "sse_lingering_streams") == 2
        assert (await resume(kept, id_of(first, 1), path="/0")).names[0] == "reset"
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0


async def test_a_stream_for_which_there_is_no_room_goes_on_and_is_given_up_like_any() -> None:
    listening = Listening()
    registry = CollectorRegistry()
    store = memory(max_total_bytes=500)
    app = resumable(listening, store=store, registry=registry, **UNCAPPED)
    async with left(app, 2) as first:
        gone = now()
        assert len(store) == 0
        assert first.task is not None
        await first.task
    assert listening.heard[0] <= gone + LINGER + 0.1
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0


@pytest.mark.parametrize("options", [{"linger_seconds": 0}, {"max_lingering": 0}], ids=str)
async def test_an_app_that_must_not_linger_hears_at_once(options: dict[str, Any]) -> None:
    listening = Listening()
    registry = CollectorRegistry()
    store = memory()
    app = resumable(listening, store=store, registry=registry, **options, **UNCAPPED)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.disconnect()
        gone = now()
        assert first.task is not None
        await first.task
    assert listening.heard == [gone]
    assert len(store) == 0
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0
    assert value(registry, "sse_disconnects_total") == 1


async def test_with_no_lingering_a_write_that_the_server_refuses_fails_as_without_us() -> None:
    deaf = Deaf()
    app = resumable(deaf, linger_seconds=0, **UNCAPPED)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.refusal = OSError("gone")
        assert first.task is not None
        with pytest.raises(OSError, match="gone"):
            await first.task
    assert [how for _, how in deaf.ends] == ["OSError"]


async def test_with_no_lingering_a_reader_still_keeps_the_app_going() -> None:
    listening = Listening(9)
    app = resumable(listening, linger_seconds=0)
    async with opened(app) as first:
        await first.until_count(2, "message")
        async with returning(app, id_of(first, 1)) as reader:
            await reader.until("message")
            first.disconnect()
            await reader.until_end()
    assert texts(reader) == counted(2, 9)


@pytest.mark.parametrize(("linger", "retry"), [(0.5, 500), (1, 1000), (15, 2000), (0, 2000)])
async def test_nobody_is_told_to_come_back_later_than_there_is_something_to_come_back_to(
    linger: float, retry: int
) -> None:
    app = resumable(Counting(2), linger_seconds=linger)
    whole = await read(app)
    assert whole.retry == retry
    assert (await resume(app, id_of(whole, 1))).retry == retry


async def test_the_log_tells_one_ending_of_a_stream_that_was_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sse_middleware.stream")
    async with left(resumable(Listening(), **UNCAPPED), 2) as first:
        assert first.task is not None
        await first.task
    (record,) = caplog.records
    told: Any = record
    assert (told.outcome, told.disconnects) == ("disconnected", 1)
    assert told.duration_seconds == pytest.approx(LINGER + 1, abs=0.1)
    assert told.chunks >= LINGER
    assert told.sent_bytes == len(first.body)
