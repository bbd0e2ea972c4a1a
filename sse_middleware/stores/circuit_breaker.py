"""One policy for a store that fails: short timeouts, and no requests for a while after a failure.

- `CircuitBreaker` is for requests of a client that waits. After a failure the circuit is open for
  some time: requests fail at once, without I/O.
- `Backoff` is for work that must not be lost: it is repeated, with growing pauses.
- `FailureReport` notifies observers of each failure, and logs one of them per minute.

This module does not import redis, so that `sse_middleware` can be imported without it.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from sse_middleware.errors import StoreError
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.health import Health

logger = logging.getLogger("sse_middleware")

CALL_TIMEOUT_SECONDS: Final = 0.25
"""Bounds a request that delays the opening of a stream."""
FIRST_CALL_TIMEOUT_SECONDS: Final = 1.0
"""Bounds the first such request, which also connects."""
_LAST_CHECK_SECONDS: Final = 0.05
"""The last part of a timeout. An event loop that was blocked finds an answer that has arrived."""
OPEN_SECONDS: Final = 1.0
"""How long the circuit is open after a failure."""
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0
WARNING_INTERVAL_SECONDS: Final = 60.0
"""The least time between two warnings about the same store."""

Answer = TypeVar("Answer")


class FailureReport:
    """Notify observers of failures, and log one of them per minute.

    Args:
        observers: are notified of each failure.
        describe: returns the failure with its cause and the store's address, as a sentence.
        consequence: the features that still work, and the remedy.

    Attributes:
        observers: as the argument.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        describe: Callable[[BaseException], str],
        consequence: str,
    ) -> None:
        self.observers = observers
        self._describe = describe
        self._consequence = consequence
        self._warned_at = -math.inf

    def failed(self, operation: str, exc: BaseException) -> None:
        """Report a failure of an operation."""
        logger.debug("%s: %s", operation, type(exc).__name__)
        if time.monotonic() > self._warned_at + WARNING_INTERVAL_SECONDS:
            self._warned_at = time.monotonic()
            logger.warning("%s %s", self._describe(exc), self._consequence)
        for observer in self.observers:
            observer.store_failed(operation)


class CircuitBreaker:
    """Send requests with a short timeout, and none for a while after a failure.

    Args:
        failures: the exceptions that open the circuit.
        report: receives each failure of `call`.
        operation: the name under which it receives them.
        open_seconds: how long the circuit is open after a failure.

    Attributes:
        open_until: the time (`time.monotonic`) at which the circuit closes, `-math.inf` if there
            was no failure since `close`.
    """

    def __init__(
        self,
        failures: tuple[type[BaseException], ...],
        report: FailureReport,
        operation: str,
        *,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        self.open_until = -math.inf
        self._failures = failures
        self._report = report
        self._operation = operation
        self._health = Health(report.observers, "circuit", operation)
        self._open_seconds = open_seconds
        self._is_first = True

    @property
    def is_open(self) -> bool:
        """Whether requests fail at once."""
        return time.monotonic() < self.open_until

    def check(self, operation: str) -> None:
        """Raise if the circuit is open.

        Raises:
            StoreError: a request has failed a moment ago.
        """
        if self.is_open:
            raise StoreError(f"{operation}: the store did not answer a moment ago")

    async def call(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """Send a request, and return its answer.

        Raises:
            StoreError: the circuit is open, or there was no answer in time.
        """
        self.check(self._operation)
        limit = FIRST_CALL_TIMEOUT_SECONDS if self._is_first else CALL_TIMEOUT_SECONDS
        try:
            answer = await _in_time(asyncio.ensure_future(request()), limit)
        except self._failures as exc:
            self.failed(exc)
            raise StoreError(f"{self._operation}: {type(exc).__name__}") from exc
        self.succeeded()
        return answer

    def succeeded(self) -> None:
        """Record a success: the next request has the usual time.

        A circuit that is still open stays open, because this request may be older than the one that
        has failed, or of another kind.
        """
        self._is_first = False
        if self.open_until > -math.inf and not self.is_open:
            self.close()

    def failed(self, exc: BaseException) -> None:
        """Report a failure and open the circuit."""
        self._report.failed(self._operation, exc)
        self.open()

    def open(self) -> None:
        """Let requests fail at once, for some time."""
        self._is_first = False
        self.open_until = time.monotonic() + self._open_seconds
        self._health.set("open")

    def close(self) -> None:
        """Send requests again at once."""
        self.open_until = -math.inf
        self._health.set("")

    def shut_down(self) -> None:
        """Let all requests fail from now on, because the store is closed."""
        self.open_until = math.inf
        self._health.set("")


class Backoff:
    """Pauses before repeated attempts, each twice as long as the one before, up to a bound.

    Args:
        first: the first pause, in seconds.
        longest: the bound, in seconds.
    """

    def __init__(
        self, *, first: float = FIRST_PAUSE_SECONDS, longest: float = LONGEST_PAUSE_SECONDS
    ) -> None:
        self._first = first
        self._longest = longest
        self._pause = first

    def next(self) -> float:
        """Return the pause in seconds before the next attempt."""
        pause, self._pause = self._pause, min(2 * self._pause, self._longest)
        return pause

    def reset(self) -> None:
        """Begin with a short pause again, after an attempt has succeeded."""
        self._pause = self._first


async def _in_time(answer: "asyncio.Future[Answer]", limit: float) -> Answer:
    """Return an answer if it arrives within `limit` seconds.

    Raises:
        TimeoutError: it has not.
    """
    answer.add_done_callback(_retrieve_exception)
    try:
        for seconds in (limit - _LAST_CHECK_SECONDS, _LAST_CHECK_SECONDS):
            await asyncio.wait((answer,), timeout=seconds)
            if answer.done():
                return answer.result()
    finally:
        answer.cancel()
    raise TimeoutError


def _retrieve_exception(answer: "asyncio.Future[Any]") -> None:
    """Prevent asyncio's log of an exception that no caller retrieves."""
    if not answer.cancelled():
        answer.exception()
