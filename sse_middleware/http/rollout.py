"""The rollout: the clients that the middleware acts for; it only measures the streams of others."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError
from sse_middleware.http.identity import Identify
from sse_middleware.http.request import SSERequest

logger = logging.getLogger("sse_middleware")

InRollout = Callable[[Any], bool | None]
"""Returns whether the middleware acts for a scope, `None` to decide by users and percentage."""

_ALL_PERCENT: Final = 100


class Rollout:
    """Determine the clients that the middleware acts for.

    Args:
        percent: the share of clients that it acts for.
        users: identities for which it acts in any case.
        identify: returns the identity of a scope; needed for `users`.
        function: the operator's function, which has precedence.

    Attributes:
        is_partial: whether there may be clients that it does not act for.
    """

    def __init__(
        self,
        percent: int,
        users: Iterable[str] = (),
        identify: Identify | None = None,
        function: InRollout | None = None,
    ) -> None:
        self._percent = percent
        self._users = frozenset(users)
        self._identify = identify
        self._function = function
        self.is_partial = percent < _ALL_PERCENT or function is not None

    @classmethod
    def from_options(
        cls, options: Options, identify: Identify | None, function: InRollout | None
    ) -> "Rollout":
        """Return the rollout that the settings and arguments of the middleware select.

        Raises:
            ConfigurationError: there are users, and no `identify`.
        """
        users = options.rollout_users
        if users and identify is None:
            raise ConfigurationError("rollout_users", users, "empty without identify=")
        is_set = "rollout_percent" in options.explicit or not (users or function)
        return cls(options.rollout_percent if is_set else 0, users, identify, function)

    def includes(self, request: SSERequest) -> bool:
        """Return whether the middleware acts for the client of a request.

        Without a decision by the function or by the users, a client is in a stable share of all
        clients, by its credentials, or else by its address and browser.
        """
        if not self.is_partial:
            return True
        try:
            decided = None if self._function is None else self._function(request.scope)
            if decided is None and self._users and self._identify is not None:
                decided = self._identify(request.scope) in self._users or None
        except Exception:
            logger.exception(
                "rollout(scope) or identify(scope) has failed; the stream is unchanged"
            )
            return False
        if decided is not None:
            return bool(decided)
        headers = request.headers
        key = headers.get(b"authorization")
        if not key:
            key = request.peer_host.encode() + headers.get(b"user-agent", b"")
        digest = hashlib.blake2b(key, digest_size=4).digest()
        return int.from_bytes(digest) % 10_000 < self._percent * 100


EVERYONE: Final = Rollout(_ALL_PERCENT)
