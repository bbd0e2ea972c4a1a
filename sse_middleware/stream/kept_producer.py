"""The outbox of a stream that is kept: it outlives its reader.

Where the client goes away, or its connection reaches the cap, the app goes on and does not know; so
it does where its client blocks it and another one reads. Its events go to the log, and a reader who
comes back follows that. Who waits for a reader and gets none gives up: the app hears
`http.disconnect`, and the log goes.
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
"""The pace of an app that writes as fast as it can while no client slows it down."""
_MAX_UNREAD_BYTES = 2 << 20
"""What an app may write while nobody reads; then it waits, as for a client that is slow."""
_WRITE_CODES = (Producer.write.__code__, Sender._send_as_app.__code__)  # noqa: SLF001
"""Where an app waits for the server."""


class KeptProducer(Producer):
    """Write one stream, and its log.

    Args:
        *arguments: those of an `Producer`.
        store: where the log is kept.
        info: the log's.
        lingering: the streams that wait for a reader.
        **options: those of an `Producer`.
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
        self._changed: asyncio.Event | None = None  # of who reads, or the end
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
        """Do so as any outbox, and know who it is that writes."""
        self._task = asyncio.current_task()
        await super().open(start, data)

    def set_name(self, name: str) -> None:
        """Let the stream be found by a name."""
        self._log.set_name(name)

    async def wait_until_ended(self) -> None:
        """Wait until the stream has ended."""
        while not self._is_log_complete():
            await self._wait_for_change()

    def on_cancel(self) -> None:
        """End the stream because a reader has asked for that."""
        if not self._is_ended():
            self._close(self._state.cancel(self._clock()), LogState.CANCELLED)
            self._callbacks.on_end()

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Wait for a reader where the last one has gone."""
        self._has_readers = has_readers
        self._notify_change()
        if self._is_log_complete():
            return
        if self._is_detached:
            self._update_linger()
        else:
            self._set_timer()  # a client may block the app no longer

    def on_drain(self) -> None:
        """Let the client go where it can follow elsewhere; the log is filled on."""
        may_follow = self._is_shared and self._is_recording() and bool(self._linger_seconds)
        if may_follow and not (self._is_detached or self.broken or self._is_ended()):
            self._state.prepare_to_drain()
            self._rotate(self._clock())

    def evict(self) -> None:
        """End the stream, without a word where nobody reads it."""
        if self._is_detached and not self._has_readers:
            self.expire()
        else:
            super().evict()

    def expire(self) -> None:
        """End what nobody has come back to."""
        if self._is_detached and not self._is_ended():
            self._log.end(LogState.GONE)
            self._close(End(b"", clean=False))
            self._callbacks.on_end()

    async def aclose(self, grace_seconds: float, outcome: str) -> None:
        """Leave nothing behind."""
        self._collect_events()
        self._end_log(LogState.LOST)  # where nothing else has ended it
        self._state.recording = None  # a write that fails from here on is no reason to linger
        await super().aclose(grace_seconds, outcome)
        self._task = self._blocked_write = None
        if self.is_draining:  # the server may end when this request has
            with suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_GRACE_SECONDS):
                    await self._log.flush()

    def _on_client_lost(self) -> bool:
        had_reader = not self._is_detached
        self._abandon_writes()
        if self._is_ended():
            return self._is_detached
        if had_reader and not self._may_continue():
            self._log.end(LogState.GONE)
            return False
        if had_reader:
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
        # Where nothing else is due: observers want to hear, and others may wait for a blocked app.
        return (
            min(deadline, self._progress_at) if self._is_detached or self._has_readers else deadline
        )

    def _write_timeout(self) -> float:
        """Return less where the app waits for a client that does not count any more."""
        does_not_count = (self._has_readers or self._is_detached) and self._is_recording()
        if does_not_count and self.is_app_writing() and self._blocked_write is None:
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
        # What the client has got of the write is not known: nothing may stand behind it.
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
        """End the connection, and go on."""
        end = self._state.rotate(now, random.random())  # noqa: S311 - no secret
        self._detach_client()
        self._pending_end = end
        self._write_in_background()

    def _feed(self, body: Any, now: float) -> list[bytes]:
        parts = super()._feed(body, now)
        if self._is_detached and not self._is_recording():
            self.expire()  # nobody can come back to a stream that the app numbers itself
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
