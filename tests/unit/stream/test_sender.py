"""The sender by itself: one write at a time, in order; its failures, and its end."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sse_middleware.http.response_head import body_message
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.stream.releasable_write import ReleasableWrite
from sse_middleware.stream.sender import STALL_SECONDS, Sender
from sse_middleware.stream.timers import current_timers
from tests.support.observers import RecordingObserver

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": []}
VAR: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")


class Server:
    """A server whose writes can be blocked and can fail, and the owner of the sender."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.contexts: list[str] = []
        self.done = self.in_progress = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.written = self.failed = 0
        self.observer = RecordingObserver()
        self.record = StreamRecord("s", "t", "/", "plain")
        self.sender = Sender(self.send, current_timers(), self.record, [self.observer])
        self.sender.owner = self

    async def send(self, message: Any) -> None:
        assert self.in_progress == 0
        self.in_progress += 1
        self.sent.append(message)
        self.contexts.append(VAR.get())
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            self.done += 1
        finally:
            self.in_progress -= 1

    def write(self, data: bytes, message: Any = None) -> ReleasableWrite | None:
        return self.sender.write(data, message or body_message(data), 1, current_timers().clock())

    def on_written(self) -> None:
        assert self.sender.is_idle
        self.written += 1

    def on_write_failed(self) -> None:
        assert self.sender.is_broken
        self.failed += 1

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if "body" in message]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    server.gate.set()
    server.sender.detach()
    await turns()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def blocked_write(server: Server, data: bytes) -> "asyncio.Future[None]":
    """Write data that the client does not read; return the app's wait."""
    server.gate.clear()
    suspended = server.write(data)
    assert suspended is not None

    async def wait() -> None:
        await suspended

    return asyncio.ensure_future(wait())


# Writes, in order and together


async def test_a_write_after_a_pause_is_made_at_once_as_the_same_message(server: Server) -> None:
    message = {"type": "http.response.body", "body": b"a", "more_body": True}
    assert server.write(b"a", message) is None
    assert server.sent[0] is message
    assert server.sender.is_idle
    assert server.record.sent_bytes == 1


async def test_no_bytes_are_no_write(server: Server) -> None:
    assert server.write(b"") is None
    server.sender.append(b"")
    assert server.sender.flush() is None
    server.sender.flush_soon()
    await turns()
    assert server.sent == []


async def test_pending_bytes_leave_with_the_next_write_as_one_message(server: Server) -> None:
    for data in (b"a", b"b"):
        server.sender.append(data)
    assert server.sent == []
    assert server.sender.pending_bytes == 2
    server.write(b"c")
    assert server.bodies == [b"abc"]
    assert (server.sender.pending_bytes, server.record.sent_bytes) == (0, 3)


async def test_flush_soon_writes_in_the_next_iteration_of_the_loop(server: Server) -> None:
    server.sender.append(b"a")
    server.sender.flush_soon()
    server.sender.append(b"b")
    assert server.sent == []
    await turns()
    assert server.bodies == [b"ab"]


async def test_all_bytes_during_a_write_follow_it_as_one_message(server: Server) -> None:
    waiting = blocked_write(server, b"a")
    for data in (b"b", b"c"):
        assert server.write(data) is None  # the app of this write does not wait
    server.sender.flush_soon()
    await turns()
    assert server.bodies == [b"a"]
    server.gate.set()
    await waiting
    await turns()
    assert server.bodies == [b"a", b"bc"]
    assert server.sender.is_idle


async def test_bytes_before_the_response_start_follow_it(server: Server) -> None:
    server.gate.clear()
    start = asyncio.ensure_future(server.sender.send_start(START))
    await turns()
    assert server.write(b"a") is None
    assert server.sent == [START]
    server.gate.set()
    await start
    server.sender.flush_now()
    assert server.bodies == [b"a"]


async def test_other_messages_keep_their_place(server: Server) -> None:
    other = {"type": "http.response.debug", "info": {}}
    server.sender.append(b"a")
    server.sender.append(other)
    server.sender.flush_soon()
    for data in (b"b", b"c"):
        server.sender.append(data)
    server.sender.append(other)
    server.sender.flush_soon()
    server.sender.finish(b"d", ends=True)
    assert server.sender.message_count
    server.sender.flush_now()
    assert [message.get("body", message["type"]) for message in server.sent] == [
        b"a",
        "http.response.debug",
        b"bc",
        "http.response.debug",
        b"d",
    ]
    assert [message.get("more_body") for message in server.sent] == [True, None, True, None, False]
    assert server.record.sent_bytes == 4


