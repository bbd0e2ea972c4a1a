"""Write for all streams of one event loop, in one task.

Theory of operation. A new task costs more than a write, so the streams of a loop share one task. A
stream with pending bytes is queued by `write_soon`. The task writes in the order of the queue, a
limited number of streams per iteration of the loop, and sleeps on a future (`_wakeup`) if the queue
is empty. It ends after the last stream has detached.

Two conditions hold for a write. It runs in the context (`contextvars`) of its stream. It runs in a
single task from its start to its end, because middlewares around ours may hold locks or timeouts,
which check the current task. Therefore the task steps the coroutine of a write by hand, with
`context.run(coroutine.send, None)`:

- If the coroutine ends in this step, which is usual, the task continues with the next stream.
- If the coroutine yields, because the server applies back-pressure, the task is kept by this write.
  `yield_task` first gives up the role of the active task and starts another task for the queue.
  `_SuspendedWrite` then yields the future to the loop, and steps the coroutine with the result.

`_active` is the token of the active task. A task that finds a different token ends after its write.

If the task is cancelled (`asyncio.run` does this at its end), the write in progress raises, and the
next `write_soon` starts a new task. A `CancelledError` while `task.cancelling()` is 0 comes from a
future of the server: it ends this write, not the task.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, Protocol

_MAX_WRITES_PER_TURN = 64
"""A limit per iteration of the loop, so that a thousand heartbeats do not delay other tasks."""


class Flushable(Protocol):
    """A stream that can have pending bytes."""

    app_context: Context
    write_task: asyncio.Task[Any] | None

    def flush_pending(self) -> Coroutine[Any, Any, None]:
        """Write the pending bytes; may raise only `CancelledError`."""


class BackgroundWriter:
    """Write for the streams of `loop` while there are any."""

    __slots__ = ("_active", "_due", "_loop", "_stream_count", "_tasks", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._stream_count = 0
        self._due: deque[Flushable] = deque()
        self._active: object | None = None  # the token of the active task
        self._wakeup: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def attach(self) -> None:
        """Count a stream that may have pending bytes."""
        self._stream_count += 1

    def detach(self) -> None:
        """Remove a stream from the count; after the last one the task ends."""
        self._stream_count -= 1
        if not self._stream_count:
            self._wake()

    def write_soon(self, stream: Flushable) -> None:
        """Write for `stream` in the next iteration of the loop."""
        self._due.append(stream)
        if self._active is None:
            self._start_task()
        else:
            self._wake()

    def yield_task(self) -> None:
        """Let another task write for the other streams, because this write has to wait."""
        self._active = None
        if self._due:
            self._start_task()

    def _start_task(self) -> None:
        self._active = token = object()
        # Not by the task factory of the loop: an eager task would run inside of the caller.
        task = asyncio.Task(self._run(token), loop=self._loop, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self) -> None:
        if self._wakeup is None:
            return
        if self._wakeup.cancelled():  # by code that cancels all tasks
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
                        # A cancelled future of the server ends this write only.
                if self._due:
                    await asyncio.sleep(0)
        finally:
            if self._active is token:
                self._active = None

    def _start_write(self, stream: Flushable) -> "_SuspendedWrite | None":
        """Start the write of a stream in its context; return the rest if it has to wait."""
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
    """The rest of a write that has to wait, run in the context of its stream."""

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
            except BaseException as exc:  # noqa: BLE001 - any exception is passed to the write
                step = partial(write.throw, exc)
            else:
                step = partial(write.send, result)
            try:
                awaited = run(step)
            except StopIteration:
                return
