"""Whether an exception of the server's `send` reports that the client is gone.

Otherwise it is an error in the program, such as "Expected ASGI message ...". That is logged, and
raised in the call of the app or in its next one. In both cases nothing more is written.
"""

from typing import Final

_CLIENT_GONE: Final = frozenset(
    (
        "ClientDisconnect",  # starlette
        "ClosedResourceError",  # anyio
        "BrokenResourceError",
        "ConnectionClosed",
    )
)
"""The names of exceptions by which a server or a framework reports a closed connection."""


def is_client_gone(exc: Exception) -> bool:
    """Return whether an exception of a server's `send` reports that the client is gone."""
    return isinstance(exc, OSError) or any(
        base.__name__ in _CLIENT_GONE for base in type(exc).__mro__
    )
