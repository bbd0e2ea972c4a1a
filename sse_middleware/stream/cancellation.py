"""Stop the app after its stream has ended.

Theory of operation. When a stream ends on our side (cap, eviction, drain, a client that blocks),
the app still runs. It is stopped in two steps.

First, the app is disconnected. Its pending calls of `receive()` are cancelled, and the responder
turns each of these cancellations into an `http.disconnect`; later calls return it at once. An app
that ends by itself does so within the grace period.

Second, when the grace period is over, the task of the app is cancelled, so that its `finally`
blocks run, in two cases: the disconnect has not been delivered, or a write of the app is in
progress. An app that has received the disconnect and does not write is cleaning up, or runs a
background task. It may continue, as after any disconnect. If it writes again later, it is cancelled
then.

Messages that the app sends after the end are discarded. The first is discarded without yielding, so
that a cancellation meets the app in its own code, not in `send`: a generator that is cancelled at
its `yield` runs its cleanup only when it is collected. Later messages yield to the loop, since the
app may never wait for anything else.

Each cancellation is undone (`task.uncancel()`) before code outside of the middleware sees it. The
count of `task.cancelling()` at the response start shows whether there was another cancellation. If
the app has returned before the cancellation is delivered, `aclose` receives and undoes it.
"""

import asyncio
import enum
from collections.abc import Callable
from typing import Final

GRACE_SECONDS = 1.0
"""The time for an app to return."""
LAST_WRITE_SECONDS = 5.0
"""The time for the last bytes of a stream that did not finish, for a client that reads slowly."""
SHUTDOWN_GRACE_SECONDS = 0.5
"""The same, for both, if the server shuts down."""


class Disconnect(enum.IntEnum):
    """How far the disconnect of a client has come."""

    NONE = 0
    RECEIVED = 1
    """The server has announced it."""
    DELIVERED = 2
    """The app has received it."""


NO_DISCONNECT: Final = Disconnect.NONE


def grace_seconds(*, is_urgent: bool) -> float:
    """Return the time for an app to return."""
    return SHUTDOWN_GRACE_SECONDS if is_urgent else GRACE_SECONDS


def last_write_seconds(*, is_urgent: bool) -> float:
    """Return the time for the last bytes of a stream that did not finish."""
    return SHUTDOWN_GRACE_SECONDS if is_urgent else LAST_WRITE_SECONDS


class AppCancellation:
    """Disconnect the app that runs in `task`, and cancel it after the grace period.

    Args:
        task: the task of the request, in which the app runs.
        cancel_count: the value of `task.cancelling()` when the response began.
        listeners: the tasks that wait in `receive()`.
        is_app_writing: returns whether a write of the app is in progress.
        disconnect_delivered: as the attribute.
        is_urgent: whether the server shuts down, so that the grace period is short.

    Attributes:
        disconnect_delivered: whether the app has received `http.disconnect`.
        interrupted: the listeners that were cancelled.
    """

    __slots__ = (
        "_cancel_count",
        "_cancelled",
        "_discarded_writes",
        "_grace_timer",
        "_is_app_writing",
        "_is_grace_over",
        "_task",
        "disconnect_delivered",
        "interrupted",
    )

    def __init__(
        self,
        task: asyncio.Task[object],
        *,
        cancel_count: int,
        listeners: tuple[asyncio.Task[object], ...],
        is_app_writing: Callable[[], bool],
        disconnect_delivered: bool,
        is_urgent: bool,
    ) -> None:
        self._task = task
        self._cancel_count = cancel_count
        self._is_app_writing = is_app_writing
        self._cancelled = False
        self._is_grace_over = False
        self._discarded_writes = 0
        self.disconnect_delivered = disconnect_delivered
        # The current task is about to receive the disconnect.
        current = asyncio.current_task()
        self.interrupted = tuple(task for task in listeners if task is not current)
        for listener in self.interrupted:
            listener.cancel()
        self._grace_timer = asyncio.get_running_loop().call_later(
            grace_seconds(is_urgent=is_urgent), self._on_grace_over
        )

    async def discard_write(self) -> None:
        """Discard a message that the app writes after the end."""
        self._discarded_writes += 1
        if self._discarded_writes > 1:
            if self._is_grace_over:
                self._cancel()
            await asyncio.sleep(0)

    def uncancel(self) -> bool:
        """Undo our cancellation of the app; return whether it was the only one."""
        if not self._cancelled:
            return False
        self._cancelled = False
        return self._task.uncancel() <= self._cancel_count

    async def aclose(self) -> None:
        """Stop the timer, and undo a cancellation that has not been delivered."""
        self._grace_timer.cancel()
        if self._cancelled:
            is_only_ours = self.uncancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not is_only_ours:
                    raise

    def _on_grace_over(self) -> None:
        self._is_grace_over = True
        if not self.disconnect_delivered or self._is_app_writing():
            self._cancel()

    def _cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()
