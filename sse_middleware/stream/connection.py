"""One client's side of a stream: its first bytes, the events in order, heartbeats, and its end.

A connection follows a producer of this process directly, or a log. It makes no decision about the
producer: it reports that it has closed. Each input is looked up in `CONNECTION_TABLE`.
"""

import logging
import math
import random
from collections.abc import AsyncGenerator, Callable
from typing import Final, Protocol

from starlette.types import Message

from sse_middleware.http.response_head import body_message
from sse_middleware.protocol.connection_state import (
    CONNECTION_TABLE,
    ConnectionAction,
    ConnectionInput,
    ConnectionPhase,
)
from sse_middleware.protocol.deadlines import Due
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.intake import Part
from sse_middleware.protocol.openai import find_chunk
from sse_middleware.protocol.stream_end import Reason, StreamEnd, unpack_end
from sse_middleware.stores.base import Batch, LogState
from sse_middleware.stream.sender import Sender

logger = logging.getLogger("sse_middleware.stream")

_LIVE: Final = ConnectionPhase.LIVE
_HEAD_BYTES: Final = 2048
"""The most bytes of a followed log in which the first chunk of a chat completion is expected."""
_NO_TRAILERS: Final = {"type": "http.response.trailers", "headers": [], "more_trailers": False}
_CLOSE_SECONDS: Final = 1.0
"""The time for the last bytes of a connection whose client resumes the stream."""


class ConnectionOwner(Protocol):
    """The object that is notified of the end of a connection."""

    def on_connection_closed(self, connection: "Connection", /) -> None:
        """Handle that a connection has closed, once."""


class _NoOwner:
    """The owner of a connection whose request has ended."""

    def on_connection_closed(self, connection: "Connection", /) -> None:
        """Do nothing."""


NO_OWNER: Final[ConnectionOwner] = _NoOwner()


