"""The log of one stream, as its producer uses it: the events, the readers, and the end.

A stream that is not kept has no log; all methods can be called all the same.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from sse_middleware.http.request import stream_name
from sse_middleware.protocol.intake import Intake
from sse_middleware.protocol.producer_state import ProducerInput
from sse_middleware.protocol.stream_end import Reason, StreamEnd, outcome_of
from sse_middleware.stores.base import ENDED_BY_APP, EventStore, Log, LogInfo, LogState
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.end_callback import EndCallback
from sse_middleware.stream.log_reader import LogReader


class LogOwner(Protocol):
    """The producer of the stream."""

    def move(self, given: ProducerInput) -> object:
        """Perform the action for an input."""

    def on_readers_changed(self) -> None:
        """Handle that the log has its first reader, or has lost its last one."""


class ProducerLog:
    """The log of the stream of one producer.

    Args:
        owner: the producer.
        intake: records the events.

    Attributes:
        has_readers: whether connections follow the log.
        reader: reads the log for a connection that is slow, `None` if none is.
    """

    __slots__ = (
        "_begin",
        "_changed",
        "_info",
        "_intake",
        "_log",
        "_on_end",
        "_owner",
        "_store",
        "has_readers",
        "reader",
    )

    def __init__(self, owner: LogOwner, intake: Intake) -> None:
        self._owner = owner
        self._intake = intake
        self._store: EventStore | None = None
        self._begin: Callable[[], None] | None = None  # creates the log of a stream with a name
        self._info: LogInfo | None = None
        self._log: Log | None = None
        self._on_end: EndCallback | None = None
        self.reader: LogReader | None = None
        self._changed: asyncio.Event | None = None  # set when readers change or the stream ends
        self.has_readers = False

    def begin_if_named(self, begin: Callable[[], None]) -> None:
        """Let a function create the log when the stream gets a name."""
        self._begin = begin

    def create(self, store: EventStore, info: LogInfo) -> None:
        """Begin the log."""
        self._store, self._info = store, info
        self._log = self._intake.log = store.create(info, self)
        self.count_tokens()
        if self._on_end is not None:
            self._on_end.log, self._intake.log = self._log, self._on_end

    def call_at_end(self, callback: EndCallback) -> None:
        """Collect the events, and call a function with them when the stream has ended."""
        self._on_end = self._intake.log = callback

    @property
    def is_kept(self) -> bool:
        """Whether there is, or was, a log."""
        return self._log is not None

    @property
    def is_recording(self) -> bool:
        """Whether events are recorded, so that clients can resume the stream."""
        intake = self._intake
        return self._log is not None and intake.log is not None and not intake.app_owns_ids

    @property
    def is_shared(self) -> bool:
        """Whether clients can resume the stream on another worker."""
        return self.is_recording and self._store is not None and self._store.is_shared

    def set_name(self, name: str, *, is_claimed: bool) -> None:
        """Make the stream available under a name of its client's identity, if it has one.

        A log has all bytes of the app, so that it does not begin after the first ones.

        Args:
            name: the name, or a name of the store that is claimed.
            is_claimed: whether it is that of the store.
        """
        if self._on_end is not None and not is_claimed:
            self._on_end.name = name
        begin, self._begin = self._begin, None
        if begin is not None and not self._intake.has_begun:
            begin()
        if self._info is not None and self._info.identity:
            self.set_key(name if is_claimed else stream_name(name, self._info.identity))

    def count_tokens(self) -> None:
        """Store the tokens that the app has counted, for the clients that follow the log."""
        if self._log is not None and self._intake.record.tokens:
            self._log.count_tokens(self._intake.record.tokens)

    def set_key(self, key: str) -> None:
        """Make the stream available under a name of the store, if it is kept."""
        if self._log is not None:
            self._log.set_name(key)

    def end(self, end: StreamEnd, *, is_lost: bool, can_resume: bool) -> None:
        """End the log.

        Args:
            end: the end of the stream.
            is_lost: whether clients that return learn that the producer is lost.
            can_resume: whether clients can return at all.
        """
        self._begin = None  # a name that comes later finds nothing
        if self._log is None and self._on_end is None:
            return
        state = LogState.LOST if is_lost else _STATES[end.reason]
        if not can_resume:
            state = LogState.GONE
        elif state is LogState.FINISHED and self._intake.has_own_error:
            state = LogState.FAILED
        is_whole = state in (*ENDED_BY_APP, LogState.CANCELLED)
        if self._log is not None and not self._intake.app_owns_ids:
            self._log.end(state, end.pack() if is_whole else b"")
        if self._on_end is not None:
            self._on_end.start(end, outcome_of(end.reason, is_lost=is_lost))
        self.notify_change()

    def discard(self) -> None:
        """Drop the log: the stream is no longer kept."""
        self._begin = None
        if self._log is not None:
            self._log.end(LogState.GONE)
        self._intake.log = self._on_end = None
        self.notify_change()

    def on_cancel(self) -> None:
        """Handle a reader's request to end the stream."""
        self._owner.move(ProducerInput.CANCEL)

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Handle that the log has its first reader, or has lost its last one."""
        self.has_readers = has_readers
        if has_readers:
            self._intake.record.note("resume")
        self.notify_change()
        self._owner.on_readers_changed()

    async def wait_for_change(self) -> None:
        """Wait until the readers change, or the stream ends."""
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()

    def notify_change(self) -> None:
        """Wake all calls of `wait_for_change`."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def follow(
        self, connection: Connection, clock: Callable[[], float], on_done: Callable[[], None]
    ) -> bool:
        """Have a slow connection read the log; return whether it does."""
        store, info = self._store, self._info
        if store is None or info is None or not self.is_recording:
            return False
        after = connection.lag()
        if after is not None:
            self.reader = LogReader(
                store, info.stream_id, connection, after, clock=clock, on_done=on_done
            )
        return after is not None

    async def finish(self, seconds: float) -> None:
        """Wait at most `seconds` until the whole log is stored, and until `on_end` has returned."""
        if self._log is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._log.flush()
        if self._on_end is not None:
            await self._on_end.wait()


_STATES: Final = {
    Reason.FINISHED: LogState.FINISHED,
    Reason.ERROR: LogState.FAILED,
    Reason.DURATION_CAP: LogState.FAILED,
    Reason.SHUTDOWN: LogState.FAILED,
    Reason.EVICTED: LogState.FAILED,
    Reason.CANCELLED: LogState.CANCELLED,
    Reason.INCOMPLETE: LogState.LOST,
    Reason.LOST: LogState.LOST,
    Reason.GONE: LogState.GONE,
}
