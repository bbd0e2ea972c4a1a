"""The drain: when its server shuts down, the streams of one event loop end in time.

Each stream is notified at once and may disconnect its client. When the time of a stream is over, it
ends. A server that waits for its connections can then exit.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Final, Protocol

logger = logging.getLogger("sse_middleware")

_WATCH_INTERVAL_SECONDS: Final = 1.0
"""The least time between two looks at the signal handlers, which are slow."""
_ENDS_PER_TURN: Final = 64
"""The number of streams that end in one turn of the loop."""


class Drainable(Protocol):
    """A stream, or a connection that follows one."""

    @property
    def drain_seconds(self) -> float:
        """How long it may continue when its server shuts down."""

    def on_drain(self) -> None:
        """Handle the start of the drain."""

    def on_drain_over(self) -> bool:
        """End; return whether that cuts the answer of an app."""


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
        "_cut",
        "_due",
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
        self._streams: dict[Drainable, float | None] = {}  # with the times at which they end
        self._due = set[float]()  # of those times, the ones with a timer
        self._cut = 0  # answers that have not been reported yet

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
            loop = asyncio.get_running_loop()
            loop.call_soon(self._notify, stream, loop.time())

    def remove(self, stream: Drainable) -> None:
        """Remove a stream that has ended."""
        self._streams.pop(stream, None)

    def begin(self) -> None:
        """Notify all streams that the server shuts down; once."""
        if not self.is_draining:
            self.is_draining = True
            self._began_at = asyncio.get_running_loop().time()
            for stream in tuple(self._streams):
                self._notify(stream, self._began_at)

    def force(self) -> None:
        """End all streams now."""
        self.begin()
        for stream in tuple(self._streams):
            self._end(stream)
        self._report_cuts()

    def seconds_left(self, seconds: float) -> float:
        """Return how many of the `seconds` of a stream are left, all of them before the drain."""
        if not self.is_draining:
            return seconds
        return max(0.0, self._began_at + seconds - asyncio.get_running_loop().time())

    def _notify(self, stream: Drainable, since: float) -> None:
        if stream in self._streams:
            at = since + stream.drain_seconds
            if at not in self._due:
                self._due.add(at)
                asyncio.get_running_loop().call_at(at, self._on_time_over, at)
            self._streams[stream] = at
            stream.on_drain()

    def _on_time_over(self, at: float) -> None:
        self._due.remove(at)
        self._end_next(iter([one for one, ends_at in self._streams.items() if ends_at == at]))

    def _end_next(self, streams: Iterator[Drainable]) -> None:
        """End some streams in each turn of the loop, so that others get their turns."""
        loop = asyncio.get_running_loop()
        some = tuple(islice(streams, _ENDS_PER_TURN))
        for stream in some:
            loop.call_soon(self._end, stream)  # an error in one must not stop the others
        loop.call_soon(partial(self._end_next, streams) if some else self._report_cuts)

    def _end(self, stream: Drainable) -> None:
        if stream in self._streams:
            self._cut += stream.on_drain_over()

    def _report_cuts(self) -> None:
        cut, self._cut = self._cut, 0
        if cut:
            logger.warning(
                "Answers of apps that the shutdown has cut before their end: %d. "
                "SSE_DRAIN_SECONDS is the time that they have: set it to your longest answer, and "
                "the time after which the process is killed to a few seconds more.",
                cut,
            )