@pytest.mark.parametrize("data", [b"", b"last"])
async def test_the_end_is_one_message_with_all_that_is_pending(server: Server, data: bytes) -> None:
    server.sender.append(b"a")
    server.sender.finish(data, ends=True)
    server.sender.flush_soon()
    await turns()
    assert server.sent == [{"type": "http.response.body", "body": b"a" + data, "more_body": False}]
    assert server.written == 1


async def test_the_end_follows_the_write_in_progress(server: Server) -> None:
    waiting = blocked_write(server, b"a")
    server.sender.finish(b"z", ends=True)
    server.sender.flush_soon()
    await turns()
    assert (server.bodies, server.written) == ([b"a"], 0)
    server.gate.set()
    await waiting
    await turns()
    assert server.sent[-1] == {"type": "http.response.body", "body": b"z", "more_body": False}
    assert server.written == 1


async def test_pending_events_are_those_that_the_server_has_not_taken(server: Server) -> None:
    sender = server.sender
    waiting = blocked_write(server, b"a")
    assert sender.pending_events == 0
    sender.append(b"b", 2)
    server.write(b"c")
    assert sender.pending_events == 3
    server.gate.set()
    await waiting
    await turns()
    assert sender.pending_events == 0


async def test_writes_of_the_background_run_in_the_context_of_the_app(server: Server) -> None:
    async def app() -> None:
        VAR.set("app")
        await server.sender.send_start(START)

    await asyncio.create_task(app())
    server.sender.append(b"a")
    server.sender.flush_soon()
    await turns()
    assert server.contexts == ["app", "app"]


async def test_a_long_write_is_reported_as_a_stall(server: Server) -> None:
    waiting = blocked_write(server, b"a")
    await asyncio.sleep(2 * STALL_SECONDS)
    server.gate.set()
    await waiting
    server.write(b"b")
    assert server.observer.stalls == [pytest.approx(2 * STALL_SECONDS)]


# Back-pressure


async def test_the_app_waits_for_its_write_and_can_be_released(server: Server) -> None:
    waiting = blocked_write(server, b"a")
    await turns()
    assert not waiting.done()
    server.sender.release_app()
    await turns()
    assert waiting.done()
    assert server.sender.is_writing
    server.sender.append(b"b")
    server.gate.set()
    await turns(10)
    assert server.bodies == [b"a", b"b"]


@pytest.mark.parametrize(
    ("may_cancel", "done"),
    [
        pytest.param(True, 1, id="its own write is cancelled"),
        pytest.param(False, 2, id="a kept stream loses no bytes"),
    ],
)
async def test_a_cancelled_call_of_the_app(server: Server, done: int, *, may_cancel: bool) -> None:
    server.sender.app_may_cancel = may_cancel
    waiting = blocked_write(server, b"a")
    server.sender.append(b"b")
    await turns()
    waiting.cancel()
    await turns()
    assert waiting.cancelled()
    assert not server.sender.is_broken
    server.gate.set()
    await turns(10)
    assert (server.bodies, server.done) == ([b"a", b"b"], done)


async def test_an_app_that_may_not_wait_continues_at_once(server: Server) -> None:
    server.sender.app_may_wait = False
    waiting = blocked_write(server, b"a")
    await turns()
    assert waiting.done()
    assert server.sender.is_writing
    server.gate.set()
    await turns()
    assert server.done == 1


async def test_calls_that_wait_for_room_continue_when_bytes_have_left(server: Server) -> None:
    waiting = blocked_write(server, b"a")
    server.sender.append(b"b")
    room = asyncio.ensure_future(server.sender.wait_for_room())
    await turns()
    assert not room.done()
    server.gate.set()
    await turns(10)
    assert room.done()
    await waiting


# The end of a connection


async def test_cut_discards_what_is_pending_and_ends_the_response_later(server: Server) -> None:
    waiting = blocked_write(server, b"a")
    server.sender.append(b"b")
    server.sender.cut(ends=True)
    assert server.sender.pending_bytes == 0
    await turns()
    assert waiting.done()  # the app continues
    server.gate.set()
    await turns(10)
    assert [(message["body"], message["more_body"]) for message in server.sent] == [
        (b"a", True),
        (b"", False),
    ]


