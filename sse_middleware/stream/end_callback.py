"""Call the function `on_end` of a mark when a stream has ended, with its events.

The events are collected here as the app sends them, and not read from the store: the function is
called also if the store has lost them, or drops the stream because its client cannot return. The
call has a task of its own, in the context of the request, so that it delays no client. It is one of
the streams that a drain ends, so that it has until the deadline.
"""

import asyncio
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

from sse_middleware._once import OncePerLoop
from sse_middleware.config.options import Options
from sse_middleware.observability.observer import Observer
from sse_middleware.observability.source_record import TokenUsage
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.end_info import EndInfo, OnEnd
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.stream_end import StreamEnd
from sse_middleware.stores.base import Log, split_frames
from sse_middleware.stream.cancellation import GRACE_SECONDS
from sse_middleware.stream.drain import Drain

logger = logging.getLogger("sse_middleware")

_PARSED_BYTES: Final = 1 << 14
"""The most bytes that are parsed before other tasks run."""


class EndCalls:
    """The calls that have not returned, in each event loop."""

    def __init__(self) -> None:
        self._tasks = OncePerLoop[set[asyncio.Task[None]]](set)

    def add(self, task: "asyncio.Task[None]") -> None:
        """Keep a task until it is done."""
        tasks = self._tasks()
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def wait(self, seconds: float) -> None:
        """Wait until the calls of the running loop have returned, and then cancel the others."""
        if tasks := tuple(self._tasks()):
            _, pending = await asyncio.wait(tasks, timeout=seconds)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


class CollectedEvents:
    """The last events of a stream, within limits.

    Args:
        max_events: the most events.
        max_bytes: the most bytes of them.

    Attributes:
        is_truncated: whether some are missing.
    """

    __slots__ = ("_chunks", "_count", "_max_bytes", "_max_events", "_size", "is_truncated")

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._count = 0
        self._size = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.is_truncated = False

    def append(self, data: bytes, count: int) -> None:
        """Append the frames of `count` events, as for `Log.append`."""
        self._chunks.append((count, data))
        self._count += count
        self._size += len(data)
        if self._count > self._max_events or self._size > self._max_bytes:
            self._trim()

    async def parse(self) -> list[Event]:
        """Return the events; other tasks run meanwhile."""
        parser, events, size = EventParser(), list[Event](), 0
        while self._chunks:
            data = self._chunks.popleft()[1]
            for start in range(0, len(data), _PARSED_BYTES):
                part = data[start : start + _PARSED_BYTES]
                events += parser.feed(part)
                size += len(part)
                if size >= _PARSED_BYTES:
                    size = 0
                    await asyncio.sleep(0)
        return events

    def _trim(self) -> None:
        while self._count > self._max_events or self._size > self._max_bytes:
            count, data = self._chunks.popleft()
            if count > 1:
                frames = split_frames(data, count)
                self._chunks.extendleft((1, frame) for frame in reversed(frames))
            else:
                self._count -= 1
                self._size -= len(data)
                self.is_truncated = True


class EndCallback:
    """Collect the events of one stream, record them in its log, and call `on_end`.

    Args:
        function: the function.
        options: the settings, including those of the mark.
        record: the numbers of the stream.
        observers: are notified of a failure.
        calls: keeps the call.
        drain: the drain of the running loop.

    Attributes:
        log: the log of the stream, `None` if it is not kept.
        name: the name of the stream, `""` if it has none.
    """

    __slots__ = (
        "_calls",
        "_context",
        "_drain",
        "_drain_seconds",
        "_events",
        "_function",
        "_observers",
        "_record",
        "_task",
        "log",
        "name",
    )

    def __init__(
        self,
        function: OnEnd,
        options: Options,
        record: StreamRecord,
        *,
        observers: Sequence[Observer],
        calls: EndCalls,
        drain: Drain,
    ) -> None:
        self._function = function
        self._drain_seconds = options.drain_seconds
        self._events = CollectedEvents(options.replay_max_events, options.replay_max_bytes)
        self._record = record
        self._observers = observers
        self._calls = calls
        self._drain = drain
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None
        self.log: Log | None = None
        self.name = ""

    def append(self, first: int, data: bytes, count: int = 1) -> None:
        """Keep the frames of `count` events, the first of which has the number `first`."""
        self._events.append(data, count)
        if self.log is not None:
            self.log.append(first, data, count)

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept."""
        self._events.is_truncated = True
        if self.log is not None:
            self.log.skip(seq)

    def use_app_ids(self) -> "EndCallback":
        """Keep nothing in the log, because the app sets its own ids; collect the events still."""
        if self.log is not None:
            self.log.use_app_ids()
            self.log = None
        return self

    def start(self, end: StreamEnd, outcome: str) -> None:
        """Call the function soon.

        Args:
            end: the end of the stream.
            outcome: how it has ended, in one word.
        """
        record = self._record
        info = EndInfo(
            stream_id=record.stream_id,
            name=self.name,
            route=record.route,
            reason=outcome,
            trace_id=record.trace_id,
            chunks=end.chunks,
            tokens=end.tokens,
            usage=TokenUsage() if record.sources is None else record.sources.usage,
            duration_seconds=end.duration,
            truncated=self._events.is_truncated,
            annotations=dict(record.annotations or {}),
        )
        self._drain.add(self)  # before the task, which may be eager
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(info), context=self._context)
        self._calls.add(self._task)

    async def wait(self) -> None:
        """Wait until the function has returned; the drain bounds the time."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    @property
    def drain_seconds(self) -> float:
        """The time that is left when the server shuts down."""
        return max(GRACE_SECONDS, self._drain.seconds_left(self._drain_seconds))

    def on_drain(self) -> None:
        """Continue until the deadline."""

    def on_drain_over(self) -> bool:
        """Cancel the call."""
        if self._task is not None:
            self._task.cancel()
        return False

    async def _run(self, info: EndInfo) -> None:
        try:
            await asyncio.sleep(0)  # the client gets its last bytes first
            events = await self._events.parse()
            if _is_async(self._function):
                result = self._function(info, events)
            else:  # it may block
                result = await asyncio.to_thread(self._function, info, events)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            logger.warning(
                "on_end of route %s was cancelled before it has returned, because the server has "
                "shut down, trace id %s. SSE_DRAIN_SECONDS sets the time that it has",
                info.route,
                info.trace_id,
            )
            self._report_failure()
            raise
        except Exception:
            text = "on_end of route %s has failed, trace id %s"
            logger.exception(text, info.route, info.trace_id)
            self._report_failure()
        finally:
            self._drain.remove(self)

    def _report_failure(self) -> None:
        for observer in self._observers:
            observer.on_end_failed(self._record.route)


def _is_async(function: OnEnd) -> bool:
    """Return whether a function is a coroutine function, so that it does not block the loop."""
    plain: object = function
    while isinstance(plain, partial):
        plain = plain.func
    call = getattr(plain, "__call__", None)  # noqa: B004 - is it a coroutine function?
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(call)
