"""The response start of a stream whose limits are being checked, which may wait for Redis.

Theory of operation. An app must not be suspended in its response start. If it is cancelled there,
because its client has disconnected, its body has not begun, and a generator that has not begun
never runs its `finally` blocks: the app leaks what it holds. So the call that sends the start
returns at once, and the start is held. A task makes the check. It then takes the start, and opens
the stream or sends a rejection, so that an app that is silent for long delays no response head.

The next message of the app waits for that task. A cancellation of this wait does not reach the
task: the body has begun, and the stream may belong to another task of the app.

If the client disconnects or the app is cancelled during the check, the task is cancelled, so that
no older stream ends for a stream that has no client. The start is then still held. It is passed on
as it is before the next message, or when the app has returned, so that outer layers see the same
messages as without the middleware. If the app was cancelled, nothing is passed on.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from starlette.types import Message, Send

from sse_middleware.stream.client_gone import is_client_gone

logger = logging.getLogger("sse_middleware")


class HeldStart:
    """Hold a response start until its check is over.

    Args:
        start: the response start.
        send: the server's `send`.

    Attributes:
        app_exception: the exception that the app has raised meanwhile.
    """

    __slots__ = ("_is_raised", "_send", "_start", "_task", "app_exception")

    _task: asyncio.Task[None]

    def __init__(self, start: Message, send: Send) -> None:
        self._start: Message | None = start
        self._send = send
        self._is_raised = False
        self.app_exception: BaseException | None = None

    def begin(self, check: Coroutine[Any, Any, None]) -> None:
        """Run the check, in a task that has the context of the app's call."""
        self._task = asyncio.get_running_loop().create_task(check)

    def take(self) -> Message:
        """Return the start; the caller passes it on, or sends another one in its place."""
        assert self._start is not None
        start, self._start = self._start, None
        return start

    def on_disconnect(self) -> None:
        """Cancel the check, if it is not over."""
        if self._start is not None:
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until the start is passed on or replaced.

        Raises:
            Exception: of the check, or of the server's `send`; it is raised once.
        """
        await asyncio.wait((self._task,))
        exc = None if self._task.cancelled() else self._task.exception()
        if exc is not None and not self._is_raised:
            self._is_raised = True
            raise exc
        if self._start is not None:
            await self._send(self.take())

    async def aclose(self, *, is_aborted: bool) -> None:
        """Wait for the check of an app that has ended before its next message.

        Args:
            is_aborted: whether the task of the app was cancelled. The check is then cancelled too,
                and the start is not passed on.

        Raises:
            Exception: as `wait`, unless it reports that the client is gone, or the app has raised
                an exception of its own.
        """
        try:
            if is_aborted or not isinstance(self.app_exception, Exception | None):
                await self._discard()
            else:
                await self.wait()
        except asyncio.CancelledError:
            await self._discard()
            raise
        except Exception as exc:
            if is_client_gone(exc):
                return
            if self.app_exception is None:
                raise
            text = "The response start of an app that has raised %s has failed: %s."
            logger.warning(text, type(self.app_exception).__name__, type(exc).__name__)

    async def _discard(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
