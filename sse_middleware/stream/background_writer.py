"""The scribe of one event loop: writes in the background for its streams, one after another.

A task costs more than a write, so the streams share one, which sleeps while there is nothing to
do. Each write runs in the context of its stream and, since middlewares outside of us may hold locks
or time-outs, in one task from its begin to its end: a write that has to wait keeps the task to
itself, and another one goes on with the rest.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, Protocol

_MAX_WRITES_PER_TURN = 64
"""How many writes come in one turn of the loop, so that a thousand heartbeats delay nobody."""


class Flushable(Protocol):
    """Whoever has something to be written."""

    app_context: Context
    write_task: asyncio.Task[Any] | None

    def flush_pending(self) -> Coroutine[Any, Any, None]:
        """Write it; only a cancellation may come out of here."""


class BackgroundWriter:
    """Write for the streams of `loop` as long as there are any."""

    __slots__ = ("_active", "_due", "_loop", "_stream_count", "_tasks", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._stream_count = 0
        self._due: deque[Flushable] = deque()
        self._active: object | None = None  # one for each term of duty
        self._wakeup: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def attach(self) -> None:
        """Take note of a stream that may have something to be written."""
        self._stream_count += 1

    def detach(self) -> None:
        """Take note that a stream has nothing more; the last one sends the scribe home."""
        self._stream_count -= 1
        if not self._stream_count:
            self._wake()

    def write_soon(self, stream: Flushable) -> None:
        """Write for `author` in the next turn of the loop."""
        self._due.append(stream)
        if self._active is None:
            self._start_task()
        else:
            self._wake()

    def yield_task(self) -> None:
        """Let another task go on, because this one has to wait."""
        self._active = None
        if self._due:
            self._start_task()

    def _start_task(self) -> None:
        self._active = token = object()
        # Not by the loop's factory: an eager one would begin in the middle of who asks.
        task = asyncio.Task(self._run(token), loop=self._loop, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self) -> None:
        if self._wakeup is None:
            return
        if self._wakeup.cancelled():  # by somebody who cancels all tasks
            self._start_task()
        elif not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _run(self, token: object) -> None:
        try:
            while self._active is token and (self._due or self._stream_count):
                if not self._due:
                    await self._sleep()
                for _ in range(min(len(self._due), _MAX_WRITES_PER_TURN)):
                    if self._active is not token:
                        break
                    try:
                        suspended = self._start_write(self._due.popleft())
                        if suspended is not None:
                            await suspended
                    except asyncio.CancelledError:
                        task = asyncio.current_task()
                        if task is None or task.cancelling():
                            raise
                        # A server whose own future was cancelled ends that write, and not ours.
                if self._due:
                    await asyncio.sleep(0)
        finally:
            if self._active is token:
                self._active = None

    def _start_write(self, stream: Flushable) -> "_SuspendedWrite | None":
        """Write for an author in its context; return what is to be awaited, if it has to wait."""
        write = stream.flush_pending()
        try:
            awaited = stream.app_context.run(write.send, None)
        except StopIteration:
            return None
        self.yield_task()
        stream.write_task = asyncio.current_task()
        return _SuspendedWrite(write, stream.app_context, awaited)

    async def _sleep(self) -> None:
        self._wakeup = wakeup = self._loop.create_future()
        try:
            await wakeup
        finally:
            if self._wakeup is wakeup:
                self._wakeup = None


class _SuspendedWrite:
    """What is left of a write that has to wait, in the context of its author."""

    __slots__ = ("_awaited", "_context", "_write")

    def __init__(
        self, write: Coroutine[Any, Any, None], app_context: Context, awaited: object
    ) -> None:
        self._write = write
        self._context = app_context
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        write, run, awaited = self._write, self._context.run, self._awaited
        while True:
            try:
                result = yield awaited
            except BaseException as exc:  # noqa: BLE001 - whatever it is, it is for the write
                step = partial(write.throw, exc)
            else:
                step = partial(write.send, result)
            try:
                awaited = run(step)
            except StopIteration:
                return
