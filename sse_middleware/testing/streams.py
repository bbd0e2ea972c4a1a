"""A stream that is made up, and a reader who believes nothing: the two ends of a store under test.

The reader checks each batch when it comes: an event that is doubled, out of its order, or missing
without a word is an `AssertionError` at once.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from sse_middleware.protocol.parser import EventParser
from sse_middleware.stores.base import Batch, EventStore, LogInfo, LogState

PATIENCE_SECONDS = 10.0
"""How long a store may take for what it does soon; none is ever waited for in full."""


async def eventually(
    ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool], what: str
) -> None:
    """Ask again and again until the answer is as it should be.

    Args:
        ask: asks.
        holds: tells whether that was the answer.
        what: says in words what should be.

    Raises:
        AssertionError: it has not come to be.
    """
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while not holds(answer := await ask()):
        assert asyncio.get_running_loop().time() < deadline, f"{what}; it is {answer!r}"
        await asyncio.sleep(0.005)


def log_info(**fields: Any) -> LogInfo:
    """Return what is known of a stream from its beginning; what is not given is made up.

    Args:
        **fields: those of `LogInfo`.
    """
    values: dict[str, Any] = {
        "stream_id": secrets.token_hex(16),
        "path": "/straße/1",
        "identity": secrets.token_hex(16),
        "method": "POST",
        "body_digest": secrets.token_hex(16),
        "origin": "https://example.org",
        "headers": b"content-type: text/event-stream\r\nx-name: J\xf6rg\r\nx-empty: \r\n",
        "route": "/straße/{number}",
        "marked": True,
        "app_ids": False,
        "opened_on": 1_800_000_000.125,
        "max_seconds": 60.0,
        "rotates": False,
        "heartbeat_interval": 5.0,
        "silence_threshold": None,
        "event_prefix": "",
        "retry_ms": 2000,
    }
    return LogInfo(**(values | fields))


class FakeProducer:
    """Take note of what a store says to a producer.

    Attributes:
        cancels: how often it was asked to end.
        heard: of its readers: `"followed"` by a first one, `"left"` by the last.
        loops: the event loops in which it was called.
    """

    def __init__(self) -> None:
        self.cancels = 0
        self.heard: list[str] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()

    def on_cancel(self) -> None:
        """Hear that a reader wants the stream to end."""
        self.cancels += 1
        self.loops.add(asyncio.get_running_loop())

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Hear that the log has got a first reader, or has lost its last one."""
        self.heard.append("followed" if has_readers else "left")
        self.loops.add(asyncio.get_running_loop())

    async def hears(self, *words: str) -> None:
        """Wait until this is all that it has heard of its readers.

        Raises:
            AssertionError: it has heard something else.
        """

        async def heard() -> list[str]:
            return self.heard

        want = list(words)
        await eventually(heard, lambda got: got == want, f"the producer was to hear {want}")

    async def hears_cancel(self) -> None:
        """Wait until it was asked to end.

        Raises:
            AssertionError: nobody has asked.
        """

        async def heard() -> int:
            return self.cancels

        await eventually(heard, lambda cancels: cancels > 0, "the producer was to be cancelled")


class FakeStream:
    """A stream with a log in a store, whose events are made up.

    Args:
        store: where the log is.
        **fields: what its `LogInfo` is to say.

    Attributes:
        info: what is known of it.
        id: its public name.
        producer: who hears of its readers.
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
            count: how many.
            size: how many bytes each has at least.
        """
        return b"".join(self.write_number(self.last + 1, size=size) for _ in range(count))

    def write_number(self, number: int, *, size: int = 0) -> bytes:
        """Write the event `number`, with a hole before it where numbers are left out."""
        frame = _frame(number, size)
        self.log.append(number, frame)
        self.last = number
        return frame

    def write_together(self, count: int, *, size: int = 0) -> bytes:
        """Write the next `count` events, kept at once, as `write` does one by one."""
        frames = [_frame(self.last + index, size) for index in range(1, count + 1)]
        self.log.append(self.last + 1, *frames)
        self.last += count
        return b"".join(frames)


def _frame(number: int, size: int) -> bytes:
    start = b"id: %d\ndata: " % number
    return start.ljust(size - 2, b"x") + b"\n\n" if size else start + b"x\n\n"


class Reader:
    """Follow a log and check what it gives, either by `read_all` or in a task of its own.

    As an asynchronous context manager it reads in a task until its block is left.

    Args:
        store: where the log is.
        stream_id: which log.
        after: the event that the reader has last.

    Attributes:
        last: the number of the last event that the reader has.
        numbers: of all events that it was given.
        frames: their bytes.
        holes: the first and last event of each hole that it was told of.
        end: the last batch, `None` before it.
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
        """Stop to read, and raise what was wrong with a batch."""
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
        """Wait until the reader has the event `number`, or was told that it is gone.

        Raises:
            AssertionError: it does not come.
        """
        await self._until(lambda: self.last >= number, f"the event {number}")

    async def until_end(self) -> LogState:
        """Wait for the end and return how the stream has ended.

        Raises:
            AssertionError: it does not come.
        """
        await self._until(lambda: self.end is not None, "the end")
        assert self.end is not None
        return self.end.state

    def take(self, batch: Batch) -> None:
        """Check a batch and take it.

        Raises:
            AssertionError: it does not continue what the reader has.
        """
        assert self.end is None, f"{batch} follows the end {self.end}"
        if batch.state is LogState.TRUNCATED:
            assert not batch.frames, "a batch that tells of a hole has no frames"
            assert batch.last > self.last, f"{batch} tells a reader at {self.last} of no hole"
            self.holes.append((self.last + 1, batch.last))
        elif batch.state is LogState.RUNNING:
            numbers = [int(event.id or 0) for event in EventParser().feed(batch.frames)]
            expected = list(range(self.last + 1, batch.last + 1))
            assert numbers, f"{batch} brings nothing"
            assert numbers == expected, f"a reader at {self.last} is given {_runs(numbers)}"
            self.numbers += numbers
            self.frames += batch.frames
        else:
            assert batch.last == self.last, (
                f"the end at {batch.last} skips what is behind {self.last}"
            )
            self.end = batch
        self.last = batch.last
        self._news.set()

    async def _read(self) -> None:
        try:
            async with aclosing(self._store.follow(self._stream_id, self.last)) as batches:
                async for batch in batches:
                    self.take(batch)
            assert self.end is not None, "a log that has not ended is followed on"
        finally:
            self._news.set()

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not holds():
                    assert self.task is not None
                    if self.task.done():
                        self.task.result()
                        raise AssertionError(f"{self._place()} has stopped without {what}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as exc:
            raise AssertionError(f"{self._place()} has waited in vain for {what}") from exc

    def _place(self) -> str:
        return f"a reader at {self.last}"


def _runs(numbers: list[int]) -> str:
    """Say what numbers these are in few words."""
    few = 20
    return str(numbers) if len(numbers) <= few else f"{numbers[:few]}... ({len(numbers)} events)"
