"""The farewell: how an app leaves whose stream we have ended.

It hears `http.disconnect`, also where it is listening at that moment, and has some time to go. Who
has not heard of it by then, or still writes, is cancelled, so that its `finally` blocks run; who
has heard and writes no more is cleaning up, or runs a background task, as behind any disconnect.
Each cancellation of ours is taken back before anybody else can see it.
"""

import asyncio
from collections.abc import Callable

GRACE_SECONDS = 1.0
"""How long an app may take to leave, and a last write to get through."""
SHUTDOWN_GRACE_SECONDS = 0.5
"""The same where the server ends."""


class AppCancellation:
    """See the app in `task` off.

    Args:
        task: the one that runs the request, and so the app.
        cancels: how many cancellations `task` had when the request began.
        listeners: the tasks that wait for the server's next message.
        app_waits: tells whether a write of the app is under way.
        grace_seconds: how long the app may take.

    Attributes:
        heard: whether the app was told by a disconnect.
    """

    __slots__ = (
        "_app_waits",
        "_cancel_count",
        "_cancelled",
        "_discarded_writes",
        "_grace_timer",
        "_is_grace_over",
        "_task",
        "disconnect_delivered",
    )

    def __init__(
        self,
        task: asyncio.Task[object],
        *,
        cancel_count: int,
        listeners: tuple[asyncio.Task[object], ...],
        is_app_writing: Callable[[], bool],
        grace_seconds: float,
    ) -> None:
        self._task = task
        self._cancel_count = cancel_count
        self._app_waits = is_app_writing
        self._cancelled = False
        self._is_grace_over = False
        self._discarded_writes = 0
        self.disconnect_delivered = False
        for listener in listeners:
            listener.cancel()
        self._grace_timer = asyncio.get_running_loop().call_later(
            grace_seconds, self._on_grace_over
        )

    async def discard_write(self) -> None:
        """Drop what the app writes behind its end.

        The first time at once, so that an app which is told of its end meanwhile meets it where it
        waits itself, and not in here: a generator that is cancelled at its `yield` cleans up only
        when it is collected. Further ones let the loop turn.
        """
        self._discarded_writes += 1
        if self._discarded_writes > 1:
            if self._is_grace_over:
                self._cancel()
            await asyncio.sleep(0)

    def uncancel(self) -> bool:
        """Undo our cancellation of the app; tell whether there was no other one."""
        if not self._cancelled:
            return False
        self._cancelled = False
        return self._task.uncancel() <= self._cancel_count

    async def aclose(self) -> None:
        """Cancel no more, and undo a cancellation that came when the app had left already."""
        self._grace_timer.cancel()
        if self._cancelled:
            only_ours = self.uncancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not only_ours:
                    raise

    def _on_grace_over(self) -> None:
        self._is_grace_over = True
        if not self.disconnect_delivered or self._app_waits():
            self._cancel()

    def _cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()
