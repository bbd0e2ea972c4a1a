"""Inputs of a connection in any order: none meets a missing cell of the table.

An input comes from the producer, the log, the clock, the client or the server, and each of them may
be next, whatever the others have done.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from sse_middleware import StoreError
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.connection_state import ConnectionPhase
from sse_middleware.protocol.stream_end import Reason, StreamEnd
from sse_middleware.stores.base import Batch, LogState
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.sender import Sender
from sse_middleware.stream.timers import current_timers
from tests.support.clock import VirtualClockLoop
from tests.support.dialects import new_dialect
from tests.support.samples import sampled

LATER_END = b'{"reason":"of a later version"}'
STEPS = 40


class Walk:
    """One connection, and all that can happen to it."""

    def __init__(self, dice: random.Random) -> None:
        self.timers = current_timers()
        self.dice = dice
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.closed = 0
        self.number = 0
        kind = dice.choice((ClientKind.EVENTSOURCE, ClientKind.PLAIN, ClientKind.OPENAI))
        action = dice.choice(("rotate", "complete"))
        dialect = new_dialect(
            kind,
            heartbeat_interval=1,
            stream_max_seconds=20,
            cap_action=action,
            retry_ms=100,
            send_timeout=dice.choice((None, 0.5, 5)),
        )
        dialect.record.opened_at = now = self.timers.clock()
        self.preamble = dialect.open(now, 0.0, jitter=dice.random())
        sender = Sender(self.send, self.timers, dialect.record, ())
        self.connection = Connection(dialect, sender, self)
        self.tasks: list[asyncio.Task[None]] = []

    async def send(self, _: Any) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    def on_connection_closed(self, _: Connection) -> None:
        self.closed += 1

    async def run(self) -> None:
        """Make random steps, and check the connection after each."""
        steps = [getattr(self, name) for name in dir(self) if name.startswith("step_")]
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if self.dice.random() < 0.3:
            self.step_block()
        self.tasks.append(asyncio.ensure_future(self.connection.open(start, self.preamble)))
        await asyncio.sleep(0)
        for _ in range(STEPS):
            step: Callable[[], None] = self.dice.choice(steps)
            step()
            self.check()
            if self.dice.random() < 0.7:  # else the next step is made in the same turn of the loop
                await asyncio.sleep(self.dice.choice((0, 0, 0.1, 1)))
            self.check()
        self.connection.release()
        for task in self.tasks:
            task.cancel()
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        expected = (asyncio.CancelledError, ConnectionResetError, type(None))
        assert [result for result in results if not isinstance(result, expected)] == []
        assert self.closed == 1

    def check(self) -> None:
        is_closed = self.connection.phase is ConnectionPhase.CLOSED
        assert self.closed == is_closed
        if not self.connection.is_open:  # no heartbeat and no cap can follow
            assert self.connection.dialect.deadlines.deadline() == float("inf")

    # What can happen

    def step_time(self) -> None:
        now = self.timers.clock() + self.dice.choice((0, 1, 30))
        if self.connection.on_deadline(now):
            self.connection.rotate(now)
        assert self.connection.deadline(now) > now  # or its timer would fire again at once

    def step_pass_on(self) -> None:
        if self.dice.random() < 0.2:
            self.connection.pass_on(has_sent=self.dice.random() < 0.5)

    def step_events(self) -> None:
        self.number += 1
        self.connection.append(b"data: %d\n\n" % self.number, self.number, 1)
        self.connection.sender.flush_soon()

    def step_parts(self) -> None:
        parts = [(0, b": ping\r\n\r\n"), (-1, b"data: lo")]
        self.connection.append_parts(parts, self.timers.clock())
        self.connection.sender.flush_now()

    def step_lag(self) -> None:
        self.connection.lag()

    def step_rotate(self) -> None:
        self.connection.rotate(self.timers.clock())

    def step_cut(self) -> None:
        self.connection.cut(self.timers.clock())

    def step_stream_end(self) -> None:
        self.connection.on_stream_end(StreamEnd(self.dice.choice(list(Reason))))

    def step_log_end(self) -> None:
        state = self.dice.choice((LogState.FINISHED, LogState.CANCELLED, LogState.LOST))
        self.connection.on_log_end(Batch(state, self.number, b""))

    def step_log_end_of_another_version(self) -> None:
        with pytest.raises(StoreError):
            self.connection.on_log_end(Batch(LogState.FINISHED, self.number, LATER_END))

    def step_store_failure(self) -> None:
        self.connection.on_store_failure()

    def step_follow(self) -> None:
        self.tasks.append(asyncio.ensure_future(self._follow()))

    def step_disconnect(self) -> None:
        if self.dice.random() < 0.3:
            self.connection.on_disconnect()

    def step_fail(self) -> None:
        self.error = ConnectionResetError() if self.dice.random() < 0.3 else None

    def step_block(self) -> None:
        self.gate.clear()

    def step_unblock(self) -> None:
        self.gate.set()

    async def _follow(self) -> None:
        try:
            await self.connection.follow(self._log(), self.number, self.timers.clock)
        except StoreError:
            self.connection.on_store_failure()

    async def _log(self) -> AsyncGenerator[Batch, None]:
        while True:
            await asyncio.sleep(self.dice.choice((0, 1)))
            self.number += 1
            yield Batch(LogState.RUNNING, self.number, b"data: x\n\n")
            if self.dice.random() < 0.3:
                break
        state = self.dice.choice((LogState.TRUNCATED, LogState.FINISHED, LogState.GONE))
        yield Batch(state, self.number, self.dice.choice((b"", LATER_END)))


@pytest.mark.parametrize("first", range(0, sampled(400), 50))
def test_inputs_in_any_order_meet_no_missing_cell(first: int) -> None:
    for seed in range(first, first + 50):

        async def walk(seed: int = seed) -> None:
            await Walk(random.Random(seed)).run()

        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(walk())
