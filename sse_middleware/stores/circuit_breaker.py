"""Patience: how long whoever opens a stream waits for what counts for all processes.

A quarter of a second, and then its process counts alone; for a second behind that nobody waits.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from sse_middleware.errors import StoreError
from sse_middleware.observability.observer import Observer

logger = logging.getLogger("sse_middleware")

PATIENCE_SECONDS: Final = 0.25
FIRST_SECONDS: Final = 1.0
"""How long whoever asks first waits, for connections are made then."""
_LAST_LOOK_SECONDS: Final = 0.05
"""The last part of that, in which a loop that was blocked finds an answer that is there."""
REST_SECONDS: Final = 1.0
"""How long nobody asks behind a failure."""

Answer = TypeVar("Answer")


class CircuitBreaker:
    """Ask for a short time, and not at all for a while where there was no answer.

    Args:
        failures: what says that there is none.
        observers: who is told of failures.
    """

    def __init__(
        self, failures: tuple[type[BaseException], ...], observers: Sequence[Observer]
    ) -> None:
        self._failures = failures
        self._observers = observers
        self._rests_until = 0.0
        self._failed = False
        self._seconds = FIRST_SECONDS

    async def ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the answer to what `question` asks.

        Raises:
            StoreError: there is none, now or a moment ago.
        """
        if time.monotonic() < self._rests_until:
            raise StoreError("limit: there was no answer a moment ago")
        try:
            answer = await _in_time(asyncio.ensure_future(question()), self._seconds)
        except self._failures as exc:
            self.failed(exc)
            raise StoreError(f"limit: {type(exc).__name__}") from exc
        self.worked()
        return answer

    def worked(self) -> None:
        """Take note that there are answers."""
        self._failed = False
        self._seconds = PATIENCE_SECONDS

    def failed(self, exc: BaseException) -> None:
        """Take note that there are none for now."""
        if not self._failed:
            logger.warning("limits count in this process alone for now: %s", type(exc).__name__)
        self._failed = True
        self._seconds = PATIENCE_SECONDS
        self._rests_until = time.monotonic() + REST_SECONDS
        for observer in self._observers:
            observer.store_failed("limit")


async def _in_time(answer: "asyncio.Future[Answer]", patience: float) -> Answer:
    """Wait for an answer, so many seconds.

    Raises:
        TimeoutError: it has not come in time.
    """
    answer.add_done_callback(_hear)  # nobody may be left who does
    try:
        for seconds in (patience - _LAST_LOOK_SECONDS, _LAST_LOOK_SECONDS):
            await asyncio.wait((answer,), timeout=seconds)
            if answer.done():
                return answer.result()
    finally:
        answer.cancel()
    raise TimeoutError


def _hear(answer: "asyncio.Future[Any]") -> None:
    if not answer.cancelled():
        answer.exception()
