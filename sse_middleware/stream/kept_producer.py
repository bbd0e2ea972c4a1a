"""The producer of a stream that is kept: it continues without its client.

If the client disconnects, or its connection reaches the cap, the app continues and is not notified.
The same applies if the client blocks the app while another connection follows the log. The events
go to the log, and a client that reconnects follows the log. If no client follows in time, the
stream expires: the app receives `http.disconnect`, and the log is deleted.
"""

import asyncio
import math
import random
from contextlib import suppress
from typing import Any

from starlette.types import Message

from sse_middleware.protocol.stream_state import End
from sse_middleware.stores.base import EventStore, Log, LogInfo, LogState
from sse_middleware.stream.blocked_write import BlockedWrite
from sse_middleware.stream.cancellation import GRACE_SECONDS, SHUTDOWN_GRACE_SECONDS
from sse_middleware.stream.linger_queue import LingerQueue
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.sender import APP, Sender

_THROTTLE_BYTES = 1 << 16
_THROTTLE_SECONDS = 0.005
"""The pause of an app that writes as fast as it can while no client slows it down."""
_MAX_UNREAD_BYTES = 2 << 20
"""An app that has written more without a reader waits, as it does for a slow client."""
_WRITE_CODES = (Producer.write.__code__, Sender._send_as_app.__code__)  # noqa: SLF001
"""The code in which an app waits for the server."""


