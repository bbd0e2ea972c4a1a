"""A write that an app has started and that has to wait, without holding the app for ever.

Theory of operation. If the server applies back-pressure, a write of the app has to wait. The app
must be able to continue all the same: another client may follow the stream, the stream may end, or
the app's call may be cancelled, which must not lose events whose own calls have returned. So the
app does not wait for the future of the server, but for one of ours (`_waiter`), which is set when
that of the server is done. The write is then stepped on, still in the app's task.

If the stream is not kept, a cancellation of the app's task is passed to a write that has only the
bytes of this one call, as without the middleware. It may also come from a timeout of a middleware
around ours, which turns it into its own exception.

If the waiter is set before, by `release`, or if any other write is cancelled, a task of the
background writer continues the write (`BackgroundWriter.take_over`). Only then does a write
change its task.

A future has the attribute `_asyncio_future_blocking`: whether a task is about to wait for it. This
is part of the protocol by which asyncio recognises futures (`asyncio.isfuture`). An object without
it is yielded to the event loop unchanged.
"""

import asyncio
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

from sse_middleware.stream.background_writer import BackgroundWriter, Flushable, SuspendedWrite


class StartedSteps:
    """The steps of a coroutine after the first one, which has been made already.

    Args:
        steps: the steps.
        awaited: the object for which the first one waits.
    """

    __slots__ = ("_awaited", "_steps")

    def __init__(self, steps: Generator[Any, Any, None], awaited: object) -> None:
        self._steps = steps
        self._awaited: tuple[object, ...] = (awaited,)

    def send(self, value: object) -> object:
        """Make the next step with the result of the last one."""
        return self._steps.send(value)

    def throw(self, exc: BaseException) -> object:
        """Make the next step with an exception."""
        return self._steps.throw(exc)

    def __iter__(self) -> Iterator[Any]:
        """Return the iterator, for `yield from`."""
        return self

    def __next__(self) -> object:
        """Return the object for which the next step waits."""
        if self._awaited:
            (awaited,), self._awaited = self._awaited, ()
            return awaited
        return next(self._steps)


class ReleasableWrite:
    """Wait in the task of the app until a write has ended, or the app is released.

    Args:
        stream: the stream of the write.
        writer: continues the write if the app does not wait for it.
        write: the steps of the write, which has been started.
        awaited: the object for which it waits.
        may_wait: whether the app waits at all.
        may_cancel: whether a cancellation of the app's task cancels the write.
    """

    __slots__ = (
        "_awaited",
        "_is_cancelled",
        "_may_cancel",
        "_may_wait",
        "_stream",
        "_waiter",
        "_write",
        "_writer",
    )

    def __init__(
        self,
        stream: Flushable,
        writer: BackgroundWriter,
        write: Generator[Any, Any, None],
        awaited: Any,
        *,
        may_wait: bool,
        may_cancel: bool,
    ) -> None:
        self._stream = stream
        self._writer = writer
        self._write = write
        self._awaited = awaited
        self._may_wait = may_wait
        self._may_cancel = may_cancel
        self._is_cancelled = False
        self._waiter: asyncio.Future[None] | None = None

    def release(self) -> None:
        """Let the app continue."""
        self._may_wait = False
        self._wake()

    def cancel(self) -> None:
        """Let the app continue, and cancel the write."""
        self._is_cancelled = True
        self.release()

    def hand_over(self) -> None:
        """Have the background writer continue the write."""
        if asyncio.isfuture(self._awaited):
            self._awaited._asyncio_future_blocking = True  # noqa: SLF001 - just awaited, as it were
        rest = SuspendedWrite(self._write, self._stream.app_context, self._awaited)
        self._writer.take_over(self._stream, rest)
        if self._is_cancelled and self._stream.write_task is not None:
            self._stream.write_task.cancel()

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait; the steps of the write run between the steps of the app's task."""
        while True:
            try:
                step = yield from self._wait()
            except asyncio.CancelledError as exc:
                if not self._may_cancel:
                    self.hand_over()
                    raise
                step = partial(self._write.throw, exc)
            if step is None:
                self.hand_over()
                return
            try:
                self._awaited = step()
            except StopIteration:
                return

    def _wait(self) -> Generator[Any, Any, Callable[[], object] | None]:
        """Wait for the next step of the write; return `None` if the app is released."""
        awaited = self._awaited
        if not asyncio.isfuture(awaited):
            self._awaited = None  # a second wait for it would be wrong
            result = yield awaited
            return partial(self._write.send, result)
        self._waiter = waiter = awaited.get_loop().create_future()
        awaited._asyncio_future_blocking = False  # noqa: SLF001 - this task does not await it
        awaited.add_done_callback(self._wake)
        try:
            if self._may_wait:
                yield from waiter
        finally:
            self._waiter = None
            awaited.remove_done_callback(self._wake)
        return partial(self._write.send, None) if awaited.done() else None

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