class Connection:
    """Write to one client.

    Args:
        dialect: the form of the stream for this client.
        sender: writes its bytes.
        owner: is notified of the end.

    Attributes:
        closed_by: the input that has ended it, `None` before.
        phase: its state.
        dialect: as the argument.
        sender: as the argument.
    """

    __slots__ = (
        "_close_at",
        "_has_ended",
        "_has_trailers",
        "_owner",
        "_send_timeout",
        "closed_by",
        "dialect",
        "phase",
        "sender",
    )

    def __init__(self, dialect: Dialect, sender: Sender, owner: ConnectionOwner) -> None:
        self.dialect = dialect
        self.sender = sender
        self.phase = ConnectionPhase.OPENING
        self.closed_by: ConnectionInput | None = None
        self._owner = owner
        self._has_ended = False  # the stream, which may be while the connection is behind
        self._has_trailers = False  # announced by the app, which has not ended its body
        self._close_at = math.inf
        self._send_timeout = dialect.profile.send_timeout
        sender.owner = self

    @property
    def is_open(self) -> bool:
        """Whether the client still receives the stream."""
        return self.phase in _OPEN

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is written to the client."""
        return self.phase is ConnectionPhase.CLOSED

    def blocked_at(self) -> int | None:
        """Return the bytes sent before the write in progress, `None` if there is no write."""
        return self.dialect.record.sent_bytes if self.sender.is_writing else None

    async def open(self, start: Message, preamble: bytes) -> None:
        """Send the response start; the first bytes follow with the first event, or soon."""
        if preamble:
            self.sender.append(preamble)
        self._has_trailers = bool(start.get("trailers"))
        await self.sender.send_start(start)
        self._move(ConnectionInput.STARTED)
        if self.phase is not _LIVE:  # it has ended meanwhile
            self.sender.flush_soon()
            if self.sender.is_idle:
                self.on_written()

    # Inputs of the producer, or of a log

    def number(self, data: bytes, last: int, count: int) -> bytes:
        """Return `count` usual events as they are to be written, `b""` if they are not."""
        if self.phase is not _LIVE and self._move(ConnectionInput.EVENTS) is _IGNORE:
            return b""
        return self.dialect.number(data, last, count)

    def part(self, number: int, data: bytes, now: float) -> bytes:
        """Return an event, or other bytes, as they are to be written, `b""` if they are not."""
        if self._move(ConnectionInput.EVENTS) is _IGNORE:
            return b""
        return self.dialect.part(number, data, now)

    def append(self, data: bytes, last: int, count: int) -> None:
        """Write `count` usual events together with the next ones."""
        self.sender.append(self.number(data, last, count), count)

    def append_parts(self, parts: list[Part], now: float) -> None:
        """Write events and other bytes together with the next ones."""
        for number, data in parts:
            self.sender.append(self.part(number, data, now), number > 0)

    def on_stream_end(self, end: StreamEnd, *, app_flushes: bool = False) -> None:
        """Write the end of the stream, together with all that is pending.

        Args:
            end: the end of the stream.
            app_flushes: whether the app's call, in which the stream ends, flushes the sender.
        """
        self._has_ended = True
        self._has_trailers = self._has_trailers and end.reason is not Reason.FINISHED
        if self._move(ConnectionInput.STREAM_ENDS) is not _IGNORE:
            data, clean = self.dialect.end(end, random.random())  # noqa: S311
            self._write_end(data, clean, soon=not app_flushes)

    async def follow(
        self, log: AsyncGenerator[Batch, None], after: int, clock: Callable[[], float]
    ) -> None:
        """Write a log until its end, or until the connection is closed or no longer behind.

        A connection that is behind when its stream ends reads the end from the log.

        Args:
            log: the batches.
            after: the number of the last event that the client has.
            clock: returns the time.

        Raises:
            StoreError: the log cannot be read.
        """
        head = b""
        async for batch in log:
            if not self.is_open:
                return
            now, record = clock(), self.dialect.record
            if batch.state is LogState.RUNNING:
                if batch.frames:
                    head = head or batch.frames[:_HEAD_BYTES]
                    frames = self.dialect.frames(batch.frames, after + 1, batch.last, now)
                    await self._write(frames, now)
            elif batch.state is LogState.TRUNCATED:
                if not self.dialect.reads_control_events:
                    self.on_store_failure()  # it cannot be notified in another way
                    return
                await self._write(self.dialect.reset_truncated(batch.last), now)
            else:
                self.on_log_end(batch, head)
                return
            after = batch.last
            record.chunks = max(record.chunks, after)
            record.tokens = max(record.tokens, batch.tokens)
            await self.until_written()
            is_behind = self.phase is ConnectionPhase.BEHIND and not self._has_ended
            if is_behind and after >= record.chunks:
                self._move(ConnectionInput.CAUGHT_UP)
                return

    async def until_written(self) -> None:
        """Wait until all pending bytes are written, or the connection ends."""
        while not self.sender.is_idle and self.is_open:
            await self.sender.wait_for_room()

    async def until_closed(self) -> None:
        """Wait until the connection is closed."""
        while self.phase is not ConnectionPhase.CLOSED:
            await self.sender.wait_for_room()

    def on_log_end(self, batch: Batch, head: bytes = b"") -> None:
        """Write the end of a log.

        Args:
            batch: the last one.
            head: first bytes of those that the client has received, by which the dialect is known
                if the producer has left no end.

        Raises:
            StoreError: it cannot be read.
        """
        end = unpack_end(batch.frames, _REASONS.get(batch.state, Reason.GONE))
        if end.reason is Reason.LOST and not batch.frames:
            end = end._replace(first_chunk=find_chunk(head))
        if self._move(ConnectionInput.LOG_ENDS) is not _IGNORE:
            self._write_end(*self.dialect.end(end, random.random()))  # noqa: S311

    def on_store_failure(self) -> None:
        """End the response because the log cannot be read; the client retries."""
        if self._move(ConnectionInput.LOG_ENDS) is not _IGNORE:
            self._write_end(*self.dialect.end(StreamEnd(Reason.UNAVAILABLE), 0.0))

    def lag(self) -> int | None:
        """Read the log from now on.

        Returns:
            The number of the last event that the server has; `None` if the client is not live.
        """
        if self.dialect.is_inside_event or self.sender.message_count:
            return None  # the log does not have all that is pending
        if self._move(ConnectionInput.LAGS) is _IGNORE:
            return None
        last = self.dialect.record.chunks - self.sender.pending_events
        self.sender.drop_pending()
        return last

    def pass_on(self, *, has_sent: bool) -> None:
        """Add nothing to the bytes of the app from now on, and wait for its client for any time.

        Args:
            has_sent: whether the app has sent bytes before. If not, what is pending is ours.
        """
        self.dialect.deadlines.stop()
        self._send_timeout = math.inf
        if self.is_open and not (has_sent or self.sender.message_count):
            self.sender.drop_pending()

    # Inputs of time

    def rotate(self, now: float) -> None:
        """End the connection; the client resumes the stream."""
        if self._move(ConnectionInput.CAP) is not _IGNORE:
            self._close_at = now + _CLOSE_SECONDS
            self._write_end(*self.dialect.rotate(now, random.random()))  # noqa: S311

    def cut(self, now: float) -> None:
        """End the connection as at the cap of the stream; the client may not resume it."""
        if self._move(ConnectionInput.CAP) is not _IGNORE:
            record = self.dialect.record
            age = record.age(now)
            end = StreamEnd(Reason.DURATION_CAP, record.trace_id, age, record.chunks, record.tokens)
            self._write_end(*self.dialect.end(end, 0.0))

    def deadline(self, now: float) -> float:
        """Return the next time at which `on_deadline` has something to do."""
        if self.phase is ConnectionPhase.CLOSED:
            return math.inf
        # Early enough for a write that may start meanwhile.
        started = self.sender.write_started if self.sender.is_writing else now
        due_at = self.dialect.deadlines.deadline()
        return min(due_at, started + self._send_timeout, self._close_at)

    def on_deadline(self, now: float) -> bool:
        """Perform what is due; return whether the cap of the connection has been reached."""
        sender, dialect = self.sender, self.dialect
        is_writing = sender.is_writing
        is_blocked = is_writing and now >= sender.write_started + self._send_timeout
        if is_blocked or now >= self._close_at:
            self._close(ConnectionInput.CLIENT_IS_BLOCKED)
            return False
        due = dialect.deadlines.due(now, dialect.record.last_event_at)
        if due is not Due.HEARTBEAT:
            return due is Due.CAP and self.is_open
        dialect.deadlines.plan_heartbeat(now)
        if not is_writing and self._move(ConnectionInput.HEARTBEAT_IS_DUE) is not _IGNORE:
            sender.append(dialect.heartbeat(now))
            sender.flush_soon()
            logger.debug("heartbeat of stream %s", dialect.record.stream_id)
        return False

    # Inputs of the client and of the server

    def on_disconnect(self) -> None:
        """Close the connection, because the client has left."""
        self._close(ConnectionInput.CLIENT_LEAVES)

    def on_written(self) -> None:
        """Close the connection after its last bytes."""
        if self.phase is ConnectionPhase.CLOSING:
            self._close(ConnectionInput.WRITTEN)

    def on_write_failed(self) -> None:
        """Close the connection, because nothing more can be written."""
        self._close(ConnectionInput.WRITE_FAILS)

    def give_up(self) -> None:
        """Close the connection without its last bytes."""
        self._close(ConnectionInput.GRACE_IS_OVER)

    def release(self) -> None:
        """Release all references, at the end of the request."""
        if self.phase is not ConnectionPhase.CLOSED:
            self.give_up()
        self.sender.detach()
        self._owner = NO_OWNER

    async def _write(self, data: bytes, now: float) -> None:
        suspended = self.sender.write(data, body_message(data), 0, now)
        if suspended is not None:
            await suspended

    def _write_end(self, data: bytes, clean: bool, /, *, soon: bool = True) -> None:  # noqa: FBT001 - a pair
        """Write the last bytes; an unclean end leaves the response to the server."""
        self.dialect.deadlines.stop()
        if clean and self._has_trailers:  # the response ends with them
            for item in (data, body_message(b"", more_body=False), dict(_NO_TRAILERS)):
                self.sender.append(item)
            self.sender.finish(b"", ends=False)
        else:
            self.sender.finish(data, ends=clean)
        if soon:
            self.sender.flush_soon()
        if not clean and self.sender.is_idle:
            self._close(ConnectionInput.WRITTEN)

    def _close(self, given: ConnectionInput) -> None:
        if self.phase is ConnectionPhase.CLOSED:
            return
        action = self._move(given)
        if action is ConnectionAction.ABANDON:
            self.dialect.deadlines.stop()
            self.sender.abandon()
        elif action is ConnectionAction.CUT:
            self.dialect.deadlines.stop()
            # A part of the write may have arrived, so that no event may follow it.
            self.sender.cut(ends=self.dialect.reads_control_events)
        self.closed_by = given
        self.sender.release()
        self._owner.on_connection_closed(self)

    def _move(self, given: ConnectionInput) -> ConnectionAction:
        action, self.phase = CONNECTION_TABLE[self.phase, given]
        return action


_IGNORE: Final = ConnectionAction.IGNORE
_OPEN: Final = (ConnectionPhase.OPENING, ConnectionPhase.LIVE, ConnectionPhase.BEHIND)
_REASONS: Final = {
    LogState.CANCELLED: Reason.CANCELLED,
    LogState.FINISHED: Reason.FINISHED,
    LogState.FAILED: Reason.FINISHED,  # without the data of its end, the app itself has ended it
    LogState.LOST: Reason.LOST,
}
