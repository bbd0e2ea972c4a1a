"""One log in memory. It calls its producer in the producer's loop, without the store's lock."""

import asyncio
from typing import TYPE_CHECKING

from sse_middleware._once import call_in, running_loop
from sse_middleware.stores.base import Batch, LogInfo, LogListener, LogSnapshot, LogState
from sse_middleware.stores.frame_buffer import FrameBuffer

if TYPE_CHECKING:
    from sse_middleware.stores.memory import MemoryStore

_READ_BYTES = 1 << 16
"""The size of a batch, which bounds the memory of a slow reader."""
_LOG_BYTES = 1000
"""The memory of a log without its buffers, names and longest texts; measured, see its test."""
_NAME_BYTES = 200
"""The memory of a name without its characters; measured too."""


class MemoryLog:
    """One log. It calls its producer in the producer's event loop, and without the lock."""

    __slots__ = (
        "_fixed_size",
        "_frame",
        "_frames",
        "_has_readers",
        "_loop",
        "_producer",
        "_readers",
        "_store",
        "_waiting",
        "info",
        "names",
        "size",
        "state",
        "tokens",
    )

    def __init__(
        self, store: "MemoryStore", info: LogInfo, producer: LogListener, frames: FrameBuffer
    ) -> None:
        self.info = info
        self.names: tuple[str, ...] = ()
        self.tokens = 0
        self._store = store
        self._frames = frames
        self._frame = b""
        self.state = LogState.RUNNING
        self._producer: LogListener | None = producer
        self._loop = asyncio.get_running_loop()
        self._has_readers = False  # as the producer was notified
        self._readers = 0
        self._waiting: dict[asyncio.Future[None], None] | None = None
        self._fixed_size = _LOG_BYTES + len(info.headers) + len(info.path) + len(info.origin)
        self.size = self._fixed_size + frames.size

    def append(self, first: int, data: bytes, count: int = 1) -> None:
        """Append the frames of `count` events from `first` on."""
        if not self._frames.maybe_append(first, data, count):
            self._append(first, data, count)
        if self._waiting:  # checked after the append; `growth` checks in the other order
            self._wake()

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept."""
        with self._store.lock:
            if self.state is LogState.RUNNING:
                self._frames.skip(seq)
                self._store.recount(self)
                self._wake()

    def count_tokens(self, total: int) -> None:
        """Store the number of tokens, and notify readers of it."""
        self.tokens = total
        if self._waiting:
            self._wake()

    def end(self, state: LogState, frame: bytes = b"") -> None:
        """End the log, once."""
        with self._store.lock:
            if self.state is not LogState.RUNNING:
                return
            if state is LogState.GONE:
                self._store.drop(self)
                return
            self.state = state
            self._frame = frame
            self._producer = None
            self._frames.close()
            self._store.keep_ended(self)
            self._store.recount(self)
            if self._waiting:
                self._wake()

    def use_app_ids(self) -> None:
        """Drop the events and end the log, because the app sets event ids itself."""
        with self._store.lock:
            if self.state is LogState.RUNNING:
                self._frames.drop_all()
                self.end(LogState.APP_OWNS_IDS)

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log."""
        with self._store.lock:
            if self.state is LogState.RUNNING:
                self._store.set_name(self, name)
                self.names = tuple(dict.fromkeys((*self.names, name)))
                self._store.recount(self)

    async def flush(self) -> None:
        """Return at once: the log is stored."""

    def snapshot(self) -> LogSnapshot:
        """Return the current state of the log."""
        with self._store.lock:
            return LogSnapshot(
                self.info, self.state, self._frames.last, bool(self._frame), self._frames.first
            )

    def read(self, after: int, tokens: int) -> Batch | None:
        """Return what follows the event `after` and a number of tokens, `None` if nothing does."""
        with self._store.lock:
            frames = self._frames
            if self.state in (LogState.GONE, LogState.APP_OWNS_IDS):
                return Batch(self.state, after, self._frame)
            if after < frames.first - 1:
                return Batch(LogState.TRUNCATED, frames.first - 1, b"")
            if after < frames.last:
                return Batch(LogState.RUNNING, *frames.read(after, _READ_BYTES), self.tokens)
            if self.state is LogState.RUNNING:
                is_new = self.tokens != tokens
                return Batch(self.state, after, b"", self.tokens) if is_new else None
            return Batch(self.state, after, self._frame)

    async def growth(self, after: int, tokens: int) -> None:
        """Wait until `read` returns a batch."""
        change = asyncio.get_running_loop().create_future()
        with self._store.lock:
            if self._waiting is None:
                self._waiting = {}
            self._waiting[change] = None
        try:
            if self.read(after, tokens) is None:  # another thread may have appended
                await change
        finally:
            with self._store.lock:
                if self._waiting is not None:
                    self._waiting.pop(change, None)

    def add_reader(self) -> None:
        """Count a reader."""
        with self._store.lock:
            self._readers += 1
        call_in(self._loop, self._notify_readers_changed)

    def remove_reader(self) -> None:
        """Remove a reader."""
        with self._store.lock:
            self._readers -= 1
        call_in(self._loop, self._notify_readers_changed)

    def cancel(self) -> None:
        """Notify the producer that a reader ends the stream."""
        call_in(self._loop, self._notify_cancel)

    @property
    def has_frames(self) -> bool:
        """Whether it has any events."""
        return self._frames.first <= self._frames.last

    @property
    def can_shrink(self) -> bool:
        """Whether its events can be dropped: its producer appends in its event loop, unlocked."""
        return self._loop is running_loop() or self._loop.is_closed()

    def shrink(self, size: int) -> None:
        """Drop the oldest frames, so that at least `size` bytes are freed, or all."""
        self._frames.shrink(size)

    def drop(self) -> None:
        """Notify readers that the log is gone."""
        self.state = LogState.GONE
        self._frame = b""
        self._producer = None
        self._frames.drop_all()
        if self._waiting:
            self._wake()

    def measure(self) -> int:
        """Return the memory that it uses, in bytes."""
        size = self._fixed_size + self._frames.size + len(self._frame)
        if self.names:
            size += sum([len(name) + _NAME_BYTES for name in self.names])
        return size

    def _append(self, first: int, data: bytes, count: int) -> None:
        with self._store.lock:
            if self.state is LogState.RUNNING:
                self._frames.append(first, data, count)
                self._store.recount(self)

    def _wake(self) -> None:
        with self._store.lock:
            waiting, self._waiting = self._waiting, None
        for change in waiting or ():
            call_in(change.get_loop(), _set, change)

    def _notify_readers_changed(self) -> None:
        has_readers = self._readers > 0
        if self._producer is not None and has_readers is not self._has_readers:
            self._has_readers = has_readers
            self._producer.on_readers_changed(has_readers=has_readers)

    def _notify_cancel(self) -> None:
        if self._producer is not None:
            self._producer.on_cancel()


def _set(change: "asyncio.Future[None]") -> None:
    if not change.done():
        change.set_result(None)
