"""The messages of an app on their way to the log and to the connection.

The usual event takes the fast path of `write`: it is counted, recorded and written without a look
at the tables, because `fast` is set only while the producer is open and its
connection live. Events of the next tick (two milliseconds, up to ten on a busy event loop) are
queued unparsed, and processed together.

The app waits if its client does not read. It never waits in a write to the server, so that it can
continue at any time: if another client follows the stream, or if the stream ends.
"""

import asyncio
import logging
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from starlette.types import Message

from sse_middleware.http.response_head import BODY, body_message
from sse_middleware.protocol.connection_state import ConnectionPhase
from sse_middleware.protocol.intake import Intake, Part
from sse_middleware.protocol.producer_state import (
    PRODUCER_TABLE,
    ProducerAction,
    ProducerInput,
    ProducerPhase,
)
from sse_middleware.protocol.wire import has_data, joined
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.file_bodies import PATHSEND, ZEROCOPYSEND, file_chunks
from sse_middleware.stream.pacing import Pacing
from sse_middleware.stream.sender import MAX_PENDING_BYTES
from sse_middleware.stream.timers import LoopTimers

if TYPE_CHECKING:
    from sse_middleware.stream.producer import Producer

logger = logging.getLogger("sse_middleware.stream")

_FILES: Final = (PATHSEND, ZEROCOPYSEND)
_MAX_LAG_BYTES: Final = 1 << 16
"""A connection with more pending bytes reads the log, if other clients follow the stream."""
_MAX_UNREAD_BYTES: Final = 2 << 20
"""An app that has written more without a reader waits, as it does for a slow client."""
_THROTTLE_BYTES: Final = 1 << 16
_THROTTLE_SECONDS: Final = 0.005
"""The pause of an app that writes as fast as it can while no client slows it down."""
_NOTHING: Final[list[bytes]] = []  # shared by all streams with an empty queue; never changed


