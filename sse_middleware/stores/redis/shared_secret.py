"""The secret that all processes with one Redis share, with which digests of credentials are keyed.

The first process sets it. Each process confirms it from time to time: it sets it again if Redis was
emptied, and adopts that of another process which was first.
"""

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from sse_middleware.stores.redis.scripts import Command, milliseconds

_TTL_SECONDS: Final = 86_400.0
"""How long Redis keeps the secret after the last process has confirmed it: a day."""
_CONFIRM_SECONDS: Final = 10.0
_MAX_BYTES: Final = 64
"""The longest key of BLAKE2."""

Send = Callable[[Sequence[Command]], Awaitable[Sequence[Any]]]
"""Sends commands in order, and returns the answers, an exception for a refused command."""


class SharedSecret:
    """The shared secret, for one event loop.

    Args:
        key: its key in Redis.
        send: sends commands.

    Attributes:
        value: the secret, at most 64 bytes; known after the first `load`.
    """

    def __init__(self, key: str, send: Send) -> None:
        self._key = key
        self._send = send
        self.value = secrets.token_hex().encode()
        self._confirmed_at = -math.inf

    async def load(self) -> bytes:
        """Return the secret, and confirm it if it was not confirmed for a while.

        Raises:
            Exception: an exception of `send`, or the error with which Redis has refused a command.
        """
        if time.monotonic() > self._confirmed_at + _CONFIRM_SECONDS:
            await self.confirm()
        return self.value

    def expire(self) -> None:
        """Confirm the secret at the next use, because Redis may have been emptied."""
        self._confirmed_at = -math.inf

    async def confirm(self) -> None:
        """Set the secret if Redis has none, or adopt the one that Redis has.

        Raises:
            Exception: as for `load`.
        """
        expiry = milliseconds(_TTL_SECONDS)
        commands: list[Command] = [
            ("SET", self._key, self.value, "NX", "PX", expiry),
            ("PEXPIRE", self._key, expiry),
            ("GET", self._key),
        ]
        was_set, _, value = await self._send(commands)
        for answer in (value, value or was_set):  # a full Redis can still be read
            if isinstance(answer, Exception):
                raise answer
        # It is missing if Redis was emptied just now; then it is set again the next time.
        self.value = bytes(value or self.value)[:_MAX_BYTES]
        self._confirmed_at = time.monotonic()
