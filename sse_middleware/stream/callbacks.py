"""The interface between a stream and the object that runs its app."""

import asyncio
from typing import Final, Protocol


class StreamCallbacks(Protocol):
    """The object that runs the app of a stream."""

    def on_cap(self) -> None:
        """Handle the cap of the stream or of its connection."""

    def on_end(self) -> None:
        """Handle the end of the stream while the app still runs."""

    def watch_for_disconnect(self) -> None:
        """Receive the client's disconnect if the app does not."""

    async def on_write_after_end(self) -> None:
        """Handle a message that the app writes after the end."""


class _NoCallbacks:
    """The callbacks of a stream after its app has returned."""

    def on_cap(self) -> None:
        """Do nothing."""

    def on_end(self) -> None:
        """Do nothing."""

    def watch_for_disconnect(self) -> None:
        """Do nothing."""

    async def on_write_after_end(self) -> None:
        """Yield to the loop: a task that still writes may never wait for anything else."""
        await asyncio.sleep(0)


NO_CALLBACKS: Final[StreamCallbacks] = _NoCallbacks()
