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
from sse_middleware.stream.cancellation import GRACE_SECONDS, HURRIED_SECONDS
from sse_middleware.stream.linger_queue import LingerQueue
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.sender import APP, Sender

_BREATH_BYTES = 1 << 16
_BREATH_SECONDS = 0.005
"""The pace of an app that writes as fast as it can while no client slows it down."""
_UNREAD_BYTES = 2 << 20
"""What an app may write while nobody reads; then it waits, as for a client that is slow."""
_WRITES = (Producer.write.__code__, Sender._send_as_app.__code__)  # noqa: SLF001
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
        "_breath",
        "_change",
        "_freeing",
        "_has_readers",
        "_is_shared",
        "_linger_at",
        "_lingering",
        "_log",
        "_task",
        "_unread_bytes",
    )

    def __init__(
        self,
        *arguments: Any,
        store: EventStore,
        info: LogInfo,
        lingering: LingerQueue,
        **options: Any,
    ) -> None:
        self._log: Log = store.create(info, self)
        self._is_shared = store.is_shared
        self._lingering = lingering
        self._linger_at = math.inf
        self._has_readers = False
        self._change: asyncio.Event | None = None  # of who reads, or the end
        self._breath = 0
        self._unread_bytes = 0
        self._task: asyncio.Task[Any] | None = None
        self._freeing: BlockedWrite | None = None
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

    async def until_over(self) -> None:
        """Wait until the stream has ended."""
        while not self._is_over():
            await self._next_change()

    def on_cancel(self) -> None:
        """End the stream because a reader has asked for that."""
        if not self._is_ended():
            self._close(self._state.cancel(self._clock()), LogState.CANCELLED)
            self._owner.on_end()

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Wait for a reader where the last one has gone."""
        self._has_readers = has_readers
        self._tell_change()
        if self._is_over():
            return
        if self._unread:
            self._wait_for_reader()
        else:
            self._set_timer()  # a client may block the app no longer

    def on_drain(self) -> None:
        """Let the client go where it can follow elsewhere; the log is filled on."""
        may_follow = self._is_shared and self._is_recording() and bool(self._linger_seconds)
        if may_follow and not (self._unread or self.broken or self._is_ended()):
            self._state.prepare_to_drain()
            self._rotate(self._clock())

    def evict(self) -> None:
        """End the stream, without a word where nobody reads it."""
        if self._unread and not self._has_readers:
            self.give_up()
        else:
            super().evict()

    def give_up(self) -> None:
        """End what nobody has come back to."""
        if self._unread and not self._is_ended():
            self._log.end(LogState.GONE)
            self._close(End(b"", clean=False))
            self._owner.on_end()

    async def settle(self, patience: float, outcome: str) -> None:
        """Leave nothing behind."""
        self._take_in()
        self._end_log(LogState.LOST)  # where nothing else has ended it
        self._state.recording = None  # a write that fails from here on is no reason to linger
        await super().settle(patience, outcome)
        self._task = self._freeing = None
        if self.drains:  # the server may end when this request has
            with suppress(TimeoutError):
                async with asyncio.timeout(HURRIED_SECONDS):
                    await self._log.flush()

    def _lose_client(self) -> bool:
        had_reader = not self._unread
        self._break()
        if self._is_ended():
            return self._unread
        if had_reader and not self._may_go_on():
            self._log.end(LogState.GONE)
            return False
        if had_reader:
            self._record.disconnects = 1
            self._go_on_unread()
        return True

    def _may_go_on(self) -> bool:
        if not self._is_recording():
            return False
        return self._has_readers or bool(self._record.chunks and self._linger_seconds)

    def _is_recording(self) -> bool:
        return self._state.recording is not None

    def _go_on_unread(self) -> None:
        self._unread = True
        self._take_long_way()
        self._state.go_on_unread()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        waits = not self._has_readers
        self._linger_at = self._clock() + self._linger_seconds if waits else math.inf
        self._set_timer()
        if self.place is not None:
            self.place.wait(waits=waits)
        if waits:
            self._lingering.add(self)
        else:
            self._lingering.discard(self)

    def _look_at_time(self, now: float) -> None:
        if now >= self._linger_at:
            self.give_up()
            return
        if not self._unread:
            self._owner.on_silence()
        super()._look_at_time(now)

    def _deadline(self) -> float:
        deadline = min(super()._deadline(), self._linger_at)
        # Where nothing else is due: observers want to hear, and others may wait for a blocked app.
        return min(deadline, self._tell_at) if self._unread or self._has_readers else deadline

    def _patience(self) -> float:
        """Return less where the app waits for a client that does not count any more."""
        does_not_count = (self._has_readers or self._unread) and self._is_recording()
        if does_not_count and self.app_waits() and self._freeing is None:
            return GRACE_SECONDS
        return super()._patience()

    def _lose_blocked_client(self) -> None:
        if not (self._unread or self._may_go_on()):
            self._log.end(LogState.GONE)
            super()._lose_blocked_client()
            return
        if not self._unread:
            self._record.disconnects = 1
            self._go_on_unread()
        self._take_held()
        # What the client has got of the write is not known: nothing may stand behind it.
        self._end = None if self.broken else End(b"", clean=True)
        self._waiting = ()
        self._wake_waiting()
        if self._who_writes == APP:
            self._freeing = BlockedWrite(self._task)
            self._freeing.interrupt(_WRITES, self)
        self._write_in_background()

    def _was_freed(self) -> bool:
        return self._freeing is not None and self._freeing.take_back()

    def _reach_cap(self, now: float) -> None:
        if not (self._state.rotates and self._is_recording()):
            super()._reach_cap(now)
        elif self._linger_seconds or self._has_readers:
            self._rotate(now)
        else:
            self._log.end(LogState.GONE)
            super()._reach_cap(now)

    def _rotate(self, now: float) -> None:
        """End the connection, and go on."""
        end = self._state.rotate(now, random.random())  # noqa: S311 - no secret
        self._go_on_unread()
        self._end = end
        self._write_in_background()

    def _feed(self, body: Any, now: float) -> list[bytes]:
        parts = super()._feed(body, now)
        if self._unread and not self._is_recording():
            self.give_up()  # nobody can come back to a stream that the app numbers itself
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
        self._linger_at = math.inf
        self._lingering.discard(self)
        self._tell_change()

    async def _go_easy(self, size: int) -> None:
        self._breath += size
        self._unread_bytes = 0 if self._has_readers else self._unread_bytes + size
        if self._breath >= _BREATH_BYTES:
            self._breath = 0
            await asyncio.sleep(_BREATH_SECONDS)
        while self._unread_bytes > _UNREAD_BYTES and not (self._has_readers or self._is_over()):
            await self._next_change()

    def _is_over(self) -> bool:
        return self._is_ended() or self._state.recording is None

    async def _next_change(self) -> None:
        if self._change is None:
            self._change = asyncio.Event()
        await self._change.wait()

    def _tell_change(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None
