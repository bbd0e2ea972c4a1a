"""Fallback: an answer comes from the first of several sources that sends an event.

Theory of operation. Sources are tried one after the other. A source that fails before its first
event leaves no trace: its items are held back until they contain a complete event. From then on its
items are passed on as they are, and a failure is that of the answer.

Each `Source` has a circuit breaker. After some failures in a row the source is tried last, for some
time: an open circuit saves the time-out of a source that is down, and is never the reason for which
an answer fails.

A source runs in the task of the caller. `asyncio.timeout` therefore cancels only the wait for an
event; and as this finalises the source, the source is never used again.
"""

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Final, Generic, NamedTuple, ParamSpec, TypeVar

from starlette.status import HTTP_504_GATEWAY_TIMEOUT

from sse_middleware.errors import ConfigurationError
from sse_middleware.protocol.intake import begins_event_stream
from sse_middleware.protocol.wire import Kind, Splitter, has_data
from sse_middleware.sources.errors import NoFirstEventError, UpstreamError
from sse_middleware.stores.circuit_breaker import CircuitBreaker, FailureReport
from sse_middleware.stream.current import current_stream

logger = logging.getLogger("sse_middleware")

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")

_MAX_HELD_BYTES: Final = 1 << 16
"""The most bytes that are held back for a first event."""


class Source(Generic[Arguments, Item]):
    """One source of answers, such as a model of a provider; it lives as long as the app.

    Args:
        name: a short name, for logs and metrics.
        function: returns an async iterable of the items of an answer, such as an async generator;
            it may be a coroutine function.
        failures: the exceptions after which the next source is tried. Any other one, such as an
            error of the caller, is raised at once.
        max_failures: the number of failures in a row after which the circuit opens.
        open_seconds: how long it is open; meanwhile the source is tried after all others.

    Attributes:
        name: as the argument.
        failures: as the argument, and `NoFirstEventError`.

    Raises:
        ConfigurationError: an argument is not allowed.
    """

    def __init__(
        self,
        name: str,
        function: Callable[Arguments, AsyncIterable[Item] | Awaitable[AsyncIterable[Item]]],
        *,
        failures: tuple[type[Exception], ...] = (Exception,),
        max_failures: int = 3,
        open_seconds: float = 10.0,
    ) -> None:
        if not name:
            raise ConfigurationError("name", name, "a text of one character or more")
        if max_failures < 1:
            raise ConfigurationError("max_failures", max_failures, "1 or more")
        if not 0 <= open_seconds < math.inf:
            raise ConfigurationError("open_seconds", open_seconds, "0 or more seconds")
        self.name = name
        self.failures: tuple[type[Exception], ...] = (*failures, NoFirstEventError)
        self._function = function
        self._max_failures = max_failures
        self._failures_in_a_row = 0
        report = FailureReport((), self._describe, "Other sources answer in its place, if any.")
        self._breaker = CircuitBreaker(failures, report, name, open_seconds=open_seconds)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> "PendingAnswer[Item]":
        """Return an answer of this source for `fallback`, which requests it if it is needed."""
        return PendingAnswer(self, lambda: self._function(*args, **kwargs))

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open."""
        return self._breaker.is_open

    def succeeded(self) -> None:
        """Handle that the source has sent a first event."""
        self._failures_in_a_row = 0
        self._breaker.close()

    def failed(self, exc: BaseException) -> None:
        """Handle a failure; after too many in a row, the circuit opens."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._max_failures:
            self._breaker.failed(exc)
        else:
            logger.info("%s", self._describe(exc))

    def _describe(self, exc: BaseException) -> str:
        # The text of another exception may contain a secret.
        reason = f": {exc}" if isinstance(exc, UpstreamError) else ""
        return f"The source {self.name} has failed ({type(exc).__name__}{reason})."


class PendingAnswer(NamedTuple, Generic[Item]):
    """An answer that is not requested yet.

    Attributes:
        source: its source.
        request: requests it.
    """

    source: Source[Any, Item]
    request: Callable[[], AsyncIterable[Item] | Awaitable[AsyncIterable[Item]]]


