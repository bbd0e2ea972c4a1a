"""Write for all streams of one event loop, in one task.

Theory of operation. A new task costs more than a write, so the streams of a loop share one task. A
stream with pending bytes is queued by `write_soon`. The task writes in the order of the queue, a
limited number of streams per iteration of the loop, and sleeps on a future (`wakeup`) if the queue
is empty. It ends after the last stream has detached.

Two conditions hold for each write. It runs in the context (`contextvars`) of its stream. It runs in
a single task from its start to its end, because middlewares around ours may hold locks or timeouts,
which check the current task. Therefore a write is a generator, whose steps are those of the
server's coroutine, and the task steps it by hand, with `context.run`:

- If the write ends in its first step, which is usual, the task is free for the next write.
- If it yields, because the server applies back-pressure, the task is kept by this write:
  it gives up the role of the active task, and another task is started for the queue.
  `SuspendedWrite` then yields the future to the loop, and steps the write with the result.

`take_over` is the exception: a write that an app has started in its own task, and that the app is
not to wait for any longer, is continued here.

If the task is cancelled (`asyncio.run` does this at its end), the write in progress raises, and the
next write starts a new task. A `CancelledError` while `task.cancelling()` is 0 comes from a future
of the server: it ends this write, not the task.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final, Protocol

DONE: Final = object()
"""The result of a step in which a write has ended."""
_MAX_WRITES_PER_TURN: Final = 64
"""A limit per iteration of the loop, so that a thousand heartbeats do not delay other tasks."""


class Flushable(Protocol):
    """A stream that can have pending bytes."""

    app_context: Context
    write_task: asyncio.Task[Any] | None

    def flush_pending(self) -> Generator[Any, Any, None]:
        """Return the steps of a write of the pending bytes; may raise only `CancelledError`."""


class BackgroundWriter:
    """Write for the streams of `loop` while there are any.

    Attributes:
        stream_count: the number of streams that may have pending bytes.
    """

    __slots__ = ("_active", "_due", "_loop", "_workers", "stream_count")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.stream_count = 0
        self._due: deque[Flushable] = deque()
        self._active: _Worker | None = None
        self._workers: set[_Worker] = set()

    def detach(self) -> None:
        """Remove a stream from the count; after the last one the task ends."""
        self.stream_count -= 1
        if not self.stream_count and self._active is not None:
            self._active.wake()

    def write_soon(self, stream: Flushable) -> None:
        """Write for `stream` in the next iteration of the loop."""
        self._due.append(stream)
        self._free_worker().wake()

    def take_over(self, stream: Flushable, write: "SuspendedWrite") -> None:
        """Continue a write of `stream` that has started elsewhere, in a task of its own."""
        worker = self._start_worker()
        worker.suspended = write
        stream.write_task = worker.task

    def _free_worker(self) -> "_Worker":
        """Return the worker whose task is active, and start one if there is none."""
        worker = self._active
        if worker is None or worker.task.cancelling():  # by code that cancels all tasks
            self._active = worker = self._start_worker()
        return worker

    def _start_worker(self) -> "_Worker":
        worker = _Worker()
        # In an empty context, so that the task does not keep the current request alive. Not by the
        # task factory of the loop: an eager task would run inside of the caller.
        context, on_done = Context(), partial(self._on_done, worker)
        worker.task = asyncio.Task(self._run(worker), loop=self._loop, context=context)
        worker.task.add_done_callback(on_done, context=context)
        self._workers.add(worker)
        return worker

    def _on_done(self, worker: "_Worker", _: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if self._active is worker:
            self._active = None
        if worker.suspended is not None:  # the task was cancelled before it has run
            worker.suspended.cancel()

    async def _run(self, worker: "_Worker") -> None:
        try:
            while self._active is worker and (self._due or self.stream_count):
                if not self._due:
                    await worker.sleep(self._loop)
                for _ in range(min(len(self._due), _MAX_WRITES_PER_TURN)):
                    if self._active is not worker:
                        break
                    self._step(worker, self._due.popleft())
                    if worker.suspended is not None:
                        await worker.finish_write()
                if self._due and self._active is worker:
                    await asyncio.sleep(0)
            if worker.suspended is not None:
                await worker.finish_write()
        finally:
            if self._active is worker:
                self._active = None

    def _step(self, worker: "_Worker", stream: Flushable) -> None:
        """Start the write of a stream in its context; keep the rest if it has to wait."""
        write = stream.flush_pending()
        context = stream.app_context
        try:
            awaited = context.run(next, write, DONE)
        except asyncio.CancelledError:
            if worker.task.cancelling():
                raise
            return  # a cancelled future of the server ends this write only
        if awaited is DONE:
            return
        self._active = None
        stream.write_task = worker.task
        worker.suspended = SuspendedWrite(write, context, awaited)
        if self._due:
            self._free_worker()


class _Worker:
    """One task of the writer.

    Attributes:
        task: the task.
        suspended: the write that the task has to continue, `None` if it is free.
    """

    __slots__ = ("_wakeup", "suspended", "task")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.suspended: SuspendedWrite | None = None
        self._wakeup: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def sleep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wakeup = loop.create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    async def finish_write(self) -> None:
        """Continue the suspended write until it has ended."""
        suspended, self.suspended = self.suspended, None
        if suspended is None:
            return
        try:
            await suspended
        except asyncio.CancelledError:
            if self.task.cancelling():
                raise
            # A cancelled future of the server ends this write only.


class SuspendedWrite:
    """The rest of a write that has to wait, run in the context of its stream."""

    __slots__ = ("_awaited", "_context", "_write")

    def __init__(
        self, write: Generator[Any, Any, None], app_context: Context, awaited: object
    ) -> None:
        self._write = write
        self._context = app_context
        self._awaited = awaited

    def cancel(self) -> None:
        """Cancel the write without a task; it does not wait again."""
        with suppress(StopIteration, asyncio.CancelledError):
            self._context.run(self._write.throw, asyncio.CancelledError())
        self._write.close()

    def __await__(self) -> Generator[Any, Any, None]:
        write, run, awaited = self._write, self._context.run, self._awaited
        step: Callable[[], object]
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
