"""Each cell of the table of a producer: the action's effect, and the next phase."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.connection_state import ConnectionPhase
from sse_middleware.protocol.producer_state import (
    PRODUCER_TABLE,
    ProducerAction,
    ProducerInput,
    ProducerPhase,
)
from sse_middleware.protocol.stream_end import Reason, unpack_end
from sse_middleware.stores.base import LogState
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.linger import LingerQueue
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.sender import Sender
from sse_middleware.stream.timers import current_timers
from sse_middleware.testing.streams import log_info
from tests.support.clock import VirtualClockLoop
from tests.support.dialects import RecordedLog, new_dialect, new_intake, new_profile
from tests.support.observers import RecordingObserver
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio

on, act = ProducerInput, ProducerAction
OPEN, DETACHED, LEFT, COMPLETE, ENDED = tuple(ProducerPhase)
START = {"type": "http.response.start", "status": 200, "headers": []}
CELLS = sorted(PRODUCER_TABLE, key=lambda cell: (cell[0].value, cell[1].value))
NOT_KEPT = [(OPEN, on.CLIENT_HAS_LEFT), (OPEN, on.CLIENT_IS_CUT)]
SETTINGS: dict[str, Any] = {"stream_max_seconds": 60, "cap_action": "complete", "send_timeout": 20}
STATES = {
    Reason.FINISHED: LogState.FINISHED,
    Reason.CANCELLED: LogState.CANCELLED,
    Reason.INCOMPLETE: LogState.LOST,
    Reason.LOST: LogState.LOST,
    Reason.GONE: LogState.GONE,
}
OUTCOMES = {Reason.GONE: "disconnected", Reason.LOST: "aborted"}


class EndedLog(RecordedLog):
    """A log that records its end."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[LogState, bytes]] = []

    def end(self, state: LogState, frame: bytes = b"") -> None:
        self.ends.append((state, frame))

    def set_name(self, name: str) -> None:
        raise AssertionError(name)

    async def flush(self) -> None:
        pass


class OneLog:
    """A store with one log."""

    is_shared = False

    def __init__(self, log: EndedLog) -> None:
        self.log = log

    def create(self, *_: object) -> EndedLog:
        return self.log


class Slot:
    """A slot that records how it is used."""

    def __init__(self) -> None:
        self.released = 0
        self.lingers: list[bool] = []

    def set_lingering(self, *, lingers: bool) -> None:
        self.lingers.append(lingers)

    def release(self) -> None:
        self.released += 1


class Callbacks:
    """The object that runs the app: counts the calls."""

    def __init__(self) -> None:
        self.caps = self.ends = self.discarded = 0

    def warn(self, warning: str) -> None:
        self.caps += warning == "cap"

    def on_end(self) -> None:
        self.ends += 1

    def watch_for_disconnect(self) -> None:
        pass

    async def on_write_after_end(self) -> None:
        self.discarded += 1


