"""The seam between what writes a stream and whoever runs its app."""

import asyncio
from typing import Final, Protocol


class Owner(Protocol):
    """Whoever runs the app of an outbox."""

    def on_cap(self) -> None:
        """Hear that the time of the stream or its connection was over."""

    def on_end(self) -> None:
        """Hear that the stream has ended while the app was still at it."""

    def on_silence(self) -> None:
        """Hear that somebody should listen for the client's leaving."""

    async def on_late_write(self) -> None:
        """Hear that the app writes behind the end."""


class _Nobody:
    """Who owns an outbox when its app has left."""

    def on_cap(self) -> None:
        """Tell nobody."""

    def on_end(self) -> None:
        """Tell nobody."""

    def on_silence(self) -> None:
        """Listen no more."""

    async def on_late_write(self) -> None:
        """Let the loop turn: whoever still writes may never wait for anything else."""
        await asyncio.sleep(0)


NOBODY_OWNS: Final[Owner] = _Nobody()
