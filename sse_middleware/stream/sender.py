"""The writer of one stream: one write at a time, in order, and few of them.

An event that comes behind a pause is sent at once, by the app's own task. What comes within the
next tick is held, and leaves as one message: written by the scribe when the tick is over, or by the
app's own task with what it writes next. An app that holds much has to wait.
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


NO_WRITER, APP, BACKGROUND = range(3)  # who is in the server's `send`
MAX_PENDING_BYTES = 1 << 14
"""What is held before the app has to wait. (A record of TLS.)"""
_NOTHING: Final[list[bytes]] = []  # held by all streams that hold nothing; nobody adds to it
STALL_SECONDS = 0.1
"""A write that takes longer is told of as a stall; one that suspends takes some milliseconds."""


class Sender:
    """Write the bytes of one stream in their order.

    It is the half of an `Outbox` that knows neither what they are nor why they are written.

    Args:
        send: the server's.
        ticker: that of the running loop.
        record: the stream's.
        observers: who is told of stalls.

    Attributes:
        broken: whether the server has refused a write, so that the client is gone.
        context: where the app began the response; the scribe writes in it.
        waits_in: the task of the scribe's in which a write of ours has to wait.
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
        self._pending: list[bytes] = _NOTHING
        self._pending_bytes = 0
        self._dequeued_bytes = 0  # of all that was ever held
        self._coalesce_until = 0.0  # what comes before is held: it follows a write at once
        self._write_started = 0.0  # the last write, or the one that is under way
        self._active_writer = NO_WRITER
        self._flushes = 0  # of the app, under way
        self._write_queue: tuple[object, ...] = ()  # writes of the app that wait for another one
        self._write_done: asyncio.Event | None = None
        self.write_task: asyncio.Task[Any] | None = None
        self._failure: Exception | None = None
        self.broken = False
        self.app_context = contextvars.copy_context()
        timers.background_writer.attach()

    def is_app_writing(self) -> bool:
        """Whether a write of the app is under way."""
        return bool(self._flushes or self._write_queue) or self._active_writer == APP

    def blocked_at(self) -> int | None:
        """Return how much was sent before the write that is under way, `None` where none is."""
        return self._record.sent_bytes if self._active_writer else None

    async def flush_pending(self) -> None:
        """Write what is held, and what is to be the last, until none is left or somebody waits."""
        while not (self._active_writer or self._write_queue) and self._has_pending():
            started = self._write_started = self._clock()
            data, more_body = self._take_output()
            self._active_writer = BACKGROUND
            try:
                if data or not more_body:
                    await self._send(body_message(data, more_body=more_body))
                    self._record.sent_bytes += len(data)
            except Exception as exc:  # noqa: BLE001 - the app is told at its next write
                if not self._on_client_lost():
                    self._failure = exc
            except asyncio.CancelledError:
                if not self._on_client_lost():
                    self._failure = ConnectionAbortedError(
                        "a write was cancelled, the stream has a gap"
                    )
                raise
            finally:
                self._active_writer = NO_WRITER
                self.write_task = None
                self._on_write_done(started)

    def on_tick(self) -> None:
        """Look at what waits, so that it is kept even where a write is blocked, and let it out."""
        self._collect_events()
        self._write_in_background()

    def _has_pending(self) -> bool:
        """Whether there is anything to be written in the background."""
        return bool(self._pending)

    def _take_output(self) -> tuple[bytes, bool]:
        """Return what is to be written in the background, and whether more may follow it."""
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
        """Hold what is to be held."""

    def _take_pending(self) -> list[bytes]:
        self._collect_events()
        held, self._pending = self._pending, _NOTHING
        self._dequeued_bytes += self._pending_bytes
        self._pending_bytes = 0
        return held

    async def _flush(self) -> None:
        """Wait until what is held now has been written.

        The scribe writes it: whoever cancels the app's write does not take along what it has got
        rid of already.

        Raises:
            Exception: what the server has raised in a write of the scribe's.
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
            self._take_pending()  # nothing may follow the gap
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
        """Tell whether the app is to go on though its write was cancelled."""
        return False

    async def _wait_for_turn(self) -> None:
        """Wait until nobody writes, behind whoever waits already, or until there is no need."""
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
            self._write_in_background()  # in case that this one does not write after all

    async def _wait_for_write_done(self) -> None:
        if self._write_done is None:
            self._write_done = asyncio.Event()
        await self._write_done.wait()

    def _notify_write_done(self) -> None:
        if self._write_done is not None:
            self._write_done.set()
            self._write_done = None

    def _on_client_lost(self) -> bool:
        """Give up what was to be written; tell whether the app goes on and need not know."""
        self._abandon_writes()
        return False

    def _abandon_writes(self) -> None:
        """Give up what was to be written, for it cannot be."""
        self.broken = True
        self._take_pending()
        self._notify_write_done()

    def _on_write_done(self, started: float) -> None:
        """Look at how long a write has taken, and let the next one begin."""
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
        """Wait `patience` seconds for what is to be written yet, and give the rest up."""
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
    """Return `parts` as one."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
