"""Receive the messages of the server while the app does not, to notice that its client has left.

A message that is not a disconnect is stored for the next `receive()` of the app. After the last
part of a body only a disconnect can follow. Layers that have read the body themselves (Elastic's
agent does) may return it again at each call and never a disconnect; they are asked no more.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context

from starlette.types import Message, Receive

_CANCEL_SECONDS = 1.0
"""The time for a layer around ours to end its `receive` when it is cancelled."""


def _ignore() -> None:
    """Ignore a disconnect after the request."""


class Prefetch:
    """Receive for one app.

    Args:
        receive: the server's.
        context: the context of the app's call, in which the layers around ours run. Tracers, for
            example, find their current span there.
        on_disconnect: is called when the client has disconnected.
    """

    __slots__ = (
        "_context",
        "_has_body",
        "_is_over",
        "_message",
        "_on_disconnect",
        "_receive",
        "_task",
    )

    def __init__(
        self, receive: Receive, context: Context, on_disconnect: Callable[[], None]
    ) -> None:
        self._receive = receive
        self._context = context
        self._on_disconnect = on_disconnect
        self._task: asyncio.Task[Message] | None = None
        self._message: Message | None = None
        self._has_body = False
        self._is_over = False

    def start(self) -> None:
        """Receive the next message, unless there is one already."""
        if self._task is None and self._message is None:
            self._receive_next()

    async def take(self) -> Message | None:
        """Wait for the message on its way, and return the stored one, `None` without one.

        Raises:
            Exception: of the server's `receive`.
        """
        while (task := self._task) is not None and self._message is None:
            if not task.done():
                await asyncio.wait((task,))  # a cancelled call of the app does not cancel it
            if not task.cancelled():
                task.result()
            self._on_received(task)
        message, self._message = self._message, None
        return message

    async def aclose(self) -> None:
        """Receive nothing more, and release the objects of the request."""
        self._is_over = True
        self._on_disconnect = _ignore
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=_CANCEL_SECONDS)

    def _receive_next(self) -> None:
        if not self._is_over:
            # Not by the loop's task factory: an eager task would enter the context a second time.
            loop = asyncio.get_running_loop()
            self._task = asyncio.Task(self._call(), loop=loop, context=self._context)
            self._task.add_done_callback(self._on_received, context=self._context)

    async def _call(self) -> Message:
        return await self._receive()

    def _on_received(self, task: asyncio.Task[Message]) -> None:
        if task is not self._task:
            return  # handled already
        self._task = None
        if task.cancelled() or task.exception() is not None:
            self._is_over = True
            return
        message = task.result()
        if message["type"] == "http.disconnect":
            self._is_over = True
            self._on_disconnect()
        elif self._has_body:
            self._is_over = True  # the same body again
        else:
            self._message = message
            self._has_body = not message.get("more_body", False)
            if self._has_body:
                self._receive_next()
