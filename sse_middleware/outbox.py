"""The outbox of one stream: one write at a time, in order, by whoever has something to say.

The app writes in its own task. What time makes due (a heartbeat, the end at the cap) is written
in the background, by a task that lives no longer than its write and belongs to the outbox; where
the interpreter can, it runs to its first wait at once and is gone.
"""

import asyncio
import contextvars
import math
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Message, Send

from sse_middleware.state import Due, End, StreamState

_BODY = "http.response.body"


class Outbox:
    """Write one stream, as its state decides.

    Args:
        state: the stream's.
        send: the server's.
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
        "_failure",
        "_late_writes",
        "_lock",
        "_loop",
        "_on_cap",
        "_on_late_write",
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
        on_cap: Callable[[], None],
        on_late_write: Callable[[], None],
    ) -> None:
        self.broken = False
        self.app_writes = 0
        self._state = state
        self._send = send
        self._on_cap = on_cap
        self._on_late_write = on_late_write
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._closed = False
        self._late_writes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._arm_timer()

    async def write(self, message: Message) -> None:
        """Send a message of the app's in its turn; behind the end that the cap made, drop it.

        Raises:
            Exception: what the server has raised, now or in a background write before.
        """
        now = self._loop.time()
        if now >= self._busy_deadline:
            # An app that never lets the loop turn keeps timers from firing, so it looks itself,
            # and gives way for what is due.
            self._look_at_time(now)
            if not self._closed:
                await asyncio.sleep(0)
        if self._closed:
            await self._drop_late_write()
            return
        self.app_writes += 1
        try:
            async with self._lock:
                await self._write_in_turn(message, now)
        finally:
            self.app_writes -= 1

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

    def stop(self) -> None:
        """Let time make nothing due any more."""
        self._busy_deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def settle(self, patience: float) -> None:
        """Stop, wait `patience` seconds for the background writes, and cancel what is left."""
        self.stop()
        if not self._tasks:
            return
        try:
            await asyncio.wait(self._tasks, timeout=patience)
        finally:
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)

    async def _write_in_turn(self, message: Message, now: float) -> None:
        if self._closed:
            return
        if self._failure is not None:
            raise self._failure
        if message["type"] == _BODY and self._state.reason is None:
            body = message.get("body", b"")
            more_body = message.get("more_body", False)
            data = self._state.feed(body if type(body) is bytes else bytes(body), now)
            if not more_body:
                data += self._state.finish(now).data
            elif not data:
                return  # nothing is whole yet
            if data is not body:
                message = body_message(data, more_body=more_body)
        await self._send_or_break(message)
        if self._state.reason is not None:
            self.stop()

    async def _drop_late_write(self) -> None:
        # The first one returns at once, so that an app which is told of its end meanwhile meets
        # it where it waits itself, and not in here: a generator that is cancelled at its `yield`
        # cleans up only when it is collected. Further ones let the loop turn.
        self._late_writes += 1
        if self._late_writes > 1:
            self._on_late_write()
            await asyncio.sleep(0)

    async def _send_or_break(self, message: Message) -> None:
        try:
            await self._send(message)
        except Exception:
            self.broken = True
            raise

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
        self.stop()
        self._busy_deadline = self._state.busy_deadline()
        deadline = self._state.deadline()
        if deadline < math.inf:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._look_at_time(self._loop.time())

    def _close(self, end: End) -> None:
        self._closed = True
        self.stop()
        if end.clean and not self.broken:
            self._write_in_background(self._last_write(body_message(end.data, more_body=False)))

    async def _heartbeat(self) -> None:
        # Another write may have come first; a heartbeat must never wait behind a blocked one.
        if not self._lock.locked() and self._state.reason is None:
            async with self._lock:
                data = self._state.heartbeat(self._loop.time())
                if data:
                    await self._send_and_remember(body_message(data))

    async def _last_write(self, message: Message) -> None:
        async with self._lock:
            if not self.broken:
                await self._send_and_remember(message)

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
