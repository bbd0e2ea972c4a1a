"""An artificial stream and a strict reader: the two ends of a store under test.

The reader checks each batch when it arrives: an event that is duplicated, out of order, or missing
without a report is an `AssertionError` at once.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from sse_middleware.protocol.parser import EventParser
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stores.base import Batch, EventStore, LogInfo, LogState

PATIENCE_SECONDS = 10.0
"""The time that a store has for a delayed result, in seconds; usually it takes far less."""


async def eventually(
    ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool], what: str
) -> None:
    """Poll until a result is as expected.

    Args:
        ask: returns the result.
        holds: returns whether the result is as expected.
        what: describes the expectation.

    Raises:
        AssertionError: the expectation was not met in time.
    """
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while not holds(answer := await ask()):
        assert asyncio.get_running_loop().time() < deadline, f"{what}; it is {answer!r}"
        await asyncio.sleep(0.005)


def log_info(**fields: Any) -> LogInfo:
    """Return the data of a stream, with artificial values for the fields that are not given.

    Args:
        **fields: fields of `LogInfo` and of its terms.
    """
    terms: dict[str, Any] = {
        "max_seconds": 60.0,
        "rotates": False,
        "heartbeat_interval": 5.0,
        "silence_threshold": None,
        "event_prefix": "",
        "retry_ms": 2000,
    }
    terms |= {name: fields.pop(name) for name in terms.keys() & fields.keys()}
    values: dict[str, Any] = {
        "stream_id": secrets.token_hex(16),
        "path": "/straße/1",
        "identity": secrets.token_hex(16),
        "method": "POST",
        "body_digest": secrets.token_hex(16),
        "origin": "https://example.org",
        "headers": b"content-type: text/event-stream\r\nx-name: J\xf6rg\r\nx-empty: \r\n",
        "route": "/straße/{number}",
        "app_ids": False,
        "opened_on": 1_800_000_000.125,
        "traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
        "terms": StreamTerms(**terms),
    }
    return LogInfo(**(values | fields))


class FakeProducer:
    """Record the notifications of a store.

    Attributes:
        cancels: the number of cancels.
        notifications: `"followed"` for a first reader, `"left"` for the end of the last one.
        loops: the event loops of the calls.
    """

    def __init__(self) -> None:
        self.cancels = 0
        self.notifications: list[str] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()

    def on_cancel(self) -> None:
        """Record that a reader wants the stream to end."""
        self.cancels += 1
        self.loops.add(asyncio.get_running_loop())

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Record that the log has its first reader, or has lost its last one."""
        self.notifications.append("followed" if has_readers else "left")
        self.loops.add(asyncio.get_running_loop())

    async def until_notified(self, *expected: str) -> None:
        """Wait until exactly these notifications have arrived.

        Raises:
            AssertionError: the notifications are different.
        """

        async def received() -> list[str]:
            return self.notifications

        want = list(expected)
        await eventually(received, lambda got: got == want, f"the notifications should be {want}")

    async def until_cancelled(self) -> None:
        """Wait for a cancel.

        Raises:
            AssertionError: no cancel has arrived.
        """

        async def received() -> int:
            return self.cancels

        await eventually(received, lambda cancels: cancels > 0, "a cancel should arrive")


class FakeStream:
    """A stream of artificial events with a log in a store.

    Args:
        store: the store of its log.
        **fields: fields of its `LogInfo`.

    Attributes:
        info: its data.
        id: its stream id.
        producer: receives the notifications.
        log: the writer's side of its log.
        last: the number of its last event.
    """

    def __init__(self, store: EventStore, **fields: Any) -> None:
        self.info = log_info(**fields)
        self.id = self.info.stream_id
        self.producer = FakeProducer()
        self.log = store.create(self.info, self.producer)
        self.last = 0

    def write(self, count: int = 1, *, size: int = 0) -> bytes:
        """Write the next `count` events and return their frames.

        Args:
            count: the number of events.
            size: the least size of each, in bytes.
        """
        return b"".join(self.write_number(self.last + 1, size=size) for _ in range(count))

    def write_number(self, number: int, *, size: int = 0) -> bytes:
        """Write the event `number`, with a hole before it if numbers are left out."""
        frame = _frame(number, size)
        self.log.append(number, frame)
        self.last = number
        return frame

    def write_together(self, count: int, *, size: int = 0) -> bytes:
        """Write the next `count` events in one call; `write` does so one by one."""
        frames = [_frame(self.last + index, size) for index in range(1, count + 1)]
        self.log.append(self.last + 1, b"".join(frames), count)
        self.last += count
        return b"".join(frames)


