"""Drain: when their server ends, the streams of one event loop end in time.

Each hears of it at once, and may let its client go; what still runs when its time is over ends. A
server that waits for its connections can end then.
"""

import asyncio
from typing import Protocol


class Drainable(Protocol):
    """A stream, or a reader of one."""

    @property
    def drain_seconds(self) -> float:
        """How long it may go on when its server ends."""

    def on_drain(self) -> None:
        """Hear that the server ends."""

    def on_drain_over(self) -> None:
        """End."""


class Drain:
    """End the streams of a loop in time; all is called in that loop.

    Attributes:
        begun: whether the server ends.
    """

    __slots__ = ("__weakref__", "_streams", "is_draining")

    def __init__(self) -> None:
        self.is_draining = False
        self._streams: dict[Drainable, None] = {}  # smaller than a set

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Drainable) -> None:
        """Take note of a stream; one that comes late has as much time as all."""
        self._streams[stream] = None
        if self.is_draining:
            asyncio.get_running_loop().call_soon(self._notify, stream)

    def remove(self, stream: Drainable) -> None:
        """Take note that a stream has ended."""
        self._streams.pop(stream, None)

    def begin(self) -> None:
        """Tell all streams that the server ends; once."""
        if not self.is_draining:
            self.is_draining = True
            for stream in tuple(self._streams):
                self._notify(stream)

    def force(self) -> None:
        """End all streams now."""
        self.begin()
        for stream in tuple(self._streams):
            stream.on_drain_over()

    def _notify(self, stream: Drainable) -> None:
        if stream in self._streams:
            asyncio.get_running_loop().call_later(stream.drain_seconds, self._on_time_over, stream)
            stream.on_drain()

    def _on_time_over(self, stream: Drainable) -> None:
        if stream in self._streams:
            stream.on_drain_over()