def fallback(
    *sources: PendingAnswer[Item] | AsyncIterable[Item],
    first_event_timeout: float | None = None,
) -> AsyncGenerator[Item, None]:
    """Return the items of the first source that sends an event.

    If a source fails, ends or exceeds its time before its first event, the next one is tried, and
    nothing of it is passed on. The failure of the last one is raised, as is any failure after the
    first event. The name of the source is noted in the record of the current stream.

    Args:
        sources: what `Source` objects return for a call; or async iterables, without a circuit
            breaker. An item that is no `bytes` is an event. Of `bytes`, which may be any parts of
            an event stream, the first event is the first block with data.
        first_event_timeout: the time in seconds that each source has until its first event, `None`
            for no limit.

    Raises:
        ConfigurationError: an argument is not allowed.
        NoFirstEventError: the last source has sent no event in time (504), or none at all (502).
    """
    if not sources:
        raise ConfigurationError("sources", sources, "one source or more")
    if first_event_timeout is not None and not 0 < first_event_timeout < math.inf:
        raise ConfigurationError("first_event_timeout", first_event_timeout, "above 0 seconds")
    pending = [_pending(source, number) for number, source in enumerate(sources, 1)]
    return _first_answer(pending, first_event_timeout)


def _pending(source: PendingAnswer[Item] | AsyncIterable[Item], number: int) -> PendingAnswer[Item]:
    if isinstance(source, PendingAnswer):
        return source
    if not hasattr(source, "__aiter__"):
        raise ConfigurationError("source", source, "an async iterable, or a call of a Source")
    return Source(f"source {number}", lambda: source)()


async def _first_answer(
    pending: list[PendingAnswer[Item]], seconds: float | None
) -> AsyncGenerator[Item, None]:
    *others, last = sorted(pending, key=lambda answer: answer.source.is_open)
    for one in (*others, last):
        source, answer = one.source, _Answer(one)
        try:
            try:
                held = await answer.read_first_event(seconds)
            except source.failures as exc:
                source.failed(exc)
                if one is last:
                    raise
                continue
            source.succeeded()
            current_stream().note_source(source.name, is_fallback=one is not pending[0])
            for item in held:
                yield item
            while True:
                try:
                    item = await anext(answer.items)
                except StopAsyncIteration:
                    return
                except source.failures as exc:
                    source.failed(exc)
                    raise
                yield item
        finally:
            await answer.aclose()


class _Answer(Generic[Item]):
    """The answer of one source.

    Args:
        pending: requests it.

    Attributes:
        items: its further items, once the first event has been read.
    """

    items: AsyncIterator[Item]

    def __init__(self, pending: PendingAnswer[Item]) -> None:
        self._pending = pending
        self._to_close: list[Any] = []

    async def read_first_event(self, seconds: float | None) -> list[Item]:
        """Return the items up to the first event.

        Raises:
            NoFirstEventError: there is none, or none in time.
        """
        if seconds is None:
            return await self._read_first_event()
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._read_first_event()
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise NoFirstEventError(
                f"no event within {seconds:g} s", status_code=HTTP_504_GATEWAY_TIMEOUT
            ) from exc

    async def _read_first_event(self) -> list[Item]:
        answer = self._pending.request()
        if inspect.isawaitable(answer):
            answer = await answer
        self._to_close.append(answer)
        self.items = aiter(answer)
        self._to_close.insert(0, self.items)
        held, head = list[Item](), _Head()
        async for item in self.items:
            held.append(item)
            if not isinstance(item, bytes) or head.is_complete(item):
                return held
        raise NoFirstEventError("ended without an event")

    async def aclose(self) -> None:
        """Close the source; a failure is logged, because it concerns no event."""
        for item in self._to_close:
            close = getattr(item, "aclose", None) or getattr(item, "close", None)
            if close is None:
                continue
            try:
                closing = close()
                if inspect.isawaitable(closing):
                    await closing
            except Exception:
                logger.info("the source %s cannot be closed", self._pending.source.name)
                logger.debug("the reason", exc_info=True)


class _Head:
    """The first bytes of an event stream, in any chunking."""

    def __init__(self) -> None:
        self._splitter = Splitter(_MAX_HELD_BYTES)
        self._undecided: bytes | None = b""  # `None` once they are known to be an event stream

    def is_complete(self, data: bytes) -> bool:
        """Add bytes, and return whether there is an event, or will be none."""
        if self._undecided is not None:
            head = (self._undecided + data).lstrip(b"\r\n")
            is_event_stream = begins_event_stream(head)
            if is_event_stream is False:
                return True
            self._undecided = None if is_event_stream else head
        return any(
            kind in (Kind.PART, Kind.LAST_PART) or (kind is Kind.BLOCK and has_data(block))
            for kind, block in self._splitter.feed(data)
        )
