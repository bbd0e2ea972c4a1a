"""Freeing: an app that its client blocks goes on, where others wait for what it writes next.

Only a cancellation ends a write that waits in a server. It is ours alone, meets the app's task
nowhere but in that write, and is taken back before anybody else can see it.
"""

import math
from types import CodeType
from typing import TYPE_CHECKING, Any

from sse_middleware.farewell import GRACE_SECONDS

if TYPE_CHECKING:
    import asyncio


class Freeing:
    """Know whether the app in `task` is blocked, and let it go.

    Args:
        task: the one that writes.

    Attributes:
        look_at: when to look again, infinite for no need.
    """

    __slots__ = ("_cancels", "_sent_bytes", "_task", "look_at")

    def __init__(self, task: "asyncio.Task[Any] | None") -> None:
        self._task = task
        self._cancels: int | None = None
        self._sent_bytes = 0
        self.look_at = math.inf

    def is_blocked(self, now: float, sent_bytes: int | None) -> bool:
        """Tell whether the client has taken nothing for a second while the app waits.

        Args:
            now: the time.
            sent_bytes: what was written so far, `None` where the app does not wait.
        """
        if sent_bytes is None:
            self.look_at = math.inf
        elif self.look_at == math.inf or sent_bytes != self._sent_bytes:
            self.look_at = now + GRACE_SECONDS
            self._sent_bytes = sent_bytes
        elif now >= self.look_at:
            self.look_at = math.inf
            return True
        return False

    def interrupt(self, codes: tuple[CodeType, ...], writer: object) -> None:
        """End the write in which the app waits, if it is one of `codes` of `writer`."""
        if self._task is not None and _waits_in(self._task.get_coro(), codes, writer):
            self._cancels = self._task.cancelling()
            self._task.cancel()

    def take_back(self) -> bool:
        """Undo our cancellation; tell whether there was one, and no other."""
        if self._cancels is None or self._task is None:
            return False
        cancels, self._cancels = self._cancels, None
        return self._task.uncancel() <= cancels


def _waits_in(awaited: Any, codes: tuple[CodeType, ...], writer: object) -> bool:
    """Follow what a task awaits down to the write of `writer`, as far as it can be followed."""
    while awaited is not None:
        if getattr(awaited, "cr_code", None) in codes:
            frame = awaited.cr_frame
            if frame is not None and frame.f_locals.get("self") is writer:
                return True
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return False
