"""Each cell of the table of a connection: the action's effect, and the next phase."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.connection_state import (
    CONNECTION_TABLE,
    ConnectionAction,
    ConnectionInput,
    ConnectionPhase,
)
from sse_middleware.protocol.stream_end import Reason, StreamEnd
from sse_middleware.stores.base import Batch, LogState
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.sender import Sender
from sse_middleware.stream.timers import current_timers
from tests.support.dialects import new_dialect

pytestmark = pytest.mark.anyio

on, act = ConnectionInput, ConnectionAction
OPENING, LIVE, BEHIND, CLOSING, CLOSED = PHASES = tuple(ConnectionPhase)
START = {"type": "http.response.start", "status": 200, "headers": []}
EVENT = b"data: a\n\n"
CELLS = sorted(CONNECTION_TABLE, key=lambda cell: (cell[0].value, cell[1].value))

LATER = [(OPENING, on.STARTED), (OPENING, on.WRITE_FAILS), (CLOSING, on.WRITE_FAILS)]
"""The cells whose input comes when the server continues."""


class Driver:
    """A real connection with a fake server, and the inputs of its table."""

    def __init__(self, client_kind: ClientKind = ClientKind.EVENTSOURCE) -> None:
        self.timers = current_timers()
        self.sent: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.closed = 0
        dialect = new_dialect(client_kind, heartbeat_interval=4, send_timeout=20)
        dialect.record.opened_at = now = self.timers.clock()
        self.preamble = dialect.open(now, 0.0)
        sender = Sender(self.send, self.timers, dialect.record, ())
        self.connection = Connection(dialect, sender, self)
        self.tasks: list[asyncio.Task[None]] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    def on_connection_closed(self, connection: Connection) -> None:
        assert connection is self.connection
        assert connection.phase is CLOSED
        self.closed += 1

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def is_complete(self) -> bool:
        return self.sent[-1].get("more_body") is False

    def run(self, work: Awaitable[None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def enter(self, phase: ConnectionPhase) -> None:
        """Bring the connection into a phase; in each but the last one, a write is blocked."""
        connection = self.connection
        self.gate.clear()
        self.run(connection.open(START, self.preamble))
        await asyncio.sleep(0)
        if phase is OPENING:
            return
        self.gate.set()
        await self.settle()
        if phase is CLOSED:
            connection.on_disconnect()
            return
        connection.sender.append(EVENT)
        connection.sender.flush_soon()
        await self.settle()
        if phase is BEHIND:
            assert connection.lag() is not None
        elif phase is CLOSING:
            self.gate.clear()
            connection.on_stream_end(StreamEnd(Reason.FINISHED))
            await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        self.connection.release()
        self.gate.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    # The inputs

    async def log(self, *batches: Batch) -> AsyncGenerator[Batch, None]:
        for batch in batches:
            yield batch

    async def started(self) -> None:
        self.gate.set()
        if self.connection.phase is OPENING:
            return
        self.connection._move(on.STARTED)  # the start was sent while the connection ended

    async def events(self) -> None:
        self.connection.append(EVENT, 1, 1)
        self.connection.sender.flush_now()

    async def lags(self) -> None:
        self.connection.lag()

    async def caught_up(self) -> None:
        batch = Batch(LogState.RUNNING, 1, EVENT)
        await self.connection.follow(self.log(batch), 0, self.timers.clock)

    async def heartbeat_is_due(self) -> None:
        self.connection.on_deadline(self.timers.clock() + 4)

    async def cap(self) -> None:
        self.connection.rotate(self.timers.clock())

    async def stream_ends(self) -> None:
        self.connection.on_stream_end(StreamEnd(Reason.FINISHED))

    async def log_ends(self) -> None:
        self.connection.on_log_end(Batch(LogState.FINISHED, 1, StreamEnd(Reason.FINISHED).pack()))

    async def written(self) -> None:
        self.gate.set()
        self.connection.on_written()

    async def client_leaves(self) -> None:
        self.connection.on_disconnect()

    async def client_is_blocked(self) -> None:
        self.gate.clear()
        self.connection.sender.append(b": blocks\n\n")
        self.connection.sender.flush_now()
        self.connection.on_deadline(self.timers.clock() + 100)

    async def write_fails(self) -> None:
        self.error = ConnectionResetError()
        self.gate.set()
        self.connection.sender.append(b": fails\n\n")
        self.connection.sender.flush_now()

    async def grace_is_over(self) -> None:
        self.connection.give_up()


INPUTS: dict[ConnectionInput, Callable[[Driver], Awaitable[None]]] = {
    given: getattr(Driver, given.name.lower()) for given in ConnectionInput
}


@pytest.mark.parametrize(("phase", "given"), CELLS, ids=lambda part: part.name.lower())
async def test_each_cell_of_the_table_has_its_effect(
    phase: ConnectionPhase, given: ConnectionInput
) -> None:
    driver = Driver()
    connection = driver.connection
    await driver.enter(phase)
    assert connection.phase is phase
    before, pending = driver.body, connection.sender.pending_bytes
    closed_by = connection.closed_by
    action, next_phase = CONNECTION_TABLE[phase, given]

    await INPUTS[given](driver)
    at_once = connection.phase
    sent_at_once = driver.body
    driver.gate.set()
    await driver.settle()
    written = driver.body[len(before) :]

    if (phase, given) in LATER:
        assert connection.phase is next_phase
    else:
        assert at_once is next_phase
    assert driver.closed == (CLOSED in (phase, next_phase) or connection.phase is CLOSED)
    if action in (act.CLOSE, act.CUT, act.ABANDON):
        assert connection.closed_by is given
    elif phase is CLOSED:
        assert connection.closed_by is closed_by

    if action is act.WRITE:
        assert written
    elif action is act.ENQUEUE:
        assert sent_at_once == before == b""
        assert connection.sender.pending_bytes or written
    elif action is act.READ_LOG:
        assert connection.sender.pending_bytes == 0
    elif action is act.WRITE_END:
        assert driver.is_complete
        assert connection.phase is CLOSED
        assert connection.closed_by is on.WRITTEN
    elif action is act.CUT:
        assert EVENT not in written
        assert driver.is_complete
    elif action is act.ABANDON:
        assert connection.sender.is_broken
        assert connection.sender.pending_bytes == 0
        assert not driver.is_complete or phase is CLOSING
    elif action is act.IGNORE and phase is CLOSED:
        assert (written, connection.sender.pending_bytes) == (b"", pending)
    await driver.aclose()
    assert driver.closed == 1


def test_each_input_has_a_driver_and_each_cell_is_visited() -> None:
    assert set(INPUTS) == set(ConnectionInput)
    assert set(CELLS) == set(CONNECTION_TABLE)


def test_a_closed_connection_stays_closed() -> None:
    moves = {move for (phase, _), move in CONNECTION_TABLE.items() if phase is CLOSED}
    assert moves == {(act.IGNORE, CLOSED)}


def test_only_one_cell_of_each_input_leaves_a_phase_for_an_earlier_one() -> None:
    back = {
        (phase, given)
        for (phase, given), (_, following) in CONNECTION_TABLE.items()
        if following.value < phase.value
    }
    assert back == {(BEHIND, on.CAUGHT_UP)}


async def test_a_connection_does_not_read_the_log_before_its_first_bytes_are_sent() -> None:
    driver = Driver()
    await driver.enter(OPENING)
    assert driver.connection.lag() is None
    driver.gate.set()
    await driver.settle()
    assert driver.connection.phase is LIVE
    driver.connection.sender.flush_now()
    assert driver.body == driver.preamble
    await driver.aclose()


@pytest.mark.parametrize("reason", [Reason.ERROR, Reason.INCOMPLETE, Reason.DURATION_CAP])
async def test_an_unclean_end_during_the_response_start_closes_the_connection(
    reason: Reason,
) -> None:
    driver = Driver(ClientKind.PLAIN)
    await driver.enter(OPENING)
    driver.connection.on_stream_end(StreamEnd(reason))
    assert driver.connection.phase is CLOSING
    driver.gate.set()
    await driver.settle()
    assert driver.connection.closed_by is on.WRITTEN
    assert len(driver.sent) == 1  # the server reports the end
    await driver.aclose()
