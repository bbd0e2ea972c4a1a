"""One reader of a channel: when it waits, when it gives up, and what it says then.

It pulls, so that its client sets the pace; time runs only while it waits for a worker. It ends
once: behind a terminal event, or with an `error` of its own.
"""

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from sse_middleware.channels.base import Channels, Feed
from sse_middleware.channels.events import (
    ACK,
    BEGINNING,
    ERROR,
    ChannelEvent,
    EventFormat,
    Position,
    ReadResult,
    parse_place,
)
from sse_middleware.errors import StoreError

logger = logging.getLogger("sse_middleware")

NOW: Final = "now"
FROM_BEGINNING: Final = "beginning"
_OUTAGE_SECONDS: Final = 30.0
"""How long a reader waits for a store that is out of reach: a restart is no reason to fail."""
_PAUSE_SECONDS: Final = 0.5
_MESSAGES: Final = {
    "worker_timeout": "No worker has taken the job in time.",
    "idle_timeout": "The worker has not been heard of for too long.",
    "truncated": "Events that would come next are not kept any more.",
    "gone": "There is no such place in the channel, or not any more.",
    "store_unavailable": "The store of events is out of reach.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a channel is read.

    Attributes:
        ack_timeout: within how many seconds a worker has to say that it is at it, `None`: ever.
        idle_timeout: how many seconds there may be without an event then, `None`: any number.
        terminal: the names of the events behind which nothing is read.
        history: `beginning`, `now`, or the id of an event.
        form: how events are written.
    """

    ack_timeout: float | None
    idle_timeout: float | None
    terminal: frozenset[str]
    history: str
    form: EventFormat

    def failure(self, code: str) -> ChannelEvent:
        """Return what tells a client why there is no more."""
        error = {"type": "server_error", "code": code, "message": _MESSAGES[code]}
        data = json.dumps({"error": error}, separators=(",", ":"))
        return self.form.write(ERROR, data, None)


class ChannelReader:
    """Read a channel for one client.

    Args:
        open_channels: returns where it is kept, for the event loop that runs.
        channel: its name.
        manner: how it is read.
    """

    def __init__(self, open_channels: Callable[[], Channels], channel: str, manner: Manner) -> None:
        self._open_channels = open_channels
        self._channel = channel
        self._manner = manner

    async def events(self) -> AsyncGenerator[ChannelEvent, None]:
        """Hand the events out, and an `error` where there can be no more of them."""
        self._channels = self._open_channels()
        now, ack_timeout = asyncio.get_running_loop().time(), self._manner.ack_timeout
        self._ack_at = math.inf if ack_timeout is None else now + ack_timeout
        self._lost_at = math.inf  # since when the store is out of reach
        form, terminal = self._manner.form, self._manner.terminal
        place: Position | None = None
        with self._channels.follow(self._channel) as feed:
            try:
                while True:
                    page = await self._next(feed, place)
                    place = page.place
                    for entry in page.entries:
                        if entry.event == ACK:
                            self._ack_at = math.inf
                        yield entry.write(form)
                        if entry.event in terminal:
                            return
            except _NoMore as exc:
                code = exc.code
        if code:
            yield self._manner.failure(code)

    async def _next(self, feed: Feed, place: Position | None) -> ReadResult:
        """Return what comes next, when there is something.

        Raises:
            _NoMore: there never will be.
        """
        self._heard_at = asyncio.get_running_loop().time()  # a slow client is no silent worker
        while True:
            try:
                page = await feed.read(await self._start() if place is None else place)
                self._lost_at = math.inf
                if page.entries:
                    return page
                if not page.is_whole:
                    raise _NoMore("truncated")
                place = page.place
                await self._wait(feed)
            except StoreError as exc:
                await self._bear(exc)

    async def _start(self) -> Position:
        """Return where to begin."""
        history = self._manner.history
        if history == FROM_BEGINNING:
            return BEGINNING
        tip = await self._channels.tip(self._channel)
        if history == NOW:
            return tip.place
        place = parse_place(history)
        if place is None or (place.number or 0) > (tip.place.number or 0):
            raise _NoMore("gone")
        if place == tip.place and tip.event in self._manner.terminal:
            raise _NoMore("")  # it has had all
        return place

    async def _wait(self, feed: Feed) -> None:
        """Wait for more, as long as there may be."""
        deadline, idle = self._ack_at, self._manner.idle_timeout
        if is_acked := deadline == math.inf:
            deadline = math.inf if idle is None else self._heard_at + idle
        if deadline == math.inf:  # the usual case, and time-outs cost
            await feed.wait()
            return
        try:
            async with asyncio.timeout_at(deadline):
                await feed.wait()
        except TimeoutError:
            if is_acked:
                raise _NoMore("idle_timeout") from None
            if not (await self._channels.tip(self._channel)).is_acked:
                raise _NoMore("worker_timeout") from None
            self._ack_at = math.inf  # it has, in front of the place where this reader came in

    async def _bear(self, exc: StoreError) -> None:
        """Wait for a store that is out of reach, but not for ever."""
        now = asyncio.get_running_loop().time()
        if self._lost_at == math.inf:
            logger.warning("a channel cannot be read for now: %s", exc)
            self._lost_at = now
        if now > self._lost_at + _OUTAGE_SECONDS:
            raise _NoMore("store_unavailable")
        await asyncio.sleep(_PAUSE_SECONDS)


class _NoMore(Exception):  # noqa: N818 - it is no error
    """There can be no more events.

    Attributes:
        code: why, for the client; `""` where there is nothing to say.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
