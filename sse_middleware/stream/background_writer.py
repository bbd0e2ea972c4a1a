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

_AT_ONCE = 64
"""How many writes come in one turn of the loop, so that a thousand heartbeats delay nobody."""


class Flushable(Protocol):
    """Whoever has something to be written."""

    context: Context
    waits_in: asyncio.Task[Any] | None

    def write_held(self) -> Coroutine[Any, Any, None]:
        """Write it; only a cancellation may come out of here."""


class BackgroundWriter:
    """Write for the streams of `loop` as long as there are any."""

    __slots__ = ("_asleep", "_authors", "_due", "_loop", "_on_duty", "_tasks")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._authors = 0
        self._due: deque[Flushable] = deque()
        self._on_duty: object | None = None  # one for each term of duty
        self._asleep: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self) -> None:
        """Take note of a stream that may have something to be written."""
        self._authors += 1

    def leave(self) -> None:
        """Take note that a stream has nothing more; the last one sends the scribe home."""
        self._authors -= 1
        if not self._authors:
            self._wake()

    def write_soon(self, author: Flushable) -> None:
        """Write for `author` in the next turn of the loop."""
        self._due.append(author)
        if self._on_duty is None:
            self._begin_duty()
        else:
            self._wake()

    def hand_over(self) -> None:
        """Let another task go on, because this one has to wait."""
        self._on_duty = None
        if self._due:
            self._begin_duty()

    def _begin_duty(self) -> None:
        self._on_duty = duty = object()
        # Not by the loop's factory: an eager one would begin in the middle of who asks.
        task = asyncio.Task(self._serve(duty), loop=self._loop, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self) -> None:
        if self._asleep is None:
            return
        if self._asleep.cancelled():  # by somebody who cancels all tasks
            self._begin_duty()
        elif not self._asleep.done():
            self._asleep.set_result(None)

    async def _serve(self, duty: object) -> None:
        try:
            while self._on_duty is duty and (self._due or self._authors):
                if not self._due:
                    await self._sleep()
                for _ in range(min(len(self._due), _AT_ONCE)):
                    if self._on_duty is not duty:
                        break
                    try:
                        rest = self._begin_write(self._due.popleft())
                        if rest is not None:
                            await rest
                    except asyncio.CancelledError:
                        task = asyncio.current_task()
                        if task is None or task.cancelling():
                            raise
                        # A server whose own future was cancelled ends that write, and not ours.
                if self._due:
                    await asyncio.sleep(0)
        finally:
            if self._on_duty is duty:
                self._on_duty = None

    def _begin_write(self, author: Flushable) -> "_Rest | None":
        """Write for an author in its context; return what is to be awaited, if it has to wait."""
        write = author.write_held()
        try:
            waits_for = author.context.run(write.send, None)
        except StopIteration:
            return None
        self.hand_over()
        author.waits_in = asyncio.current_task()
        return _Rest(write, author.context, waits_for)

    async def _sleep(self) -> None:
        self._asleep = asleep = self._loop.create_future()
        try:
            await asleep
        finally:
            if self._asleep is asleep:
                self._asleep = None


class _Rest:
    """What is left of a write that has to wait, in the context of its author."""

    __slots__ = ("_context", "_waits_for", "_write")

    def __init__(
        self, write: Coroutine[Any, Any, None], context: Context, waits_for: object
    ) -> None:
        self._write = write
        self._context = context
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        write, run, waits_for = self._write, self._context.run, self._waits_for
        while True:
            try:
                result = yield waits_for
            except BaseException as exc:  # noqa: BLE001 - whatever it is, it is for the write
                step = partial(write.throw, exc)
            else:
                step = partial(write.send, result)
            try:
                waits_for = run(step)
            except StopIteration:
                return
