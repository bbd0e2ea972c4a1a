"""The interfaces between a stream, the object that runs its app, and the writes to its client."""

import asyncio
from typing import Final, Protocol

from starlette.types import Message


class StreamCallbacks(Protocol):
    """The object that runs the app of a stream."""

    def warn(self, warning: str) -> None:
        """Log a warning about the stream, once per route: `cap` or `raw` of `opener.WARNINGS`."""

    def on_end(self) -> None:
        """Handle the end of the stream while the app still runs."""

    def watch_for_disconnect(self) -> None:
        """Receive the client's disconnect if the app does not."""

    async def on_write_after_end(self) -> None:
        """Handle a message that the app writes after the end."""


class _NoCallbacks:
    """The callbacks of a stream after its app has returned."""

    def warn(self, warning: str) -> None:
        """Do nothing."""

    def on_end(self) -> None:
        """Do nothing."""

    def watch_for_disconnect(self) -> None:
        """Do nothing."""

    async def on_write_after_end(self) -> None:
        """Yield to the loop: a task that still writes may never wait for anything else."""
        await asyncio.sleep(0)


NO_CALLBACKS: Final[StreamCallbacks] = _NoCallbacks()


async def discard(_: Message) -> None:
    """Discard a message that a task of the app writes after the end of its request."""
    await NO_CALLBACKS.on_write_after_end()


class SenderOwner(Protocol):
    """The connection that writes."""

    def on_written(self) -> None:
        """Handle that no write is in progress, and nothing is pending."""

    def on_write_failed(self) -> None:
        """Handle that nothing more can be written."""


class _NoSenderOwner:
    """The owner of a sender whose request has ended."""

    def on_written(self) -> None:
        """Do nothing."""

    def on_write_failed(self) -> None:
        """Do nothing."""


NO_SENDER_OWNER: Final[SenderOwner] = _NoSenderOwner()
