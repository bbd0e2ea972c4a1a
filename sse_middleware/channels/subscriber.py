"""One reader of a channel: its timeouts, and the events that it adds itself.

A reader pulls, so the client determines the speed. A timeout runs only while the reader waits for a
worker. It ends once: after a terminal event, or with an `error` event of its own.
"""

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sse_middleware.channels.base import Channels, Feed
from sse_middleware.channels.events import (
    BEGINNING,
    ERROR,
    ChannelEvent,
    EventFormat,
    Position,
    ReadResult,
    StoredEvent,
    parse_position,
)
from sse_middleware.channels.session_messages import messages_before_end
from sse_middleware.errors import StoreError
from sse_middleware.stores.circuit_breaker import Backoff

logger = logging.getLogger("sse_middleware")

NOW: Final = "now"
FROM_BEGINNING: Final = "beginning"
_MAX_OUTAGE_SECONDS: Final = 30.0
"""Bounds the time for which a reader waits for a store; a restart of Redis takes less."""
_FIRST_PAUSE_SECONDS: Final = 0.5
"""The first pause of a reader after a failure; there may be very many readers."""
_MESSAGES: Final = {
    "worker_timeout": "No worker has published an event in time.",
    "idle_timeout": "The worker has not been heard of for too long.",
    "truncated": "Events that would come next are not kept any more.",
    "gone": "There is no such place in the channel, or not any more.",
    "store_unavailable": "The store of events is out of reach.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a channel is read.

    Attributes:
        ack_timeout: the time in seconds within which the channel must have an event, `None` for no
            limit.
        idle_timeout: the longest time in seconds without an event after that, `None` for no limit.
        terminal: the names of the events that end the reader.
        history: `beginning`, `now`, or the id of an event.
        format: how events are written.
        with_messages: whether the plain messages of its session are read too.
    """

    ack_timeout: float | None
    idle_timeout: float | None
    terminal: frozenset[str]
    history: str
    format: EventFormat
    with_messages: bool = False

    def failure(self, code: str) -> ChannelEvent:
        """Return the event that contains the reason why the reader ends."""
        error = {"type": "server_error", "code": code, "message": _MESSAGES[code]}
        data = json.dumps({"error": error}, separators=(",", ":"))
        return self.format.write(ERROR, data, None)


class ChannelReader:
    """Read a channel for one client.

    Args:
        open_channels: returns the storage of channels for the running event loop.
        channel: the name of the channel.
        options: how it is read.
    """

    def __init__(
        self, open_channels: Callable[[], Channels], channel: str, options: ReadOptions
    ) -> None:
        self._open_channels = open_channels
        self._channel = channel
        self._options = options
        self._outage: _Outage | None = None  # while the store is out of reach

    async def events(self) -> AsyncGenerator[ChannelEvent, None]:
        """Yield the events, and an `error` if the reader cannot continue."""
        self._channels = self._open_channels()
        now, ack_timeout = asyncio.get_running_loop().time(), self._options.ack_timeout
        self._ack_deadline = math.inf if ack_timeout is None else now + ack_timeout
        event_format, terminal = self._options.format, self._options.terminal
        position: Position | None = None
        with_messages = self._options.with_messages
        with self._channels.follow(self._channel, with_messages=with_messages) as feed:
            try:
                while True:
                    result = await self._next(feed, position)
                    position = result.position
                    self._ack_deadline = math.inf  # any event shows that a worker is there
                    entries: Sequence[StoredEvent] = result.entries
                    if with_messages:
                        entries = messages_before_end(entries, terminal)
                    for entry in entries:
                        yield entry.write(event_format)
                        if entry.event in terminal:
                            return
            except _ReaderEnded as exc:
                code = exc.code
        if code:
            yield self._options.failure(code)

    async def _next(self, feed: Feed, position: Position | None) -> ReadResult:
        """Return the next events, at least one.

        Raises:
            _ReaderEnded: there can be no more.
        """
        self._read_at = asyncio.get_running_loop().time()  # a slow client is not an idle worker
        while True:
            is_waiting = False
            try:
                result = await feed.read(await self._start() if position is None else position)
                # Without news, a read sends no query. It is a success only after a failed read.
                if result.entries or (self._outage and not self._outage.was_waiting):
                    self._end_outage()
                if result.entries:
                    return result
                if not result.is_whole:
                    raise _ReaderEnded("truncated")
                position = result.position
                is_waiting = True
                deadline = self._deadline()
                if deadline == math.inf:  # the usual case; a timeout would cost time
                    await feed.wait()
                else:
                    await self._wait_until(deadline, feed)
                self._end_outage()
            except StoreError as exc:
                await self._wait_for_store(exc, was_waiting=is_waiting)

    async def _start(self) -> Position:
        """Return the position of the first event to read."""
        history = self._options.history
        if history == FROM_BEGINNING:
            return BEGINNING
        last = await self._channels.last_event(self._channel)
        if history == NOW:
            return last.position
        position = parse_position(history)
        if position is None or (position.number or 0) > (last.position.number or 0):
            raise _ReaderEnded("gone")
        if position == last.position and last.event in self._options.terminal:
            raise _ReaderEnded("")  # the client has all events
        return position

    def _deadline(self) -> float:
        """Return the time at which the current wait for events ends, `math.inf` for none."""
        idle = self._options.idle_timeout
        if self._ack_deadline < math.inf or idle is None:
            return self._ack_deadline
        return self._read_at + idle

    async def _wait_until(self, deadline: float, feed: Feed) -> None:
        """Wait for more events, within a timeout."""
        try:
            async with asyncio.timeout_at(deadline):
                await feed.wait()
        except TimeoutError:
            if self._ack_deadline == math.inf:
                raise _ReaderEnded("idle_timeout") from None
            if (await self._channels.last_event(self._channel)).position.number:
                self._ack_deadline = math.inf  # its event is before this reader's first one
            elif self._outage is None:
                raise _ReaderEnded("worker_timeout") from None

    async def _wait_for_store(self, exc: StoreError, *, was_waiting: bool) -> None:
        """Wait until the store may be in reach again, within a limit."""
        now = asyncio.get_running_loop().time()
        if self._outage is None:
            logger.warning("Channels: cannot read (%s). Readers wait for the store.", exc)
            self._outage = _Outage(now)
        self._outage.was_waiting = was_waiting
        if now > self._outage.began_at + _MAX_OUTAGE_SECONDS:
            raise _ReaderEnded("store_unavailable")
        await asyncio.sleep(self._outage.backoff.next())

    def _end_outage(self) -> None:
        """Record that the store is in reach; the timeouts do not count the time of an outage."""
        outage, self._outage = self._outage, None
        if outage is not None:
            seconds = asyncio.get_running_loop().time() - outage.began_at
            self._read_at += seconds
            self._ack_deadline += seconds


class _Outage:
    """The time from a failure of the store to the next success.

    Attributes:
        began_at: the time of the first failure.
        backoff: the pauses between attempts.
        was_waiting: whether the last failure was that of a wait, not of a read.
    """

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.backoff = Backoff(first=_FIRST_PAUSE_SECONDS)
        self.was_waiting = False


class _ReaderEnded(Exception):  # noqa: N818 - not an error
    """There can be no more events.

    Attributes:
        code: the reason for the client, `""` for none.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