async def test_cut_without_an_end_leaves_the_response_to_the_server(server: Server) -> None:
    blocked_write(server, b"a")
    server.sender.append(b"b")
    server.sender.cut(ends=False)
    server.gate.set()
    await turns(10)
    assert server.bodies == [b"a"]


async def test_nothing_is_written_after_abandon(server: Server) -> None:
    waiting = blocked_write(server, b"a")
    server.sender.append(b"b")
    server.sender.abandon()
    await turns()
    assert waiting.done()
    server.gate.set()
    await turns(10)
    assert server.write(b"c") is None
    server.sender.append(b"d")
    server.sender.flush_soon()
    await turns()
    assert server.bodies == [b"a"]
    assert server.sender.is_idle


async def test_detach_cancels_the_write_that_no_call_of_the_app_waits_for() -> None:
    server = Server()
    waiting = blocked_write(server, b"a")
    await turns()
    server.sender.release_app()
    await turns()
    assert waiting.done()
    assert server.in_progress == 1
    server.sender.detach()
    await turns()
    assert (server.in_progress, server.done, server.failed) == (0, 0, 0)
    assert server.sender.is_idle


async def test_detach_cancels_a_write_that_the_app_waits_for() -> None:
    server = Server()
    waiting = blocked_write(server, b"a")
    await turns()
    server.sender.detach()
    await turns(10)
    assert waiting.done()
    assert (server.in_progress, server.done, server.failed) == (0, 0, 0)


# Failures


class ClientDisconnect(Exception):  # noqa: N818 - the name counts
    """As Starlette's."""


class BrokenResourceError(Exception):
    """As AnyIO's."""


class OtherError(BrokenResourceError):
    """A subclass of it."""


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(), OSError(), TimeoutError(), ClientDisconnect(), OtherError()],
    ids=repr,
)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
async def test_a_client_that_is_gone_is_no_error_of_the_program(
    server: Server, caplog: pytest.LogCaptureFixture, error: Exception, *, at_once: bool
) -> None:
    server.error = error
    if at_once:
        assert server.write(b"a") is None
    else:
        waiting = blocked_write(server, b"a")
        server.sender.append(b"b")
        server.gate.set()
        await waiting
    assert server.sender.lost is error
    assert server.sender.failure is None
    assert (server.sender.is_broken, server.sender.pending_bytes, server.failed) == (True, 0, 1)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    server.write(b"c")
    await turns()
    assert server.bodies == [b"a"]


@pytest.mark.parametrize("error", [RuntimeError("Expected ASGI message"), ValueError()], ids=repr)
@pytest.mark.parametrize("in_background", [True, False])
async def test_an_error_of_the_program_is_logged_and_kept(
    server: Server, caplog: pytest.LogCaptureFixture, error: Exception, *, in_background: bool
) -> None:
    server.error = error
    if in_background:
        server.sender.append(b"a")
        server.sender.flush_soon()
        await turns()
    else:
        server.write(b"a")
    assert server.sender.failure is error
    assert server.sender.lost is error
    assert (server.sender.is_broken, server.failed) == (True, 1)
    (logged,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert type(error).__name__ in logged.getMessage()
    assert "stream s" in logged.getMessage()


@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError()], ids=repr)
async def test_an_exception_of_the_response_start_is_raised_and_not_kept(
    server: Server, error: Exception
) -> None:
    server.error = error
    with pytest.raises(type(error)) as raised:
        await server.sender.send_start(START)
    assert raised.value is error
    assert (server.sender.failure, server.sender.lost) == (None, error)
    assert (server.sender.is_broken, server.failed) == (True, 1)


async def test_a_write_that_the_server_cancels_leaves_a_gap_after_which_nothing_follows(
    server: Server,
) -> None:
    server.error = asyncio.CancelledError()
    server.sender.append(b"a")
    server.sender.flush_soon()
    server.sender.append(b"b")
    await turns()
    assert isinstance(server.sender.lost, ConnectionAbortedError)
    assert (server.sender.is_broken, server.failed) == (True, 1)
    server.error = None
    server.write(b"c")
    await turns()
    assert server.bodies == [b"ab"]
