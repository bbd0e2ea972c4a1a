"""Write the bytes of one connection: one write at a time, in order, in as few messages as possible.

An event that follows a pause is written at once, in the app's own call and task. Bytes that arrive
during a write, or within the tick after it, are pending: they leave as one message, written by the
background writer.
"""

import asyncio
import contextvars
import logging
from collections.abc import Generator, Sequence
from typing import Any, Final

from starlette.types import Message, Send

from sse_middleware.http.response_head import BODY, first_message
from sse_middleware.observability.observer import Observer
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.wire import joined
from sse_middleware.stream.background_writer import DONE
from sse_middleware.stream.callbacks import NO_SENDER_OWNER, SenderOwner
from sse_middleware.stream.client_gone import is_client_gone
from sse_middleware.stream.releasable_write import ReleasableWrite, StartedSteps
from sse_middleware.stream.timers import LoopTimers

logger = logging.getLogger("sse_middleware.stream")

MAX_PENDING_BYTES: Final = 1 << 14
"""The app waits if more is pending. (The size of a TLS record.)"""
STALL_SECONDS: Final = 0.1
"""A longer write is reported as a stall; one that is only suspended takes some milliseconds."""
_NOTHING: Final[list[bytes | Message]] = []  # shared by all idle connections; never changed


class Sender:
    """Write the bytes of one connection in their order, without regard to their content.

    Args:
        send: the server's `send`.
        timers: the timers of the running loop.
        record: the record of the stream.
        observers: are notified of stalls.

    Attributes:
        app_may_cancel: whether a cancelled call of the app cancels its write.
        app_may_wait: whether a write of the app may wait for the client.
        app_context: the context of the app at the response start; all later writes run in it.
        failure: the error of the program in a write, until the app has been told.
        is_broken: whether nothing more can be written.
        is_free: whether bytes can be written at once, and nothing has to be done after them.
        is_writing: whether a write is in progress.
        lost: the exception of the last write, if it has failed.
        message_count: the number of pending messages that are no part of the body.
        owner: is notified of the end of writes.
        pending_bytes: the number of pending bytes.
        pending_events: the number of events that have these bytes.
        send: as the argument.
        write_started: the start of the write in progress, or of the last one.
        write_task: the task in which a write of this stream is suspended.
    """

    __slots__ = (
        "_clock",
        "_ends",
        "_has_ended",
        "_observers",
        "_pending",
        "_record",
        "_reports_idle",
        "_room",
        "_suspended",
        "_timers",
        "app_context",
        "app_may_cancel",
        "app_may_wait",
        "failure",
        "is_broken",
        "is_free",
        "is_writing",
        "lost",
        "message_count",
        "owner",
        "pending_bytes",
        "pending_events",
        "send",
        "write_started",
        "write_task",
    )

    owner: SenderOwner

    def __init__(
        self,
        send: Send,
        timers: LoopTimers,
        record: StreamRecord,
        observers: Sequence[Observer],
    ) -> None:
        self.send = send
        self._timers = timers
        self._clock = timers.clock
        self._record = record
        self._observers = observers
        self._pending = _NOTHING
        self.message_count = 0
        self.pending_bytes = self.pending_events = 0
        self._ends = False  # the response ends with the pending bytes
        self._has_ended = False  # its last message has been taken
        self.is_writing = False
        self.is_free = True
        self._reports_idle = False
        self._room: asyncio.Event | None = None
        self._suspended: ReleasableWrite | None = None
        self.app_may_wait = self.app_may_cancel = True
        self.write_started = 0.0
        self.write_task: asyncio.Task[Any] | None = None
        self.failure: Exception | None = None
        self.lost: Exception | None = None
        self.is_broken = False
        self.app_context = timers.empty_context
        timers.background_writer.stream_count += 1

    @property
    def is_idle(self) -> bool:
        """Whether no write is in progress and nothing is pending."""
        return not (self.is_writing or self._pending or self._ends)

    async def send_start(self, start: Message) -> None:
        """Send the response start, before all pending bytes.

        Raises:
            Exception: the exception of the server.
        """
        steps = self._write_start(start)
        awaited = next(steps, DONE)
        if awaited is not DONE:
            self.app_context = contextvars.copy_context()
            await self._suspend(steps, awaited, may_cancel=True)
        if self.lost is not None:
            self.failure = None
            raise self.lost
        # Outer middlewares may have set variables in their `send`.
        self.app_context = contextvars.copy_context()

    def write(
        self, data: bytes, message: Message, count: int, now: float
    ) -> ReleasableWrite | None:
        """Write bytes at once, or after the write in progress; return what the app has to await.

        Args:
            data: the bytes.
            message: a message that carries just them.
            count: the number of events that they are.
            now: the time.
        """
        if not self.is_free or self.is_writing or not data:
            self.append(data, count)
            return self.flush()
        self.is_writing = True
        self.write_started = now
        send, clock = self.send, self._clock  # a call of an attribute is slower in Python 3.11
        try:
            steps = send(message).__await__()
            awaited = next(steps, DONE)
            if awaited is not DONE:
                rest = self._write_rest(StartedSteps(steps, awaited), len(data))
                return self._suspend(rest, next(rest), may_cancel=self.app_may_cancel)
            self._record.sent_bytes += len(data)
        except Exception as exc:  # noqa: BLE001 - raised in the app's call, or in its next one
            self._on_exception(exc)
        except BaseException:
            self._on_write_done()
            raise
        if clock() > now + STALL_SECONDS:
            self._report_stall()
        self.is_writing = False
        if not self.is_free:  # something has happened meanwhile
            self._on_write_done()
        return None

    def flush(self) -> ReleasableWrite | None:
        """Write all that is pending, unless a write is in progress; return as `write`."""
        if self.is_writing or self.is_broken or not (self._pending or self._ends):
            return None
        steps = self.flush_pending()
        awaited = next(steps, DONE)
        return None if awaited is DONE else self._suspend(steps, awaited, may_cancel=False)

    def flush_now(self) -> None:
        """Do the same, for a caller that cannot wait."""
        if (suspended := self.flush()) is not None:
            suspended.hand_over()

    def append(self, item: bytes | Message, count: int = 0) -> None:
        """Write bytes that are `count` events, or a message, together with the next ones."""
        if not item or self.is_broken or self._ends or self._has_ended:
            return
        self.is_free = False
        if self._pending:
            self._pending.append(item)
        else:
            self._pending = [item]
        if type(item) is bytes:
            self.pending_bytes += len(item)
            self.pending_events += count
        else:
            self.message_count += 1

    def finish(self, data: bytes, *, ends: bool) -> None:
        """Write the last bytes together with all that is pending, and then notify the owner.

        Args:
            data: the bytes.
            ends: whether the response ends with them.
        """
        if data:
            self.append(data)
        self._ends = ends
        self._reports_idle = True
        self.is_free = False

    def flush_soon(self) -> None:
        """Write all that is pending in the next iteration of the loop, or after this write."""
        if (self._pending or self._ends) and not (self.is_writing or self.is_broken):
            self._timers.background_writer.write_soon(self)

    def release_app(self) -> None:
        """Let the app continue, although its write has to wait."""
        if self._room is not None:
            self.release()
        if self._suspended is not None:
            self._suspended.release()

    def flush_pending(self) -> Generator[Any, Any, None]:
        """Write all that is pending, in messages as large as possible, unless a write is going on.

        These are the steps of a coroutine: each yields what the event loop has to wait for.
        """
        if self.is_writing or self.is_broken:
            return
        try:
            while self._pending or self._ends:
                self.is_writing = True
                self.write_started = started = self._clock()
                message, size = self._take_message()
                if self._room is not None:
                    self.release()
                yield from self.send(message).__await__()
                self._record.sent_bytes += size
                if self._clock() > started + STALL_SECONDS:
                    self._report_stall()
        except Exception as exc:  # noqa: BLE001 - raised in the app's next call
            self._on_exception(exc)
        except asyncio.CancelledError:
            self._on_cancelled()
            raise
        finally:
            if self.is_writing:
                self._on_write_done()

    async def wait_for_room(self) -> None:
        """Wait until fewer bytes are pending, or `release` is called."""
        if self._room is None:
            self._room = asyncio.Event()
            self.is_free = False
        await self._room.wait()

    def release(self) -> None:
        """Wake all calls of `wait_for_room`."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def drop_pending(self) -> None:
        """Discard all pending bytes; the write in progress continues."""
        self._pending = _NOTHING
        self.pending_bytes = self.pending_events = self.message_count = 0
        self._ends = False
        if self._room is not None:
            self.release()

    def cut(self, *, ends: bool) -> None:
        """Discard all pending bytes; after the write in progress the response may end."""
        self.drop_pending()
        self._ends = ends and not self._has_ended
        self.is_free = False
        if self._suspended is not None:
            self._suspended.release()

    def abandon(self) -> None:
        """Discard all pending bytes; nothing more is written."""
        self.is_broken = True
        self.cut(ends=False)

    def detach(self) -> None:
        """Release all that the sender holds, and cancel a write that is in progress."""
        self._timers.background_writer.detach()
        if self.is_writing or self._pending or self._ends or self._room is not None:
            self.abandon()
        self.is_broken, self.is_free = True, False
        if self.is_writing and self.write_task is not None:
            self.write_task.cancel()
        elif self.is_writing and self._suspended is not None:
            self._suspended.cancel()
        self.app_context = self._timers.empty_context
        self.owner = NO_SENDER_OWNER

    def _write_rest(self, steps: StartedSteps, size: int) -> Generator[Any, Any, None]:
        """Write the rest of a message, as `flush_pending`."""
        try:
            yield from steps
            self._record.sent_bytes += size
        except Exception as exc:  # noqa: BLE001 - raised in the app's call, or in its next one
            self._on_exception(exc)
        finally:
            if self._clock() > self.write_started + STALL_SECONDS:
                self._report_stall()
            self._on_write_done()

    def _suspend(
        self, steps: Generator[Any, Any, None], awaited: Any, *, may_cancel: bool
    ) -> ReleasableWrite:
        """Keep a write of the app that has to wait."""
        self.write_task = None
        self.is_free = False
        writer, may_wait = self._timers.background_writer, self.app_may_wait
        self._suspended = ReleasableWrite(
            self, writer, steps, awaited, may_wait=may_wait, may_cancel=may_cancel
        )
        return self._suspended

    def _write_start(self, start: Message) -> Generator[Any, Any, None]:
        """Write the response start; the steps are like those of `flush_pending`."""
        self.is_writing = True
        self.write_started = self._clock()
        try:
            yield from self.send(start).__await__()
        except Exception as exc:  # noqa: BLE001 - raised in the app's call
            self._on_exception(exc)
        except asyncio.CancelledError:
            self._on_cancelled()
            raise
        finally:
            self.is_writing = False
            self._suspended = self.write_task = None
            if self._room is not None:
                self.release()
            if self._ends:
                self.flush_soon()

    def _take_message(self) -> tuple[Message, int]:
        """Return the next message, and its size: all bytes up to the next other message."""
        if self.message_count:
            message, size, self._pending = first_message(self._pending)
            self.pending_bytes -= size
            self.message_count -= not size
            return message, size
        parts, self._pending = self._pending, _NOTHING
        self.pending_bytes = self.pending_events = 0
        ends, self._ends = self._ends, False
        self._has_ended = self._has_ended or ends
        data = joined(parts)  # type: ignore[arg-type]
        return {"type": BODY, "body": data, "more_body": not ends}, len(data)

    def _on_exception(self, exc: Exception) -> None:
        if not is_client_gone(exc):
            logger.warning(
                "The server, or a middleware around sse_middleware, has raised %s for a write of "
                "stream %s. Its connection has ended.",
                type(exc).__name__,
                self._record.stream_id,
            )
            self.failure = exc
        self.lost = exc
        self.abandon()
        self.owner.on_write_failed()

    def _on_cancelled(self) -> None:
        if not self.is_broken:
            self.lost = ConnectionAbortedError("a write was cancelled; the stream has a gap")
            self.abandon()
            self.owner.on_write_failed()

    def _on_write_done(self) -> None:
        """Start the next write, or report that there is none."""
        self.is_writing = False
        self._suspended = self.write_task = None
        if self._room is not None and not self._pending:
            self.release()
        if self._pending or self._ends:
            self.flush_soon()
        elif self._reports_idle:
            self.owner.on_written()
        else:
            self.is_free = not self.is_broken

    def _report_stall(self) -> None:
        for observer in self._observers:
            observer.stalled(self._record, self._clock() - self.write_started)
