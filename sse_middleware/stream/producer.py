"""The app's side of one stream: pass its messages through the state machine, and write the result.

This runs in the app's own task. `TimedSender` adds the actions that time causes; `Sender` passes
bytes to the server.
"""

import asyncio
import contextvars
import logging
from collections.abc import Sequence
from typing import Any

from starlette.types import Message, Send

from sse_middleware.http.response_head import BODY, body_message
from sse_middleware.observability.observer import Observer
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.stream_state import End, StreamState
from sse_middleware.protocol.wire import has_data
from sse_middleware.stream.callbacks import StreamCallbacks
from sse_middleware.stream.sender import APP, MAX_PENDING_BYTES, NO_WRITER, STALL_SECONDS, joined
from sse_middleware.stream.timed_sender import TimedSender
from sse_middleware.stream.timers import LoopTimers

logger = logging.getLogger("sse_middleware.stream")

_PATHSEND = "http.response.pathsend"
_PATHSEND_CHUNK_BYTES = 1 << 16


class Producer(TimedSender):
    """Write one stream.

    Args:
        state: the state machine of the stream.
        send: the server's `send`.
        timers: the timers of the running loop.
        observers: are notified of the stream.
        callbacks: are called when time has ended the stream.
    """

    __slots__ = ("_pacing",)

    def __init__(
        self,
        state: StreamState,
        send: Send,
        timers: LoopTimers,
        *,
        observers: Sequence[Observer],
        callbacks: StreamCallbacks,
    ) -> None:
        super().__init__(state, send, timers, observers=observers, callbacks=callbacks)
        options = state.options
        self._pacing = _Pacing(options.chunk_delay_ms / 1000) if options.chunk_delay_ms else None
        self._fast_path = (
            options.batch
            and self._pacing is None
            and state.client_kind is not ClientKind.OFF
            and not logger.isEnabledFor(logging.DEBUG)  # logs each event
        )

    async def open(self, start: Message, data: bytes) -> None:
        """Send the response start at once; the preamble follows with the first event, or soon."""
        await self._send_as_app(start, 0)
        # Copied again: outer middlewares may have set variables in their `send`.
        self.app_context = contextvars.copy_context()
        if data:
            self._enqueue(data)

    async def write(self, message: Message) -> None:  # noqa: C901, PLR0912, PLR0915 - few calls
        """Write a message of the app in its turn; discard it after the end of the stream.

        Raises:
            Exception: the exception of the server in this write or in a background write.
        """
        now = self._clock()
        is_coalescing = now < self._coalesce_until
        if (
            not (is_coalescing or self._fast_path)
            or message["type"] != BODY
            or not message.get("more_body")
        ):
            await self._write_slow_path(message, now)
            return
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = bytes(body)
        state = self._state
        if is_coalescing:
            if state.pending:
                state.pending.append(body)
            else:
                state.enqueue(body, now)
                self._timers.flush_after_tick(self)
            self._pending_bytes += len(body)
            if self._pending_bytes >= MAX_PENDING_BYTES:
                await self._flush()
            return
        if now >= self._busy_deadline:  # timers do not fire if the app never yields to the loop
            self._on_deadline(now)
            if not self._fast_path:
                await self._write_slow_path(message, now)
                return
        if state.pending:
            self._collect_events()
        data = state.feed(body, now)
        if not data:
            return  # no event is complete yet
        if self._active_writer or self._write_queue:
            self._enqueue(data)
            if self._pending_bytes >= MAX_PENDING_BYTES:
                await self._flush()
            return
        # The rest is `_send_as_app`, inlined to save the call.
        self._write_started = now
        coalesce_until, deadline = now + self._timers.tick_seconds, self._busy_deadline
        self._coalesce_until = coalesce_until if coalesce_until < deadline else deadline  # noqa: FURB136 - a call
        if self._pending:
            data = joined([*self._take_pending(), data])
        if data is not body:
            message = {"type": BODY, "body": data, "more_body": True}
        self._active_writer = APP
        try:
            await self._send(message)
            self._record.sent_bytes += len(data)
        except Exception:
            if not self._on_client_lost():
                raise
        except asyncio.CancelledError:
            if not self._uncancel_write():
                raise
        finally:
            self._active_writer = NO_WRITER
            took_long = self._clock() > now + STALL_SECONDS
            if took_long or self._pending or self._write_queue or not self._fast_path:
                self._on_write_done(now)

    async def wait_until_ended(self) -> None:
        """Wait until a stream that continues without its client has ended."""

    def set_name(self, name: str) -> None:
        """Make the stream available under a name, if it is kept."""

    def _feed(self, body: Any, now: float) -> list[bytes]:
        before = self._record.chunks
        parts = self._state.feed_parts(body, now)
        if logger.isEnabledFor(logging.DEBUG):
            for number in range(before + 1, self._record.chunks + 1):
                logger.debug("event %d of stream %s", number, self._record.stream_id)
        return parts

    async def _write_slow_path(self, message: Message, now: float) -> None:
        """Write a message that is not coalesced, such as the end of the response."""
        if now >= self._busy_deadline:
            self._on_deadline(now)
        if self._closed:
            await self._callbacks.on_write_after_end()
        elif self._is_detached and (
            message["type"] not in (BODY, _PATHSEND) or self._state.reason is not None
        ):
            return
        elif self._state.reason is not None:
            await self._send_as_app(message, 0)
        elif self._state.client_kind is ClientKind.OFF:
            await self._pass_through(message, now)
        elif message["type"] == BODY:
            await self._write_body(message, now)
        elif message["type"] == _PATHSEND:
            await self._write_file(message["path"])
        else:
            await self._flush()
            await self._wait_for_turn()
            if not (self._closed or self._is_detached):
                await self._send_as_app(message, 0)
        if self._state.reason is not None and not self._closed:
            self._stop_timer()
            self._report_end(self._state.reason)

    async def _write_body(self, message: Message, now: float) -> None:
        body, more_body = message.get("body", b""), message.get("more_body", False)
        self._raise_failure()
        if self._pacing is not None:
            async with self._pacing.turn:
                await self._write_paced(self._pacing, body, now)
            body = b""
        for part in self._feed(body, now):  # in the order of their numbers
            self._append(part)
        if not more_body and self._state.reports_end:
            # FastAPI's event streams end the response before they raise the exception of their
            # generator, and cancel this write in the next iteration of the loop.
            await asyncio.sleep(0)
        if not self._is_detached:
            await self._wait_for_turn()
        if self._closed:
            return
        self._raise_failure()
        data = joined(self._take_pending())
        if not more_body:
            data += self._finish(now).data
        if self._is_detached:
            await self._throttle(len(data))
        elif data or not more_body:
            if data is not message.get("body"):
                message = body_message(data, more_body=more_body)
            await self._send_as_app(message, len(data))

    def _finish(self, now: float) -> End:
        return self._state.finish(now)

    async def _throttle(self, size: int) -> None:
        """Delay an app that writes `size` bytes while no client slows it down."""

    async def _write_paced(self, pacing: "_Pacing", body: Any, now: float) -> None:
        for part in self._feed(body, now):
            if has_data(part):
                await asyncio.sleep(max(0.0, pacing.next_at - self._clock()))
                pacing.next_at = self._clock() + pacing.seconds
            if self._closed:
                return
            if not self._is_detached:
                self._enqueue(part)
                await self._flush()

    async def _write_file(self, path: str) -> None:
        """Write the content of a file in place of the server, with our events around it."""
        # Opened here, not in a thread: a cancellation would leave the file open.
        with open(path, "rb") as file:  # noqa: ASYNC230, PTH123
            while chunk := await asyncio.to_thread(file.read, _PATHSEND_CHUNK_BYTES):
                await self._write_body(body_message(chunk), self._clock())
        await self._write_body(body_message(b"", more_body=False), self._clock())

    async def _pass_through(self, message: Message, now: float) -> None:
        """Count a message that is passed on unchanged."""
        body = message.get("body", b"")
        if message["type"] == BODY:
            self._feed(body, now)
            if not message.get("more_body", False):
                self._state.finish(now)
        await self._send_as_app(message, len(body))


class _Pacing:
    """The minimum interval of two content events, and the earliest time of the next one.

    Args:
        seconds: the interval.

    Attributes:
        turn: the lock of the write that is paced.
    """

    __slots__ = ("next_at", "seconds", "turn")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.next_at = 0.0
        self.turn = asyncio.Lock()
