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


NOBODY, APP, SCRIBE = range(3)  # who is in the server's `send`
HELD_BYTES = 1 << 14
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
        "_began",
        "_clock",
        "_failure",
        "_flushes",
        "_held",
        "_held_bytes",
        "_hold_until",
        "_observers",
        "_record",
        "_send",
        "_taken_bytes",
        "_ticker",
        "_waiting",
        "_who_writes",
        "_write_ends",
        "broken",
        "context",
        "waits_in",
    )

    def __init__(
        self,
        send: Send,
        ticker: LoopTimers,
        record: StreamRecord,
        observers: Sequence[Observer],
    ) -> None:
        self._send = send
        self._ticker = ticker
        self._clock = ticker.clock
        self._record = record
        self._observers = observers
        self._held: list[bytes] = _NOTHING
        self._held_bytes = 0
        self._taken_bytes = 0  # of all that was ever held
        self._hold_until = 0.0  # what comes before is held: it follows a write at once
        self._began = 0.0  # the last write, or the one that is under way
        self._who_writes = NOBODY
        self._flushes = 0  # of the app, under way
        self._waiting: tuple[object, ...] = ()  # writes of the app that wait for another one
        self._write_ends: asyncio.Event | None = None
        self.waits_in: asyncio.Task[Any] | None = None
        self._failure: Exception | None = None
        self.broken = False
        self.context = contextvars.copy_context()
        ticker.scribe.join()

    def app_waits(self) -> bool:
        """Whether a write of the app is under way."""
        return bool(self._flushes or self._waiting) or self._who_writes == APP

    def blocked_at(self) -> int | None:
        """Return how much was sent before the write that is under way, `None` where none is."""
        return self._record.sent_bytes if self._who_writes else None

    async def write_held(self) -> None:
        """Write what is held, and what is to be the last, until none is left or somebody waits."""
        while not (self._who_writes or self._waiting) and self._is_owing():
            began = self._began = self._clock()
            data, more_body = self._take_all()
            self._who_writes = SCRIBE
            try:
                if data or not more_body:
                    await self._send(body_message(data, more_body=more_body))
                    self._record.sent_bytes += len(data)
            except Exception as exc:  # noqa: BLE001 - the app is told at its next write
                if not self._lose_client():
                    self._failure = exc
            except asyncio.CancelledError:
                if not self._lose_client():
                    self._failure = ConnectionAbortedError(
                        "a write was cancelled, the stream has a gap"
                    )
                raise
            finally:
                self._who_writes = NOBODY
                self.waits_in = None
                self._pass_turn_on(began)

    def on_tick(self) -> None:
        """Look at what waits, so that it is kept even where a write is blocked, and let it out."""
        self._take_in()
        self._write_in_background()

    def _is_owing(self) -> bool:
        """Whether there is anything to be written in the background."""
        return bool(self._held)

    def _take_all(self) -> tuple[bytes, bool]:
        """Return what is to be written in the background, and whether more may follow it."""
        return joined(self._take_held()), True

    def _hold(self, data: bytes) -> None:
        if not self._held:
            self._ticker.hold(self)
        self._keep(data)

    def _keep(self, data: bytes) -> None:
        if self._held:
            self._held.append(data)
        else:
            self._held = [data]
        self._held_bytes += len(data)

    def _take_in(self) -> None:
        """Hold what is to be held."""

    def _take_held(self) -> list[bytes]:
        self._take_in()
        held, self._held = self._held, _NOTHING
        self._taken_bytes += self._held_bytes
        self._held_bytes = 0
        return held

    async def _flush(self) -> None:
        """Wait until what is held now has been written.

        The scribe writes it: whoever cancels the app's write does not take along what it has got
        rid of already.

        Raises:
            Exception: what the server has raised in a write of the scribe's.
        """
        self._take_in()
        behind = self._taken_bytes + self._held_bytes
        self._flushes += 1
        try:
            while self._taken_bytes < behind:
                self._write_in_background()
                await self._end_of_write()
        finally:
            self._flushes -= 1
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._take_held()  # nothing may follow the gap
            raise self._failure

    async def _send_as_app(self, message: Message, size: int) -> None:
        began = self._began = self._clock()
        self._who_writes = APP
        try:
            await self._send(message)
            self._record.sent_bytes += size
        except Exception:
            if not self._lose_client():
                raise
        except asyncio.CancelledError:
            if not self._was_freed():
                raise
        finally:
            self._who_writes = NOBODY
            self._pass_turn_on(began)

    def _was_freed(self) -> bool:
        """Tell whether the app is to go on though its write was cancelled."""
        return False

    async def _wait_for_turn(self) -> None:
        """Wait until nobody writes, behind whoever waits already, or until there is no need."""
        if not (self._who_writes or self._waiting):
            return
        me = object()
        self._waiting += (me,)
        try:
            while me in self._waiting and (self._who_writes or self._waiting[0] is not me):
                await self._end_of_write()
        finally:
            self._waiting = tuple(other for other in self._waiting if other is not me)
            self._wake_waiting()
            self._write_in_background()  # in case that this one does not write after all

    async def _end_of_write(self) -> None:
        if self._write_ends is None:
            self._write_ends = asyncio.Event()
        await self._write_ends.wait()

    def _wake_waiting(self) -> None:
        if self._write_ends is not None:
            self._write_ends.set()
            self._write_ends = None

    def _lose_client(self) -> bool:
        """Give up what was to be written; tell whether the app goes on and need not know."""
        self._break()
        return False

    def _break(self) -> None:
        """Give up what was to be written, for it cannot be."""
        self.broken = True
        self._take_held()
        self._wake_waiting()

    def _pass_turn_on(self, began: float) -> None:
        """Look at how long a write has taken, and let the next one begin."""
        self._wake_waiting()
        self._write_in_background()
        took = self._clock() - began
        if took > STALL_SECONDS:
            for observer in self._observers:
                observer.stalled(self._record, took)

    def _write_in_background(self) -> None:
        if not self._who_writes and self._is_owing():
            self._ticker.scribe.write_soon(self)

    async def _settle(self, patience: float) -> None:
        """Wait `patience` seconds for what is to be written yet, and give the rest up."""
        self._ticker.scribe.leave()
        try:
            if self._who_writes or self._is_owing():
                async with asyncio.timeout(patience):
                    while self._who_writes or self._is_owing():
                        await self._wait_for_turn()
                        await self.write_held()
        except TimeoutError:
            logger.debug("stream %s ended with bytes unsent", self._record.stream_id)
        finally:
            if self._who_writes or self._is_owing():
                self._break()
            if self.waits_in is not None:
                self.waits_in.cancel()


def joined(parts: list[bytes]) -> bytes:
    """Return `parts` as one."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
