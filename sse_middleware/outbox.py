"""The outbox of one stream: one write at a time, in order, by whoever has something to say.

The app writes in its own task. What time makes due (a heartbeat, the end at the cap) is written
in the background, by a task that lives no longer than its write and belongs to the outbox; where
the interpreter can, it runs to its first wait at once and is gone.
"""

import asyncio
import contextvars
import logging
import math
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.types import Message, Send

from sse_middleware.families import Family
from sse_middleware.observers import Observer
from sse_middleware.state import Due, End, StreamState
from sse_middleware.wire import has_data

logger = logging.getLogger("sse_middleware.stream")

_BODY = "http.response.body"
_FILE = "http.response.pathsend"
_FILE_CHUNK_BYTES = 1 << 16
_STALL_SECONDS = 0.1
"""A write that takes longer is told of as a stall; one that suspends takes some milliseconds."""


class Outbox:
    """Write one stream, as its state decides.

    Args:
        state: the stream's.
        send: the server's.
        pause: the least time between two content events, in seconds.
        observers: who is told of the stream.
        on_cap: called when the cap has ended the stream while the app was still at it.
        on_late_write: called when the app writes behind that end.

    Attributes:
        broken: whether the server has refused a write, so that the client is gone.
        app_writes: how many writes of the app are under way, or wait for their turn.
    """

    __slots__ = (
        "_busy_deadline",
        "_closed",
        "_context",
        "_debug",
        "_failure",
        "_late_writes",
        "_lock",
        "_loop",
        "_next_content_at",
        "_observers",
        "_on_cap",
        "_on_late_write",
        "_pause",
        "_send",
        "_state",
        "_tasks",
        "_timer",
        "app_writes",
        "broken",
    )

    def __init__(
        self,
        state: StreamState,
        send: Send,
        *,
        pause: float,
        observers: Sequence[Observer],
        on_cap: Callable[[], None],
        on_late_write: Callable[[], None],
    ) -> None:
        self.broken = False
        self.app_writes = 0
        self._state = state
        self._send = send
        self._pause = pause
        self._next_content_at = 0.0
        self._observers = observers
        self._on_cap = on_cap
        self._on_late_write = on_late_write
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._debug = logger.isEnabledFor(logging.DEBUG)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._closed = False
        self._late_writes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._arm_timer()
        for observer in observers:
            observer.opened(state.record)

    async def write(self, message: Message) -> None:
        """Send a message of the app's in its turn; behind the end that the cap made, drop it.

        Raises:
            Exception: what the server has raised, now or in a background write before.
        """
        now = self._loop.time()
        if self._tasks and not self._closed and not all(task.done() for task in self._tasks):
            await asyncio.sleep(0)  # the loop has not turned since a heartbeat came due: it must
        if now >= self._busy_deadline:
            self._look_at_time(now)  # nor do timers fire where it never turns
        if self._closed:
            await self._drop_late_write()
            return
        self.app_writes += 1
        try:
            if self._state.reason is not None:
                await self._send_in_turn(message)
            elif self._state.family is Family.OFF:
                self._measure(message, now)
                await self._send_in_turn(message)
            elif message["type"] == _BODY:
                await self._write_body(message, now)
            elif message["type"] == _FILE:
                await self._write_file(message["path"])
            else:
                await self._send_in_turn(message)
        finally:
            self.app_writes -= 1
        if self._state.reason is not None:
            self._stop()
            self._tell_end(self._state.reason)

    async def write_first(self, start: Message, data: bytes) -> None:
        """Send the response start, and at once the first bytes of ours."""
        async with self._lock:
            await self._send_or_break(start)
            if data:
                await self._send_or_break(body_message(data))

    def fail(self) -> bool:
        """End the stream because the app has raised an exception; tell whether it was open."""
        if self._closed or self.broken or self._state.reason is not None:
            return False
        self._close(self._state.fail(self._loop.time()))
        return True

    def client_left(self) -> None:
        """Take note that nobody reads any more; the cap still holds for the app."""
        self.broken = True
        self._tell_end("disconnected")

    async def settle(self, patience: float, outcome: str) -> None:
        """Stop, wait `patience` seconds for the background writes, and cancel what is left.

        Args:
            patience: in seconds.
            outcome: how the stream has ended, where nothing else has ended it.
        """
        self._stop()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=patience)
        finally:
            for task in self._tasks:
                task.cancel()
            self._tell_end("disconnected" if self.broken else outcome)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)

    def _stop(self) -> None:
        self._busy_deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell_end(self, outcome: str) -> None:
        record = self._state.record
        if record.outcome is None:
            record.outcome = self._state.reason or outcome
            record.duration_seconds = self._state.duration_seconds(self._loop.time())
            for observer in self._observers:
                observer.ended(record)

    async def _write_body(self, message: Message, now: float) -> None:
        body = message.get("body", b"")
        more_body = message.get("more_body", False)
        parts = self._feed(body, now)
        if self._pause and parts:
            await self._send_paced(parts)
            parts = []
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if not more_body and self._state.tells_end:
            # FastAPI's event streams end the response before the exception of their generator
            # comes through, by cancelling us in the next turn of the loop.
            await asyncio.sleep(0)
        if not more_body and not self._closed:
            data += self._state.finish(now).data
        elif not data:
            return  # nothing is whole yet
        if data is not body:
            message = body_message(data, more_body=more_body)
        await self._send_in_turn(message)

    def _feed(self, body: Any, now: float) -> list[bytes]:
        record = self._state.record
        before = record.chunks
        parts = self._state.feed(body if type(body) is bytes else bytes(body), now)
        if self._debug:
            for number in range(before + 1, record.chunks + 1):
                logger.debug("event %d of stream %s", number, record.stream_id)
        return parts

    async def _write_file(self, path: str) -> None:
        """Write the file that the server was to send by itself: ours stands around its events."""
        with await asyncio.to_thread(open, path, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, _FILE_CHUNK_BYTES):
                await self._write_body(body_message(chunk), self._loop.time())
        await self._write_body(body_message(b"", more_body=False), self._loop.time())

    def _measure(self, message: Message, now: float) -> None:
        """Count what passes untouched."""
        if message["type"] != _BODY:
            return
        self._feed(message.get("body", b""), now)
        if not message.get("more_body", False):
            self._state.finish(now)

    async def _send_paced(self, parts: list[bytes]) -> None:
        for part in parts:
            if has_data(part):
                await asyncio.sleep(max(0.0, self._next_content_at - self._loop.time()))
                self._next_content_at = self._loop.time() + self._pause
            await self._send_in_turn(body_message(part))

    async def _send_in_turn(self, message: Message) -> None:
        async with self._lock:
            if self._closed:
                return
            if self._failure is not None:
                raise self._failure
            await self._send_or_break(message)

    async def _drop_late_write(self) -> None:
        # The first one returns at once, so that an app which is told of its end meanwhile meets
        # it where it waits itself, and not in here: a generator that is cancelled at its `yield`
        # cleans up only when it is collected. Further ones let the loop turn.
        self._late_writes += 1
        if self._late_writes > 1:
            self._on_late_write()
            await asyncio.sleep(0)

    async def _send_or_break(self, message: Message) -> None:
        began = self._loop.time()
        try:
            await self._send(message)
        except Exception:
            self.broken = True
            raise
        took = self._loop.time() - began
        record = self._state.record
        record.sent_bytes += len(message.get("body", b""))
        if took > _STALL_SECONDS:
            for observer in self._observers:
                observer.stalled(record, took)

    def _look_at_time(self, now: float) -> None:
        due = self._state.due(now)
        if due is Due.CAP:
            self._close(self._state.reach_cap(now))
            self._on_cap()
            return
        if due is Due.HEARTBEAT:
            self._state.plan_heartbeat(now)
            if not self._lock.locked() and not self.broken:
                self._write_in_background(self._heartbeat())
        self._arm_timer()

    def _arm_timer(self) -> None:
        self._stop()
        self._busy_deadline = self._state.busy_deadline()
        deadline = self._state.deadline()
        if deadline < math.inf:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._look_at_time(self._loop.time())
        if self._state.record.outcome is None:
            for observer in self._observers:
                observer.progressed(self._state.record)

    def _close(self, end: End) -> None:
        self._closed = True
        self._stop()
        if end.clean and not self.broken:
            self._write_in_background(self._last_write(body_message(end.data, more_body=False)))
        else:
            self._tell_end("disconnected")

    async def _heartbeat(self) -> None:
        # Another write may have come first; a heartbeat must never wait behind a blocked one.
        if not self._lock.locked() and self._state.reason is None:
            async with self._lock:
                data = self._state.heartbeat(self._loop.time())
                if data:
                    if self._debug:
                        logger.debug("heartbeat of stream %s", self._state.record.stream_id)
                    await self._send_and_remember(body_message(data))

    async def _last_write(self, message: Message) -> None:
        async with self._lock:
            if not self.broken:
                await self._send_and_remember(message)
            self._tell_end("disconnected")

    async def _send_and_remember(self, message: Message) -> None:
        try:
            await self._send_or_break(message)
        except Exception as exc:  # noqa: BLE001 - the app is told at its next write
            self._failure = exc

    def _write_in_background(self, write: Coroutine[Any, Any, None]) -> None:
        task = _start(write, self._loop, self._context)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def body_message(data: bytes, *, more_body: bool = True) -> Message:
    """Return the ASGI message that carries `data`."""
    return {"type": _BODY, "body": data, "more_body": more_body}


def _start(
    write: Coroutine[Any, Any, None],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context,
) -> asyncio.Task[None]:
    if sys.version_info >= (3, 12):
        return asyncio.Task(write, loop=loop, context=context, eager_start=True)
    return loop.create_task(write, context=context)
