"""The drain: when its server shuts down, the streams of one event loop end in time.

Each stream is notified at once and may disconnect its client. When the time of a stream is over, it
ends. A server that waits for its connections can then exit.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, Protocol

_WATCH_INTERVAL_SECONDS: Final = 1.0
"""The least time between two looks at the signal handlers, which are slow."""


class Drainable(Protocol):
    """A stream, or a connection that follows one."""

    @property
    def drain_seconds(self) -> float:
        """How long it may continue when its server shuts down."""

    def on_drain(self) -> None:
        """Handle the start of the drain."""

    def on_drain_over(self) -> None:
        """End."""


class Drain:
    """End the streams of a loop in time; all methods are called in that loop.

    Args:
        watch: is called if there is a stream to end, so that a shutdown is noticed.

    Attributes:
        is_draining: whether the server shuts down.
        servers: the number of servers that run in the loop, as far as they have a lifespan.
    """

    __slots__ = (
        "__weakref__",
        "_began_at",
        "_streams",
        "_watch",
        "_watch_at",
        "is_draining",
        "servers",
    )

    def __init__(self, watch: Callable[[], None]) -> None:
        self._watch = watch
        self._watch_at = -math.inf
        self._began_at = math.inf
        self.is_draining = False
        self.servers = 0
        self._streams: dict[Drainable, None] = {}  # smaller than a set

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Drainable) -> None:
        """Add a stream; one that opens during the drain has as much time as the others."""
        self._streams[stream] = None
        now = time.monotonic()
        if now >= self._watch_at:
            self._watch_at = now + _WATCH_INTERVAL_SECONDS
            self._watch()
        if self.is_draining:
            asyncio.get_running_loop().call_soon(self._notify, stream)

    def remove(self, stream: Drainable) -> None:
        """Remove a stream that has ended."""
        self._streams.pop(stream, None)

    def begin(self) -> None:
        """Notify all streams that the server shuts down; once."""
        if not self.is_draining:
            self.is_draining = True
            self._began_at = asyncio.get_running_loop().time()
            for stream in tuple(self._streams):
                self._notify(stream)

    def force(self) -> None:
        """End all streams now."""
        self.begin()
        for stream in tuple(self._streams):
            stream.on_drain_over()

    def seconds_left(self, seconds: float) -> float:
        """Return how many of the `seconds` of a stream are left, all of them before the drain."""
        if not self.is_draining:
            return seconds
        return max(0.0, self._began_at + seconds - asyncio.get_running_loop().time())

    def _notify(self, stream: Drainable) -> None:
        if stream in self._streams:
            asyncio.get_running_loop().call_later(stream.drain_seconds, self._on_time_over, stream)
            stream.on_drain()

    def _on_time_over(self, stream: Drainable) -> None:
        if stream in self._streams:
            stream.on_drain_over()