class KeptProducer(Producer):
    """Write one stream, and its log.

    Args:
        *arguments: those of `Producer`.
        store: keeps the log.
        info: the description of the log.
        linger_queue: the streams that wait for a reader.
        **options: those of `Producer`.
    """

    __slots__ = (
        "_blocked_write",
        "_changed",
        "_has_readers",
        "_is_shared",
        "_linger_deadline",
        "_linger_queue",
        "_log",
        "_task",
        "_unread_bytes",
        "_unthrottled_bytes",
    )

    def __init__(
        self,
        *arguments: Any,
        store: EventStore,
        info: LogInfo,
        linger_queue: LingerQueue,
        **options: Any,
    ) -> None:
        self._log: Log = store.create(info, self)
        self._is_shared = store.is_shared
        self._linger_queue = linger_queue
        self._linger_deadline = math.inf
        self._has_readers = False
        self._changed: asyncio.Event | None = None  # set when the readers change or the stream ends
        self._unthrottled_bytes = 0
        self._unread_bytes = 0
        self._task: asyncio.Task[Any] | None = None
        self._blocked_write: BlockedWrite | None = None
        super().__init__(*arguments, **options)
        self._state.recording = self._log

    @property
    def _linger_seconds(self) -> float:
        return self._state.options.linger_seconds

    async def open(self, start: Message, data: bytes) -> None:
        """Open the stream as `Producer` does, and store the task that writes."""
        self._task = asyncio.current_task()
        await super().open(start, data)

    def set_name(self, name: str) -> None:
        """Make the stream available under a name."""
        self._log.set_name(name)

    async def wait_until_ended(self) -> None:
        """Wait until the stream has ended."""
        while not self._is_log_complete():
            await self._wait_for_change()

    def on_cancel(self) -> None:
        """End the stream because a reader has requested it."""
        if not self._is_ended():
            self._close(self._state.cancel(self._clock()), LogState.CANCELLED)
            self._callbacks.on_end()

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Linger after the last reader has left, and stop lingering for the first one."""
        self._has_readers = has_readers
        self._notify_change()
        if self._is_log_complete():
            return
        if self._is_detached:
            self._update_linger()
        else:
            self._set_timer()  # the time for which its client may block the app has changed

    def on_drain(self) -> None:
        """Disconnect the client if it can follow on another worker; the app continues."""
        may_follow = self._is_shared and self._is_recording() and bool(self._linger_seconds)
        if may_follow and not (self._is_detached or self.broken or self._is_ended()):
            self._state.prepare_to_drain()
            self._rotate(self._clock())

    def evict(self) -> None:
        """End the stream, without a final event if it has no reader."""
        if self._is_detached and not self._has_readers:
            self.expire()
        else:
            super().evict()

    def expire(self) -> None:
        """End a stream to which no client has reconnected."""
        if self._is_detached and not self._is_ended():
            self._log.end(LogState.GONE)
            self._close(End(b"", clean=False))
            self._callbacks.on_end()

    async def aclose(self, grace_seconds: float, outcome: str) -> None:
        """End the log, then close as `Producer` does."""
        self._collect_events()
        self._end_log(LogState.LOST)  # if nothing else has ended it
        self._state.recording = None  # a later write error is no reason to linger
        await super().aclose(grace_seconds, outcome)
        self._task = self._blocked_write = None
        if self.is_draining:  # the server may exit after this request
            with suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_GRACE_SECONDS):
                    await self._log.flush()

    def _on_client_lost(self) -> bool:
        had_client = not self._is_detached
        self._abandon_writes()
        if self._is_ended():
            return self._is_detached
        if had_client and not self._may_continue():
            self._log.end(LogState.GONE)
            return False
        if had_client:
            self._record.disconnects = 1
            self._detach_client()
        return True

    def _may_continue(self) -> bool:
        if not self._is_recording():
            return False
        return self._has_readers or bool(self._record.chunks and self._linger_seconds)

    def _is_recording(self) -> bool:
        return self._state.recording is not None

    def _detach_client(self) -> None:
        self._is_detached = True
        self._leave_fast_path()
        self._state.on_disconnect()
        self._update_linger()

    def _update_linger(self) -> None:
        lingers = not self._has_readers
        self._linger_deadline = self._clock() + self._linger_seconds if lingers else math.inf
        self._set_timer()
        if self.slot is not None:
            self.slot.set_lingering(lingers=lingers)
        if lingers:
            self._linger_queue.add(self)
        else:
            self._linger_queue.discard(self)

    def _on_deadline(self, now: float) -> None:
        if now >= self._linger_deadline:
            self.expire()
            return
        if not self._is_detached:
            self._callbacks.watch_for_disconnect()
        super()._on_deadline(now)

    def _next_deadline(self) -> float:
        deadline = min(super()._next_deadline(), self._linger_deadline)
        # Without another deadline: notify observers, and check whether the client blocks the app.
        return (
            min(deadline, self._progress_at) if self._is_detached or self._has_readers else deadline
        )

    def _write_timeout(self) -> float:
        """Return a shorter time if the app waits for a client that does not matter any more."""
        is_irrelevant = (self._has_readers or self._is_detached) and self._is_recording()
        if is_irrelevant and self.is_app_writing() and self._blocked_write is None:
            return GRACE_SECONDS
        return super()._write_timeout()

    def _on_client_blocked(self) -> None:
        if not (self._is_detached or self._may_continue()):
            self._log.end(LogState.GONE)
            super()._on_client_blocked()
            return
        if not self._is_detached:
            self._record.disconnects = 1
            self._detach_client()
        self._take_pending()
        # The client may have received a part of the write, so no bytes may follow.
        self._pending_end = None if self.broken else End(b"", clean=True)
        self._write_queue = ()
        self._notify_write_done()
        if self._active_writer == APP:
            self._blocked_write = BlockedWrite(self._task)
            self._blocked_write.interrupt(_WRITE_CODES, self)
        self._write_in_background()

    def _uncancel_write(self) -> bool:
        return self._blocked_write is not None and self._blocked_write.uncancel()

    def _reach_cap(self, now: float) -> None:
        if not (self._state.terms.rotates and self._is_recording()):
            super()._reach_cap(now)
        elif self._linger_seconds or self._has_readers:
            self._rotate(now)
        else:
            self._log.end(LogState.GONE)
            super()._reach_cap(now)

    def _rotate(self, now: float) -> None:
        """End the connection, and continue the stream."""
        end = self._state.rotate(now, random.random())  # noqa: S311 - no secret
        self._detach_client()
        self._pending_end = end
        self._write_in_background()

    def _feed(self, body: Any, now: float) -> list[bytes]:
        parts = super()._feed(body, now)
        if self._is_detached and not self._is_recording():
            self.expire()  # the app writes its own ids, so no client can resume
        return parts

    def _close(self, end: End, state: LogState = LogState.FINISHED) -> None:
        self._end_log(state, end.frame)
        super()._close(end)

    def _finish(self, now: float) -> End:
        end = super()._finish(now)
        self._end_log(LogState.FINISHED, end.frame)
        return end

    def _end_log(self, state: LogState, frame: bytes = b"") -> None:
        self._log.end(state, frame)
        self._linger_deadline = math.inf
        self._linger_queue.discard(self)
        self._notify_change()

    async def _throttle(self, size: int) -> None:
        self._unthrottled_bytes += size
        self._unread_bytes = 0 if self._has_readers else self._unread_bytes + size
        if self._unthrottled_bytes >= _THROTTLE_BYTES:
            self._unthrottled_bytes = 0
            await asyncio.sleep(_THROTTLE_SECONDS)
        while self._unread_bytes > _MAX_UNREAD_BYTES and not (
            self._has_readers or self._is_log_complete()
        ):
            await self._wait_for_change()

    def _is_log_complete(self) -> bool:
        return self._is_ended() or self._state.recording is None

    async def _wait_for_change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()

    def _notify_change(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
