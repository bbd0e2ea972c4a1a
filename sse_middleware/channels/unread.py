"""A warning for a process whose events reach no reader, because it has no Redis.

Channels in memory are for readers in the same process. A worker process that was started without
the address of Redis publishes there too, and no call of it fails.
"""

import logging
from collections.abc import Callable
from typing import Final

from sse_middleware.stores.installed import INSTALLED

logger = logging.getLogger("sse_middleware")

_PATIENCE_SECONDS: Final = 10.0
"""How long a process with a middleware may publish before it reads."""
_NO_READER: Final = (
    "Channels: this process publishes events without SSE_REDIS_URL, in its own memory, and has "
    "read no channel so far. Readers in other processes do not receive them. Set SSE_REDIS_URL, or "
    "the url of the publisher, to the Redis of the web processes. This is logged once."
)


class UnreadWarning:
    """Warn once if a process publishes events, and reads none.

    A process without a middleware is no web process, and is warned at its first event.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_at: float | None = None
        self._has_warned = False

    def check(self) -> None:
        """Handle an event in a memory that has had no reader."""
        if self._has_warned:
            return
        now = self._clock()
        self._first_at = now if self._first_at is None else self._first_at
        if not INSTALLED.values() or now > self._first_at + _PATIENCE_SECONDS:
            self._has_warned = True
            logger.warning(_NO_READER)