def _frame(number: int, size: int) -> bytes:
    start = b"id: %d\ndata: " % number
    return start.ljust(size - 2, b"x") + b"\n\n" if size else start + b"x\n\n"


class Reader:
    """Follow a log and check its batches, either by `read_all` or in a separate task.

    As an asynchronous context manager it reads in a task until the end of the block.

    Args:
        store: the store of the log.
        stream_id: the stream of the log.
        after: the last event that the reader has.

    Attributes:
        last: the number of the last event that the reader has.
        numbers: the numbers of all received events.
        frames: their bytes.
        holes: the first and last event of each reported hole.
        end: the last batch, `None` before the end.
    """

    def __init__(self, store: EventStore, stream_id: str, after: int = 0) -> None:
        self.last = after
        self.numbers: list[int] = []
        self.frames = b""
        self.holes: list[tuple[int, int]] = []
        self.end: Batch | None = None
        self.task: asyncio.Task[None] | None = None
        self._store = store
        self._stream_id = stream_id
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Begin to read."""
        self.task = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        """Stop reading, and raise the failure of a batch."""
        assert self.task is not None
        self.task.cancel()
        (failure,) = await asyncio.gather(self.task, return_exceptions=True)
        if kind is None and isinstance(failure, Exception):
            raise failure

    async def read_all(self) -> Self:
        """Read to the end.

        Raises:
            AssertionError: a batch is wrong, or there is no end.
        """
        async with self:
            await self.until_end()
        return self

    async def until(self, number: int) -> None:
        """Wait for the event `number`, or for a hole that contains it.

        Raises:
            AssertionError: it does not arrive.
        """
        await self._until(lambda: self.last >= number, f"the event {number}")

    async def until_end(self) -> LogState:
        """Wait for the end and return its state.

        Raises:
            AssertionError: it does not arrive.
        """
        await self._until(lambda: self.end is not None, "the end")
        assert self.end is not None
        return self.end.state

    def take(self, batch: Batch) -> None:
        """Check a batch and store it.

        Raises:
            AssertionError: it does not continue what the reader has.
        """
        assert self.end is None, f"{batch} follows the end {self.end}"
        if batch.state is LogState.TRUNCATED:
            assert not batch.frames, "a batch that reports a hole has no frames"
            assert batch.last > self.last, f"{batch} reports no hole to a reader at {self.last}"
            self.holes.append((self.last + 1, batch.last))
        elif batch.state is LogState.RUNNING:
            numbers = [int(event.id or 0) for event in EventParser().feed(batch.frames)]
            expected = list(range(self.last + 1, batch.last + 1))
            assert numbers, f"{batch} has no event"
            assert numbers == expected, f"a reader at {self.last} received {_runs(numbers)}"
            self.numbers += numbers
            self.frames += batch.frames
        else:
            assert batch.last == self.last, (
                f"the end at {batch.last} skips the events after {self.last}"
            )
            self.end = batch
        self.last = batch.last
        self._news.set()

    async def _read(self) -> None:
        try:
            async with aclosing(self._store.follow(self._stream_id, self.last)) as batches:
                async for batch in batches:
                    self.take(batch)
            assert self.end is not None, "the batches stopped before the end of the log"
        finally:
            self._news.set()

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not holds():
                    assert self.task is not None
                    if self.task.done():
                        self.task.result()
                        raise AssertionError(f"{self._position()} has stopped without {what}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as exc:
            raise AssertionError(f"{self._position()} has waited in vain for {what}") from exc

    def _position(self) -> str:
        return f"a reader at {self.last}"


def _runs(numbers: list[int]) -> str:
    """Return the numbers as a short text."""
    few = 20
    return str(numbers) if len(numbers) <= few else f"{numbers[:few]}... ({len(numbers)} events)"
