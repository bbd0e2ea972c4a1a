"""The seam between what writes a stream and whoever runs its app."""

import asyncio
from typing import Final, Protocol


class StreamCallbacks(Protocol):
    """Whoever runs the app of an outbox."""

    def on_cap(self) -> None:
        """Hear that the time of the stream or its connection was over."""

    def on_end(self) -> None:
        """Hear that the stream has ended while the app was still at it."""

    def watch_for_disconnect(self) -> None:
        """Hear that somebody should listen for the client's leaving."""

    async def on_write_after_end(self) -> None:
        """Hear that the app writes behind the end."""


class _NoCallbacks:
    """Who owns an outbox when its app has left."""

    def on_cap(self) -> None:
        """Tell nobody."""

    def on_end(self) -> None:
        """Tell nobody."""

    def watch_for_disconnect(self) -> None:
        """Listen no more."""

    async def on_write_after_end(self) -> None:
        """Let the loop turn: whoever still writes may never wait for anything else."""
        await asyncio.sleep(0)


NO_CALLBACKS: Final[StreamCallbacks] = _NoCallbacks()
