"""Interrupt a write in which the app waits for a client that does not read.

Theory of operation. If a stream is kept, its app must not wait for one client while others follow
the log. A write that waits in the server can only be ended by a cancellation of its task, which is
the task of the app. This cancellation must not be visible to the app or to other code:

- `interrupt` cancels the task only if it is suspended in a write of the stream. It follows the
  chain of awaited coroutines (`cr_await`, `gi_yieldfrom`) from the coroutine of the task, until it
  finds the code of our write with the stream as its `self`. If the chain cannot be followed,
  because a coroutine is not Python's own or the app writes in another task, the app stays blocked
  until the server ends the write.
- The write catches the `CancelledError` and calls `uncancel`. If this was the only cancellation of
  the task, the write returns as if it had succeeded, and the app continues. If other code has
  cancelled the task too, `task.uncancel()` returns a higher count, and the exception is raised.

The server may have sent a part of the bytes, so nothing else is written to this connection.
"""

from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class BlockedWrite:
    """A write of the app in `task` that may be blocked.

    Args:
        task: the task that writes, `None` if it is not known.
    """

    __slots__ = ("_cancel_count", "_task")

    def __init__(self, task: "asyncio.Task[Any] | None") -> None:
        self._task = task
        self._cancel_count: int | None = None

    def interrupt(self, codes: tuple[CodeType, ...], writer: object) -> None:
        """Cancel the write in which the app waits, if its code is one of `codes` of `writer`."""
        if self._task is not None and _is_suspended_in(self._task.get_coro(), codes, writer):
            self._cancel_count = self._task.cancelling()
            self._task.cancel()

    def uncancel(self) -> bool:
        """Undo our cancellation; return whether there was one, and no other."""
        if self._cancel_count is None or self._task is None:
            return False
        cancel_count, self._cancel_count = self._cancel_count, None
        return self._task.uncancel() <= cancel_count


def _is_suspended_in(awaited: Any, codes: tuple[CodeType, ...], writer: object) -> bool:
    """Return whether a coroutine is suspended in a write of `writer`.

    CPython 3.11 can crash if it is asked for the `cr_await` of a coroutine that runs.
    """
    while awaited is not None:
        if getattr(awaited, "cr_running", False) or getattr(awaited, "gi_running", False):
            return False
        if getattr(awaited, "cr_code", None) in codes:
            frame = awaited.cr_frame
            if frame is not None and frame.f_locals.get("self") is writer:
                return True
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return False
