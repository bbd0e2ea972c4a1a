"""How clients disconnect, and how many apps may continue without one."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from tests.support.asgi import Exchange, body, stream_start
from tests.support.resuming import (
    LINGER,
    UNCAPPED,
    Counting,
    Deaf,
    Listening,
    counted,
    id_of,
    left,
    memory,
    now,
    opened,
    read,
    resumable,
    resume,
    returning,
    texts,
    value,
)

pytestmark = pytest.mark.anyio


# How a client disconnects


async def test_a_rejected_write_has_no_effect_while_the_app_lingers() -> None:
    deaf = Deaf(8)
    app = resumable(deaf)
    async with opened(app) as first:
        await first.until_count(2, "message")
        first.refusal = OSError("gone")
        again = await resume(app, first.last_event_id)
    assert texts(again) == counted(3, 8)
    assert [how for _, how in deaf.ends] == ["finished"]


async def test_a_rejected_heartbeat_has_the_effect_of_a_rejected_write() -> None:
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


async def test_a_burst_that_the_server_rejects_is_kept() -> None:
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


def test_a_file_that_the_app_sends_without_a_reader_is_kept(tmp_path: Path) -> None:
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
        first.unblock()  # a server does so after it has lost the connection
        again = await resume(app, held)
    assert texts(again)[:3] == ["3", "4", "5"]
    assert texts(again)[-1] == "8"


async def test_a_client_with_blocked_writes_gets_the_log_on_another_connection() -> None:
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


async def test_a_client_may_return_before_the_first_event() -> None:
    disconnects: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(stream_start())
        await receive()
        disconnects.append(now())

    store = memory()
    kept = resumable(app, store=store)
    async with opened(kept) as first:
        await first.until("start")
        first.disconnect()
        gone = now()
        assert first.task is not None
        await first.task
    assert disconnects == pytest.approx([gone + LINGER], abs=0.01)
    assert len(store) == 0


async def test_a_client_that_left_before_the_response_began_is_gone_at_once() -> None:
    disconnects: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        disconnects.append((await receive())["type"])
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        disconnects.append((await receive())["type"])

    async with opened(resumable(app)) as first:
        first.disconnect()
        assert first.task is not None
        await first.task
    assert disconnects == ["http.disconnect", "http.disconnect"]


# Bounds


async def test_of_too_many_lingering_streams_the_oldest_expires() -> None:
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
        assert len(apps[0].disconnects) == 1
        async with returning(kept, id_of(second, 1), path="/1") as reader:
            await reader.until("message")
            async with left(kept, 1, path="/3"):
                assert value(registry, "sse_lingering_streams") == 2
                assert [len(each.disconnects) for each in apps] == [1, 0, 0, 0]
                reader.disconnect()  # it lingers again, and is the youngest
                await asyncio.sleep(0.01)
                assert [len(each.disconnects) for each in apps] == [1, 0, 1, 0]
                assert value(registry, "sse_lingering_streams") == 2
        assert (await resume(kept, id_of(first, 1), path="/0")).names[0] == "reset"
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0


async def test_a_stream_without_room_in_the_store_continues_and_expires_like_any() -> None:
    listening = Listening()
    registry = CollectorRegistry()
    store = memory(max_total_bytes=500)
    app = resumable(listening, store=store, registry=registry, **UNCAPPED)
    async with left(app, 2) as first:
        gone = now()
        assert len(store) == 0
        assert first.task is not None
        await first.task
    assert listening.disconnects[0] <= gone + LINGER + 0.1
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0


@pytest.mark.parametrize("options", [{"linger_seconds": 0}, {"max_lingering": 0}], ids=str)
async def test_an_app_that_may_not_linger_is_disconnected_at_once(options: dict[str, Any]) -> None:
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
    assert listening.disconnects == [gone]
    assert len(store) == 0
    assert value(registry, "sse_lingering_streams") == 0
    assert value(registry, "sse_streams_active") == 0
    assert value(registry, "sse_disconnects_total") == 1


async def test_without_a_linger_a_rejected_write_fails_as_without_the_middleware() -> None:
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
async def test_the_retry_interval_is_never_longer_than_the_linger(
    linger: float, retry: int
) -> None:
    app = resumable(Counting(2), linger_seconds=linger)
    whole = await read(app)
    assert whole.retry == retry
    assert (await resume(app, id_of(whole, 1))).retry == retry


async def test_the_log_has_one_end_of_a_stream_that_expired(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sse_middleware.stream")
    async with left(resumable(Listening(), **UNCAPPED), 2) as first:
        assert first.task is not None
        await first.task
    (record,) = caplog.records
    logged = SimpleNamespace(**record.__dict__["sse"])
    assert (logged.outcome, logged.disconnects) == ("disconnected", 1)
    assert logged.duration_seconds == pytest.approx(LINGER + 1, abs=0.1)
    assert logged.chunks >= LINGER
    assert logged.sent_bytes == len(first.body)
