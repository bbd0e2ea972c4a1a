"""Write the bytes of one stream: one write at a time, in order, in as few messages as possible.

An event that follows a pause is sent at once, in the app's own task. Events that follow within the
next tick are pending: they leave as one message, which the background writer sends after the tick,
or the app's own task with its next write. An app with too many pending bytes waits.
"""

import asyncio
import contextvars
import logging
from collections.abc import Sequence
from typing import Any, Final

from starlette.types import Message, Send

from sse_middleware.http.response_head import body_message
from sse_middleware.observability.observer import Observer
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.stream.timers import LoopTimers

logger = logging.getLogger("sse_middleware.stream")


NO_WRITER, APP, BACKGROUND = range(3)  # the task in the server's `send`
MAX_PENDING_BYTES = 1 << 14
"""The app waits if more is pending. (The size of a TLS record.)"""
_NO_PENDING: Final[list[bytes]] = []  # shared by all streams without pending bytes; never changed
STALL_SECONDS = 0.1
"""A longer write is reported as a stall; one that is only suspended takes some milliseconds."""


class Sender:
    """Write the bytes of one stream in their order.

    It does not know the content of the bytes, nor the reason for which they are written.

    Args:
        send: the server's `send`.
        timers: the timers of the running loop.
        record: the record of the stream.
        observers: are notified of stalls.

    Attributes:
        broken: whether the server has refused a write, so that the client is gone.
        app_context: the context of the app at the response start; background writes run in it.
        write_task: the task of the background writer in which a write of this stream is suspended.
    """

    __slots__ = (
        "_active_writer",
        "_clock",
        "_coalesce_until",
        "_dequeued_bytes",
        "_failure",
        "_flushes",
        "_observers",
        "_pending",
        "_pending_bytes",
        "_record",
        "_send",
        "_timers",
        "_write_done",
        "_write_queue",
        "_write_started",
        "app_context",
        "broken",
        "write_task",
    )

    def __init__(
        self,
        send: Send,
        timers: LoopTimers,
        record: StreamRecord,
        observers: Sequence[Observer],
    ) -> None:
        self._send = send
        self._timers = timers
        self._clock = timers.clock
        self._record = record
        self._observers = observers
        self._pending: list[bytes] = _NO_PENDING
        self._pending_bytes = 0
        self._dequeued_bytes = 0  # in total, including discarded ones
        self._coalesce_until = 0.0  # earlier events are pending: they follow a write
        self._write_started = 0.0  # the last write, or the one in progress
        self._active_writer = NO_WRITER
        self._flushes = 0  # of the app, in progress
        self._write_queue: tuple[object, ...] = ()  # waiting writes of the app
        self._write_done: asyncio.Event | None = None
        self.write_task: asyncio.Task[Any] | None = None
        self._failure: Exception | None = None
        self.broken = False
        self.app_context = contextvars.copy_context()
        timers.background_writer.attach()

    def is_app_writing(self) -> bool:
        """Whether a write of the app is in progress."""
        return bool(self._flushes or self._write_queue) or self._active_writer == APP

    def blocked_at(self) -> int | None:
        """Return the bytes sent before the write in progress, `None` if there is no write."""
        return self._record.sent_bytes if self._active_writer else None

    async def flush_pending(self) -> None:
        """Write all that is pending, unless another write is in progress or queued."""
        while not (self._active_writer or self._write_queue) and self._has_pending():
            started = self._write_started = self._clock()
            data, more_body = self._take_output()
            self._active_writer = BACKGROUND
            try:
                if data or not more_body:
                    await self._send(body_message(data, more_body=more_body))
                    self._record.sent_bytes += len(data)
            except Exception as exc:  # noqa: BLE001 - raised in the app's next write
                if not self._on_client_lost():
                    self._failure = exc
            except asyncio.CancelledError:
                if not self._on_client_lost():
                    self._failure = ConnectionAbortedError(
                        "a write to the client was cancelled; the stream has a gap"
                    )
                raise
            finally:
                self._active_writer = NO_WRITER
                self.write_task = None
                self._on_write_done(started)

    def on_tick(self) -> None:
        """Store the pending events in the log, even if a write is blocked, and write them."""
        self._collect_events()
        self._write_in_background()

    def _has_pending(self) -> bool:
        """Whether there is anything to write in the background."""
        return bool(self._pending)

    def _take_output(self) -> tuple[bytes, bool]:
        """Return the bytes to write in the background, and whether more may follow them."""
        return joined(self._take_pending()), True

    def _enqueue(self, data: bytes) -> None:
        if not self._pending:
            self._timers.flush_after_tick(self)
        self._append(data)

    def _append(self, data: bytes) -> None:
        if self._pending:
            self._pending.append(data)
        else:
            self._pending = [data]
        self._pending_bytes += len(data)

    def _collect_events(self) -> None:
        """Make the events that the stream state buffers pending."""

    def _take_pending(self) -> list[bytes]:
        self._collect_events()
        pending, self._pending = self._pending, _NO_PENDING
        self._dequeued_bytes += self._pending_bytes
        self._pending_bytes = 0
        return pending

    async def _flush(self) -> None:
        """Wait until all bytes that are pending now have been written.

        The background writer writes them: if the app's write is cancelled, earlier bytes are not
        lost.

        Raises:
            Exception: the exception that the server has raised in a background write.
        """
        self._collect_events()
        target_bytes = self._dequeued_bytes + self._pending_bytes
        self._flushes += 1
        try:
            while self._dequeued_bytes < target_bytes:
                self._write_in_background()
                await self._wait_for_write_done()
        finally:
            self._flushes -= 1
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._take_pending()  # no bytes may follow the gap
            raise self._failure

    async def _send_as_app(self, message: Message, size: int) -> None:
        started = self._write_started = self._clock()
        self._active_writer = APP
        try:
            await self._send(message)
            self._record.sent_bytes += size
        except Exception:
            if not self._on_client_lost():
                raise
        except asyncio.CancelledError:
            if not self._uncancel_write():
                raise
        finally:
            self._active_writer = NO_WRITER
            self._on_write_done(started)

    def _uncancel_write(self) -> bool:
        """Return whether the app continues although its write was cancelled."""
        return False

    async def _wait_for_turn(self) -> None:
        """Wait until no write is in progress, in order, or until the queue is cleared."""
        if not (self._active_writer or self._write_queue):
            return
        ticket = object()
        self._write_queue += (ticket,)
        try:
            while ticket in self._write_queue and (
                self._active_writer or self._write_queue[0] is not ticket
            ):
                await self._wait_for_write_done()
        finally:
            self._write_queue = tuple(other for other in self._write_queue if other is not ticket)
            self._notify_write_done()
            self._write_in_background()  # in case no write of the app follows

    async def _wait_for_write_done(self) -> None:
        if self._write_done is None:
            self._write_done = asyncio.Event()
        await self._write_done.wait()

    def _notify_write_done(self) -> None:
        if self._write_done is not None:
            self._write_done.set()
            self._write_done = None

    def _on_client_lost(self) -> bool:
        """Discard all pending bytes; return whether the app continues and is not disconnected."""
        self._abandon_writes()
        return False

    def _abandon_writes(self) -> None:
        """Discard all pending bytes, because they cannot be written."""
        self.broken = True
        self._take_pending()
        self._notify_write_done()

    def _on_write_done(self, started: float) -> None:
        """Start the next write, and report a stall if this one took long."""
        self._notify_write_done()
        self._write_in_background()
        took = self._clock() - started
        if took > STALL_SECONDS:
            for observer in self._observers:
                observer.stalled(self._record, took)

    def _write_in_background(self) -> None:
        if not self._active_writer and self._has_pending():
            self._timers.background_writer.write_soon(self)

    async def _finish_writes(self, grace_seconds: float) -> None:
        """Wait `grace_seconds` until all pending bytes are written, and discard the rest."""
        self._timers.background_writer.detach()
        try:
            if self._active_writer or self._has_pending():
                async with asyncio.timeout(grace_seconds):
                    while self._active_writer or self._has_pending():
                        await self._wait_for_turn()
                        await self.flush_pending()
        except TimeoutError:
            logger.debug("stream %s ended with bytes unsent", self._record.stream_id)
        finally:
            if self._active_writer or self._has_pending():
                self._abandon_writes()
            if self.write_task is not None:
                self.write_task.cancel()


def joined(parts: list[bytes]) -> bytes:
    """Return `parts` as one bytes object."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
