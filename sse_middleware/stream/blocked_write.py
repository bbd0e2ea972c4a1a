"""Freeing: an app that its client blocks goes on, where others wait for what it writes next.

Only a cancellation ends a write that waits in a server. It is ours alone, meets the app's task
nowhere but in that write, and is taken back before anybody else can see it.
"""

from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class BlockedWrite:
    """Let the app in `task` go.

    Args:
        task: the one that writes, `None` where it is not known.
    """

    __slots__ = ("_cancel_count", "_task")

    def __init__(self, task: "asyncio.Task[Any] | None") -> None:
        self._task = task
        self._cancel_count: int | None = None

    def interrupt(self, codes: tuple[CodeType, ...], writer: object) -> None:
        """End the write in which the app waits, if it is one of `codes` of `writer`."""
        if self._task is not None and _is_suspended_in(self._task.get_coro(), codes, writer):
            self._cancel_count = self._task.cancelling()
            self._task.cancel()

    def uncancel(self) -> bool:
        """Undo our cancellation; tell whether there was one, and no other."""
        if self._cancel_count is None or self._task is None:
            return False
        cancel_count, self._cancel_count = self._cancel_count, None
        return self._task.uncancel() <= cancel_count


def _is_suspended_in(awaited: Any, codes: tuple[CodeType, ...], writer: object) -> bool:
    """Follow what a task awaits down to the write of `writer`, as far as it can be followed."""
    while awaited is not None:
        if getattr(awaited, "cr_code", None) in codes:
            frame = awaited.cr_frame
            if frame is not None and frame.f_locals.get("self") is writer:
                return True
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return False
