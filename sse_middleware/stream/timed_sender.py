"""What time does to one stream: heartbeats, its end, a client that takes nothing.

All that it makes due is written in the background. The end of the server is time, too.
"""

import logging
import math
import random
from collections.abc import Sequence
from typing import Protocol

from starlette.types import Send

from sse_middleware.observability.observer import Observer
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.deadlines import Due, Reason
from sse_middleware.protocol.stream_state import End, StreamState
from sse_middleware.stream.owner import NOBODY_OWNS, Owner
from sse_middleware.stream.sender import Sender, joined
from sse_middleware.stream.timers import LoopTimers

logger = logging.getLogger("sse_middleware.stream")

_PROGRESS_SECONDS = 10.0
"""How often observers are told of a stream that goes on, at most; scrapes come each 15 s or so."""


class StreamSlot(Protocol):
    """The slot that a stream occupies if the number of streams is limited."""

    def wait(self, *, waits: bool) -> None:
        """Release the slot while the stream lingers, or occupy it again."""

    def give_back(self) -> None:
        """Release the slot; further calls have no effect."""


class TimedSender(Sender):
    """Write what time makes due, and what the end of the stream is.

    Args:
        state: the stream's.
        send: the server's.
        ticker: that of the running loop.
        observers: who is told of the stream.
        owner: hears of the end that time has brought.
    """

    __slots__ = (
        "_busy_deadline",
        "_closed",
        "_end",
        "_owner",
        "_regular",
        "_slot",
        "_state",
        "_tell_at",
        "_unread",
        "place",
    )

    def __init__(
        self,
        state: StreamState,
        send: Send,
        ticker: LoopTimers,
        *,
        observers: Sequence[Observer],
        owner: Owner,
    ) -> None:
        super().__init__(send, ticker, state.record, observers)
        self._state = state
        self._owner = owner
        self._regular = False  # whether an event takes the shortest way
        self._unread = False  # whether it goes on though this client reads no more
        self._closed = False  # by the cap or an exception, while the app was at it
        self._end: End | None = None  # what is to be written then, until it is
        self._slot: int | None = None
        self._tell_at = self._clock() + _PROGRESS_SECONDS
        self.place: StreamSlot | None = None  # given back at the end, where streams are limited
        self._set_timer()
        for observer in observers:
            observer.opened(self._record)
        ticker.drain.join(self)

    @property
    def drains(self) -> bool:
        """Whether the server ends."""
        return self._ticker.drain.begun

    def remaining_seconds(self) -> float | None:
        """Return the time until the cap ends the stream, `None` where none does."""
        return None if self._state.rotates else self._state.remaining_seconds(self._clock())

    @property
    def drain_seconds(self) -> float:
        """How long the stream may go on when its server ends."""
        return self._state.options.drain_seconds

    def abort(self) -> None:
        """Say that the server ends, where the app has left for that without an end."""
        is_mute = self._is_ended() or self._who_writes or (self.broken and not self._unread)
        if self._state.tells_end and not is_mute:
            self._close(self._state.shut_down(self._clock(), random.random()))  # noqa: S311

    def on_drain(self) -> None:
        """Hear that the server ends."""

    def on_drain_over(self) -> None:
        """End, for the server waits for nothing else."""
        if not (self._is_ended() or self._state.family is ClientKind.OFF):
            self._close(self._state.shut_down(self._clock(), random.random()))  # noqa: S311
            self._owner.on_end()

    def fail(self) -> bool:
        """End the stream because the app has raised an exception; tell whether it was open."""
        if self._is_ended() or (self.broken and not self._unread):
            return False
        self._close(self._state.fail(self._clock()))
        return True

    def client_left(self) -> bool:
        """Take note that nobody reads any more; the cap still holds for the app.

        Returns:
            Whether the app goes on as if it had a reader, and need not know yet.
        """
        if not self._is_ended() and self._lose_client():
            return True
        self._tell_end("disconnected")
        return False

    def evict(self) -> None:
        """End the stream because its place is needed."""
        if not self._is_ended():
            self._close(self._state.evict(self._clock()))
            self._owner.on_end()

    def listen(self) -> None:
        """See to it that somebody hears when the client leaves."""
        self._owner.on_silence()

    async def settle(self, patience: float, outcome: str) -> None:
        """Leave nothing behind.

        Args:
            patience: how long to wait for what is to be written yet, in seconds.
            outcome: how the stream has ended, where nothing else has ended it.
        """
        self._stop()
        outcome = "disconnected" if self.broken else outcome
        try:
            await self._settle(patience)
        finally:
            self._ticker.drain.leave(self)
            self._tell_end(outcome)
            # Nothing of a stream that has ended is to wait for the garbage collector.
            self._owner = NOBODY_OWNS
            self.context = self._ticker.context

    def on_time(self, now: float) -> None:
        """Do what time has made due."""
        if self._slot is None:
            return
        if now >= self._tell_at:
            self._tell_at = now + _PROGRESS_SECONDS
            if self._record.outcome is None:
                for observer in self._observers:
                    observer.progressed(self._record)
        self._look_at_time(now)

    def _look_at_time(self, now: float) -> None:
        if self._who_writes and now >= self._began + self._patience():
            self._lose_blocked_client()
            if self._closed:
                return
        due = self._state.due(now)
        if due is Due.CAP:
            self._owner.on_cap()
            self._reach_cap(now)
            return
        if due is Due.HEARTBEAT:
            self._state.plan_heartbeat(now)
            if not self._who_writes and not self.broken:  # never behind a blocked write
                heartbeat = self._state.heartbeat(now)
                if heartbeat:
                    self._keep(heartbeat)
                    self._ticker.scribe.write_soon(self)
                logger.debug("heartbeat of stream %s", self._record.stream_id)
        self._set_timer()

    def _reach_cap(self, now: float) -> None:
        if self._state.rotates:
            self._let_client_go(now, Reason.DURATION_CAP)
        else:
            self._close(self._state.reach_cap(now))
            self._owner.on_end()

    def _let_client_go(self, now: float, reason: Reason) -> None:
        """End the connection of somebody who is to come back, and with it what is done here."""
        end = self._state.rotate(now, random.random())  # noqa: S311 - no secret
        self._state.end_as_told(reason)
        self._close(end)
        self._owner.on_end()

    def _set_timer(self) -> None:
        if self._slot is not None:
            self._stop()
        self._busy_deadline = self._state.busy_deadline()
        deadline = self._deadline()
        if deadline < math.inf:
            self._slot = self._ticker.wake(self, deadline)

    def _deadline(self) -> float:
        """Return when the stream is to be looked at; also for a write that may begin meanwhile."""
        began = self._began if self._who_writes else self._clock()
        return min(self._state.deadline(), began + self._patience())

    def _patience(self) -> float:
        """Return how long a client may block a write, in seconds."""
        if self._unread or self.broken:
            return math.inf
        timeout = self._state.options.send_timeout
        return math.inf if timeout is None or self._state.family is ClientKind.OFF else timeout

    def _lose_blocked_client(self) -> None:
        """Take note that nobody reads any more; what a server has of a write stays there."""
        self._break()
        self._closed = True
        self._stop()
        self._tell_end("disconnected")
        self._owner.on_end()

    def _take_long_way(self) -> None:
        """Look at each message by itself from here on."""
        self._regular = False
        self._hold_until = 0.0

    def _is_ended(self) -> bool:
        return self._closed or self._state.reason is not None

    def _stop(self) -> None:
        self._busy_deadline = math.inf
        if self._slot is not None:
            self._ticker.forget(self, self._slot)
            self._slot = None

    def _close(self, end: End) -> None:
        self._closed = True
        self._take_long_way()
        self._stop()
        if self.broken or self._unread:  # this connection has ended, or is about to
            self._tell_end("disconnected")
        else:
            if end.before:
                self._keep(end.before)
            self._end = end
            self._write_in_background()

    def _break(self) -> None:
        super()._break()
        self._take_long_way()
        self._end = None

    def _is_owing(self) -> bool:
        """Whether there is anything to be written."""
        return bool(self._held or self._state.fresh) or self._end is not None

    def _take_in(self) -> None:
        """Hold what waits in the state as what it becomes."""
        if not self._state.fresh:
            return
        if data := self._state.take():
            self._keep(data)
        self._held_bytes = sum(map(len, self._held))

    def _take_all(self) -> tuple[bytes, bool]:
        end, self._end = self._end, None
        held = self._take_held()
        if end is None or not end.clean or self.broken:
            return joined(held), True
        return joined([*held, end.data]), False

    def _pass_turn_on(self, began: float) -> None:
        super()._pass_turn_on(began)
        if self._closed and not self._is_owing():
            self._tell_end("disconnected")

    def _tell_end(self, outcome: str) -> None:
        record = self._record
        if record.outcome is None:
            record.outcome = self._state.reason or outcome
            if record.outcome == "disconnected":
                record.disconnects = 1
            record.duration_seconds = self._state.duration_seconds(self._clock())
            if self.place is not None:
                self.place.give_back()
            for observer in self._observers:
                observer.ended(record)