class AppWriter:
    """Process the messages of one app.

    Args:
        producer: the producer of the stream.
        connection: as the attribute.
        intake: processes the bytes of the app.
        timers: the timers of the running loop.

    Attributes:
        busy_deadline: the time at which the producer has something to do, even if the app never
            yields to the event loop.
        coalesce_until: the time until which events are queued.
        connection: the connection of the client that has opened the stream.
        fast: whether usual events take the fast path.
        intake: as the argument.
        queue: the bytes of the current tick, which have not been processed.
        unread_bytes: the number of bytes that no client has read yet.
    """

    __slots__ = (
        "_adds_ids",
        "_clock",
        "_pacing",
        "_queue_bytes",
        "_queued_at",
        "_record",
        "_sender",
        "_timers",
        "_unthrottled_bytes",
        "busy_deadline",
        "coalesce_until",
        "connection",
        "fast",
        "intake",
        "may_be_fast",
        "producer",
        "queue",
        "unread_bytes",
    )

    def __init__(
        self, producer: "Producer", connection: Connection, intake: Intake, timers: LoopTimers
    ) -> None:
        options = producer.profile.options
        self.producer = producer
        self.connection = connection
        self._sender = connection.sender
        self.intake = intake
        self._record = intake.record
        self._timers = timers
        self._clock = timers.clock
        self.queue = _NOTHING
        self._queue_bytes = 0
        self._queued_at = 0.0
        self._pacing = Pacing(options.chunk_delay_ms / 1000) if options.chunk_delay_ms else None
        self.may_be_fast = options.batch and self._pacing is None
        self._adds_ids = False
        self.fast = False
        self.coalesce_until = 0.0
        self.busy_deadline = math.inf
        self.unread_bytes = self._unthrottled_bytes = 0

    def resume_fast_path(self) -> None:
        """Take the fast path if the connection of the app's own client is live."""
        self._adds_ids = self.connection.dialect.adds_ids
        self.fast = (
            self.may_be_fast
            and self.producer.phase is ProducerPhase.OPEN
            and self.connection.phase is ConnectionPhase.LIVE
            and not logger.isEnabledFor(logging.DEBUG)  # logs each event
        )

    def leave_fast_path(self) -> None:
        """Check each message separately from now on."""
        self.fast = False
        self.coalesce_until = 0.0

    async def write(self, message: Message) -> None:  # noqa: C901, PLR0912 - few calls
        """Process a message of the app in its turn; discard it after the end of the stream.

        Raises:
            Exception: the exception of the server in this write or in an earlier one.
        """
        clock = self._clock
        now = clock()
        if message["type"] != BODY or not message.get("more_body"):
            if self.fast and message["type"] == BODY and now < self.busy_deadline:
                await self._write_body(message, now, is_last=True)
            else:
                await self._write_slowly(message, now)
            return
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = bytes(body)
        if now < self.coalesce_until:
            if self.queue:
                self.queue.append(body)
            else:
                self.queue, self._queued_at = [body], now
                self._timers.flush_after_tick(self)
            self._queue_bytes += len(body)
            if self._queue_bytes >= MAX_PENDING_BYTES:
                await self._flush_queue()
            return
        if not self.fast or now >= self.busy_deadline:
            await self._write_slowly(message, now)
            return
        self.coalesce_until = now + self._timers.tick_seconds
        if self.queue:
            self.process_queue()
        count = self.intake.feed_usual(body, now)
        if count:
            data = body
            if self._adds_ids:
                data = self.connection.dialect.number(body, self._record.chunks, count)
                message = {"type": BODY, "body": data, "more_body": True}
        elif not body:
            await self._write_slowly(message, now)
            return
        elif parts := self._parts(body, now):
            data, count = self._joined_parts(parts, now)
            message = message if data is body else body_message(data)
        else:  # no event is complete yet
            self.coalesce_until = 0.0
            return
        sender = self._sender
        suspended = sender.write(data, message, count, now)
        if suspended is not None:
            await suspended
        if not sender.is_free:
            await self._wait_for_room()

    def on_tick(self) -> None:
        """Process the queued events, even if a write is blocked, and write them."""
        self.process_queue()
        self._sender.flush_soon()

    async def _write_slowly(self, message: Message, now: float) -> None:
        """Process a message that is not coalesced, such as the end of the response."""
        producer = self.producer
        if now >= self.busy_deadline:  # timers do not fire if the app never yields to the loop
            producer.on_timer(now)
        is_last = message["type"] == BODY and not message.get("more_body", False)
        given = ProducerInput.APP_ENDS if is_last else ProducerInput.APP_WRITES
        action = PRODUCER_TABLE[producer.phase, given].action
        if action is ProducerAction.DISCARD:
            await producer.callbacks.on_write_after_end()
        elif action is ProducerAction.PASS_ON:
            self._raise_failure()
            await self.connection.until_closed()
            self._raise_failure()
            producer.move(given)
            if self._sender.is_writing:  # it blocks, and the connection has been closed
                await producer.callbacks.on_write_after_end()
            else:
                await self._sender.send(message)
        elif message["type"] == BODY:
            await self._write_body(message, now, is_last=is_last)
        elif message["type"] in _FILES:
            await self._write_file(message)
        elif producer.phase is ProducerPhase.OPEN:
            self._raise_failure()
            self.process_queue()
            self._sender.append(message)
            self._sender.flush_soon()
            await self._wait_until_written()

    async def _write_body(self, message: Message, now: float, *, is_last: bool) -> None:
        body = message.get("body", b"")
        self._raise_failure()
        if self.queue:
            self.process_queue()
        if self._pacing is not None:
            async with self._pacing.turn:
                await self._write_paced(self._pacing, bytes(body), now)
        elif body:
            self._feed(bytes(body), now)
        elif not (is_last or self.intake.has_begun):
            self._sender.append(message)  # with it, some servers send the response head
        if not is_last:
            await self._flush()
            await self._throttle(len(body))
            await self._wait_for_room()
            return
        if self.connection.dialect.reads_control_events or self.intake.first_chunk is not None:
            # FastAPI's event streams end the response before they raise the exception of their
            # generator, and cancel this write in the next iteration of the loop.
            await asyncio.sleep(0)
        self.producer.move(ProducerInput.APP_ENDS)
        suspended = self._sender.flush()
        if suspended is not None:
            await suspended
        if not (self.producer.log.is_kept or (self._sender.is_idle and self._sender.lost is None)):
            await self._wait_until_written()

    async def _write_paced(self, pacing: Pacing, body: bytes, now: float) -> None:
        for number, data in self.intake.feed(body, now):
            if has_data(data):
                await asyncio.sleep(max(0.0, pacing.next_at - self._clock()))
                pacing.next_at = self._clock() + pacing.seconds
            if self.producer.is_ended:
                return
            self.connection.append_parts([(number, data)], now)
            await self._flush()
            await self._wait_for_room()

    async def _write_file(self, message: Message) -> None:
        """Write the content of a file in place of the server, with our events around it."""
        async with aclosing(file_chunks(message)) as chunks:
            async for chunk in chunks:
                await self.write(body_message(chunk))
        if not message.get("more_body", False):
            await self.write(body_message(b"", more_body=False))

    def _joined_parts(self, parts: list[Part], now: float) -> tuple[bytes, int]:
        """Return unusual bytes as they are to be written, and the number of their events."""
        part = self.connection.part
        data = joined([part(number, data, now) for number, data in parts])
        return data, sum([number > 0 for number, _ in parts])

    async def _flush(self) -> None:
        suspended = self._sender.flush()
        if suspended is not None:
            await suspended

    async def _flush_queue(self) -> None:
        """Write the events of a tick that has not ended, because they are many."""
        self.process_queue()
        await self._flush()
        await self._wait_for_room()

    def process_queue(self) -> None:
        """Process the events of a tick together, as of the time of the first one."""
        if not self.queue:
            return
        queue, self.queue = self.queue, _NOTHING
        self._queue_bytes = 0
        chunk, now = joined(queue), self._queued_at
        count = self.intake.feed_usual(chunk, now)
        if count:
            self.connection.append(chunk, self._record.chunks, count)
        else:
            for body in queue:
                self._feed(body, now)

    def _feed(self, body: bytes, now: float) -> None:
        before = self._record.chunks
        count = self.intake.feed_usual(body, now)
        if count:
            self.connection.append(body, self._record.chunks, count)
        else:
            self.connection.append_parts(self._parts(body, now), now)
        if logger.isEnabledFor(logging.DEBUG):
            for number in range(before + 1, self._record.chunks + 1):
                logger.debug("event %d of stream %s", number, self._record.stream_id)

    def _parts(self, body: bytes, now: float) -> list[Part]:
        """Process unusual bytes, and return what they complete."""
        intake = self.intake
        had_ids, was_openai = intake.has_ids, intake.first_chunk is not None
        was_raw, had_begun = intake.is_raw, intake.has_begun
        parts = intake.feed(body, now)
        if intake.is_raw and not was_raw:
            self.may_be_fast = False
            self.leave_fast_path()
            self.producer.on_raw(has_sent=had_begun)
        if intake.has_ids and not had_ids:
            self.connection.dialect.on_ids_seen()
            if intake.app_owns_ids:
                self.connection.dialect.on_app_ids()
                self.producer.on_app_ids()
        if intake.first_chunk is not None and not was_openai:
            self.producer.on_openai()
        return parts

    async def _wait_for_room(self) -> None:
        """Wait until the client has read enough, unless other clients follow the stream."""
        sender, producer = self._sender, self.producer
        while sender.pending_bytes >= MAX_PENDING_BYTES and self.connection.is_open:
            self.coalesce_until = 0.0  # other tasks of the app wait, too
            is_little = sender.pending_bytes < _MAX_LAG_BYTES
            if producer.log.has_readers and (is_little or producer.fall_behind()):
                break
            await sender.wait_for_room()
        self._raise_failure()

    async def _wait_until_written(self) -> None:
        sender = self._sender
        while not sender.is_idle and self.connection.phase is not ConnectionPhase.CLOSED:
            await sender.wait_for_room()
        self._raise_failure()

    async def _throttle(self, size: int) -> None:
        """Delay an app that writes `size` bytes while no client slows it down."""
        producer = self.producer
        if self.connection.phase in _READS_DIRECTLY or not producer.log.is_kept:
            return
        self.unread_bytes = 0 if producer.log.has_readers else self.unread_bytes + size
        self._unthrottled_bytes += size
        if self._unthrottled_bytes >= _THROTTLE_BYTES:
            self._unthrottled_bytes = 0
            await asyncio.sleep(_THROTTLE_SECONDS)
        while self.unread_bytes > _MAX_UNREAD_BYTES and self._is_unread():
            await producer.log.wait_for_change()

    def _is_unread(self) -> bool:
        """Return whether an app with too many unread bytes has to wait for a reader."""
        is_recording = self.intake.log is not None and not self.producer.is_ended
        return is_recording and not self.producer.log.has_readers

    def _raise_failure(self) -> None:
        """Raise the exception of an earlier write.

        An error of the program is raised once if the stream continues without its client. If it
        does not, any exception is raised each time, because no bytes may follow the gap.
        """
        sender = self._sender
        if sender.lost is None:
            return
        failure, sender.failure = sender.failure, None
        if self.producer.phase is ProducerPhase.LEFT:
            failure = sender.lost
        if failure is not None:
            raise failure


_READS_DIRECTLY: Final = (ConnectionPhase.OPENING, ConnectionPhase.LIVE)