class Driver:
    """A real producer and its connection with a fake server, and the inputs of its table."""

    def __init__(self, *, is_kept: bool) -> None:
        self.timers = timers = current_timers()
        self.sent: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.log, self.slot, self.reports = EndedLog(), Slot(), RecordingObserver()
        self.callbacks = Callbacks()
        kind = ClientKind.EVENTSOURCE
        intake = new_intake(kind, is_kept=False, **SETTINGS)
        self.record = intake.record
        self.record.opened_at = now = timers.clock()
        self.queue = LingerQueue(10, ())
        self.producer = Producer(
            new_profile(kind, **SETTINGS),
            intake,
            timers,
            observers=[self.reports],
            callbacks=self.callbacks,
            linger_queue=self.queue,
        )
        if is_kept:
            store: Any = OneLog(self.log)
            self.producer.log.create(store, log_info())
        self.producer.report.slot = self.slot
        dialect = new_dialect(kind, self.record, **SETTINGS)
        self.preamble = dialect.open(now, 0.0)
        sender = Sender(self.send, timers, self.record, [self.reports])
        self.connection = Connection(dialect, sender, self.producer)

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await self.gate.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    async def write(self, body: bytes, *, more_body: bool = True) -> dict[str, Any]:
        message = {"type": "http.response.body", "body": body, "more_body": more_body}
        await self.producer.write(message)
        return message

    async def enter(self, phase: ProducerPhase) -> None:
        """Bring the producer into a phase."""
        self.producer.attach(self.connection)
        await self.producer.open(START, self.preamble)
        await self.write(b"data: first\n\n")
        await asyncio.sleep(1)
        if phase in (DETACHED, LEFT):
            self.producer.on_disconnect()
        elif phase is COMPLETE:
            await self.write(b"", more_body=False)
        elif phase is ENDED:
            self.producer.control.on_drain_over()
        await asyncio.sleep(0)

    # The inputs

    async def app_writes(self) -> None:
        self.message = await self.write(b"data: second\n\n")
        await asyncio.sleep(0.1)

    async def app_ends(self) -> None:
        self.message = await self.write(b"", more_body=False)

    async def app_raises(self) -> None:
        self.producer.on_app_raised()

    async def app_returns(self) -> None:
        self.producer.move(on.APP_RETURNS)

    async def app_is_cancelled(self) -> None:
        self.producer.on_app_cancelled()

    async def app_is_lost(self) -> None:
        if self.producer.phase is not OPEN:
            self.producer.move(on.APP_IS_LOST)
            return
        self.block()
        self.producer.on_app_cancelled()

    async def app_stops_for_drain(self) -> None:
        self.producer.move(on.APP_STOPS_FOR_DRAIN)

    async def connection_follows(self) -> None:
        if self.producer.phase in (OPEN, DETACHED):
            self.producer.log.on_readers_changed(has_readers=True)
        else:
            self.producer.move(on.CONNECTION_FOLLOWS)

    async def client_may_return(self) -> None:
        if self.producer.phase is OPEN:
            self.producer.on_disconnect()
            return
        self.producer.log.on_readers_changed(has_readers=True)
        assert len(self.queue) == 0
        self.producer.log.on_readers_changed(has_readers=False)

    async def client_has_left(self) -> None:
        if self.producer.phase is OPEN:
            self.producer.on_disconnect()
        else:
            await self.write(b"id: own\ndata: x\n\n")

    async def client_is_cut(self) -> None:
        self.block()
        self.connection.on_deadline(self.timers.clock() + 100)

    async def linger_is_over(self) -> None:
        self.producer.control.expire()

    async def cap(self) -> None:
        producer = self.producer
        if producer.phase in (COMPLETE, ENDED):  # set by the last bytes of a plain client
            producer.on_openai()
        is_over = producer.is_ended or producer.phase is LEFT
        producer.on_timer(self.record.opened_at + 60)
        assert self.callbacks.caps == (not is_over)
        assert producer.remaining_seconds() is None

    async def drain_is_over(self) -> None:
        self.producer.control.on_drain_over()

    async def evict(self) -> None:
        if self.producer.phase is DETACHED:  # read by others
            self.producer.log.on_readers_changed(has_readers=True)
        self.producer.control.evict()

    async def cancel(self) -> None:
        self.producer.log.on_cancel()

    def block(self) -> None:
        self.gate.clear()
        self.connection.sender.append(b": blocks\n\n")
        self.connection.sender.flush_now()


INPUTS: dict[ProducerInput, Callable[[Driver], Awaitable[None]]] = {
    given: getattr(Driver, given.name.lower()) for given in ProducerInput
}


def check_end(driver: Driver, action: ProducerAction, reason: Reason, *, is_kept: bool) -> None:
    """Check the end of a stream that has ended in this cell."""
    assert driver.callbacks.ends == (action is act.STOP)
    assert len(driver.queue) == 0
    if is_kept and not driver.log.has_app_ids:
        ((state, frame),) = driver.log.ends
        is_lost = action is act.LOSE
        assert state is (LogState.LOST if is_lost else STATES.get(reason, LogState.FAILED))
        if state in (LogState.FINISHED, LogState.FAILED, LogState.CANCELLED):
            assert unpack_end(frame, Reason.GONE).reason is reason
        else:
            assert frame == b""
    else:
        assert driver.log.ends == []
    assert not driver.producer.log.is_recording


def check_effect(
    driver: Driver, phase: ProducerPhase, action: ProducerAction, before: tuple[Any, ...]
) -> None:
    """Check the effect of an action that does not end the stream."""
    sent, chunks, ends = before
    assert driver.log.ends == ends
    if action is act.DELIVER:
        assert driver.record.chunks == chunks + 1
        assert driver.log.frames[chunks + 1] == b"data: second\n\n"
        assert (b"data: second\n" in driver.body) is (phase is OPEN)
    elif action is act.PASS_ON:
        assert driver.sent[-1] is driver.message
        assert driver.record.chunks == chunks
    elif action is act.DISCARD:
        assert (driver.callbacks.discarded, len(driver.sent)) == (1, sent)
        assert driver.record.chunks == chunks
    elif action is act.LINGER:
        assert len(driver.queue) == 1
        assert driver.slot.lingers[-1] is True
    elif action is act.STOP_LINGERING:
        assert len(driver.queue) == 0
        assert driver.slot.lingers[-1] is False
    elif action is act.STOP:
        assert driver.callbacks.ends == 1
    else:
        assert action is act.IGNORE
        assert len(driver.sent) == sent
        assert driver.callbacks.ends == (phase is ENDED)


@pytest.mark.parametrize(("phase", "given"), CELLS, ids=lambda part: part.name.lower())
async def test_each_cell_of_the_table_has_its_effect(
    phase: ProducerPhase, given: ProducerInput
) -> None:
    is_kept = phase is not LEFT and (phase, given) not in NOT_KEPT
    driver = Driver(is_kept=is_kept)
    await driver.enter(phase)
    producer = driver.producer
    assert producer.phase is phase
    before = (len(driver.sent), driver.record.chunks, driver.log.ends.copy())
    action, next_phase, reason = PRODUCER_TABLE[phase, given]

    await INPUTS[given](driver)
    assert producer.phase is next_phase
    if reason is None:
        check_effect(driver, phase, action, before)
    else:
        check_end(driver, action, reason, is_kept=is_kept)
    if driver.connection.phase is not ConnectionPhase.CLOSED:
        assert driver.slot.released == 0

    driver.gate.set()
    await producer.aclose(is_aborted=False)
    assert len(driver.reports.outcomes) == driver.slot.released == 1
    if reason is not None:
        is_lost = action is ProducerAction.LOSE
        expected = "aborted" if is_lost else OUTCOMES.get(reason, reason.value)
        assert driver.reports.outcomes == [expected]
    assert driver.log.ends == [] or len(driver.log.ends) == 1


async def test_a_stream_that_is_resumed_before_it_expires_continues() -> None:
    driver = Driver(is_kept=True)
    await driver.enter(DETACHED)
    await driver.connection_follows()
    driver.producer.control.expire()  # requested by another event loop before that
    assert driver.producer.phase is DETACHED
    assert driver.log.ends == []
    await driver.producer.aclose(is_aborted=False)


def test_each_input_has_a_driver_and_each_cell_is_visited() -> None:
    assert set(INPUTS) == set(ProducerInput)
    assert set(CELLS) == set(PRODUCER_TABLE)


def test_an_ended_producer_stays_ended() -> None:
    moves = [move for (phase, _), move in PRODUCER_TABLE.items() if phase is ENDED]
    assert {(move.phase, move.reason) for move in moves} == {(ENDED, None)}
    assert {move.action for move in moves} == {act.IGNORE, act.DISCARD}


def test_a_stream_ends_once_with_one_reason() -> None:
    for (phase, _), move in PRODUCER_TABLE.items():
        assert (move.reason is None) or phase in (OPEN, DETACHED)
        if phase in (OPEN, DETACHED) and move.reason is None:
            assert move.phase in (OPEN, DETACHED)


# Inputs in any order


class Walk:
    """One producer, and all that can happen to it."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.driver = Driver(is_kept=dice.random() < 0.7)
        self.producer = self.driver.producer
        self.tasks: list[asyncio.Task[Any]] = []

    async def run(self) -> None:
        """Make random steps, and check the producer after each."""
        driver, producer = self.driver, self.producer
        steps = [getattr(self, name) for name in dir(self) if name.startswith("step_")]
        producer.attach(driver.connection)
        if self.dice.random() < 0.3:
            driver.gate.clear()
        self.tasks.append(asyncio.ensure_future(producer.open(START, driver.preamble)))
        for _ in range(30):
            await asyncio.sleep(self.dice.choice((0, 0, 0.01, 1, 10)))
            self.check()
            self.dice.choice(steps)()
            self.check()
        closing = asyncio.ensure_future(producer.aclose(is_aborted=False))
        await asyncio.sleep(0.5)
        driver.gate.set()
        await closing
        for task in self.tasks:
            task.cancel()
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert [result for result in results if isinstance(result, Exception)] == []
        assert len(driver.reports.outcomes) == driver.slot.released == 1
        assert len(driver.queue) == 0

    def check(self) -> None:
        driver = self.driver
        assert driver.callbacks.ends <= 1
        assert len(driver.reports.outcomes) == driver.slot.released <= 1
        if self.producer.is_ended:
            assert len(driver.queue) == 0

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def step_write(self) -> None:
        events = (b"data: x\n\n", b": ping\n\n", b"data: part", b"word", b"id: own\ndata: y\n\n")
        chunk = self.dice.choice((*events, b'data: {"object":"chat.completion.chunk"}\n\n'))
        self.start(self.driver.write(chunk, more_body=self.dice.random() < 0.95))

    def step_write_much(self) -> None:
        self.start(self.driver.write(b"data: %b\n\n" % (b"x" * 70_000)))

    def step_app_ends(self) -> None:
        inputs = (self.producer.on_app_raised, self.producer.on_app_cancelled)
        if self.dice.random() < 0.2:
            self.dice.choice(inputs)()

    def step_disconnect(self) -> None:
        if self.dice.random() < 0.3:
            self.producer.on_disconnect()

    def step_readers(self) -> None:
        has_readers = not self.producer.log.has_readers
        if self.producer.log.is_kept and len(self.driver.log.ends) == 0:
            self.producer.log.on_readers_changed(has_readers=has_readers)

    def step_time(self) -> None:
        self.producer.on_timer(self.driver.timers.clock())

    def step_control(self) -> None:
        control = self.producer.control
        calls = (control.evict, control.expire, control.on_drain, control.on_drain_over)
        if self.dice.random() < 0.2:
            self.dice.choice(calls)()

    def step_cancel(self) -> None:
        if self.producer.log.is_kept and self.dice.random() < 0.2:
            self.producer.log.on_cancel()

    def step_name(self) -> None:
        if not self.producer.log.is_kept:
            self.producer.set_name("x")

    def step_block(self) -> None:
        self.driver.gate.clear()

    def step_unblock(self) -> None:
        self.driver.gate.set()


@pytest.mark.parametrize("first", range(0, sampled(400), 50))
def test_inputs_in_any_order_meet_no_missing_cell(first: int) -> None:
    for seed in range(first, first + 50):

        async def walk(seed: int = seed) -> None:
            reported: list[dict[str, Any]] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reported.append(context))
            await Walk(random.Random(seed)).run()
            assert reported == []

        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(walk())
