"""The digest of the body of a request, by which a POST is recognized when it is repeated."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

_BODY_BYTES: Final = 1 << 20
"""The longest body with which a POST can resume; chats with a few images fit.

To compare the bodies, the middleware reads that of the second request before the app does.
"""


class BodyDigest:
    """The digest of the body of a request, computed part by part; no part is kept.

    Args:
        limit: the bytes of the longest body that has a digest; with 0, nothing is hashed.

    Attributes:
        is_complete: whether the whole body has been hashed.
    """

    __slots__ = ("_hash", "_remaining", "is_complete")

    def __init__(self, limit: int = _BODY_BYTES) -> None:
        self._hash = hashlib.blake2b(digest_size=16) if limit else None
        self._remaining = limit
        self.is_complete = False

    @property
    def is_too_long(self) -> bool:
        """Whether the body is longer than the limit."""
        return self._hash is None

    def add(self, message: Mapping[str, Any]) -> None:
        """Add the part in an ASGI message."""
        if self._hash is None:
            return
        part: bytes = message.get("body", b"")
        self._remaining -= len(part)
        if self._remaining < 0:
            self._hash = None
        else:
            self._hash.update(part)
            self.is_complete = not message.get("more_body", False)

    def hexdigest(self) -> str | None:
        """Return the digest of the whole body, `None` if it is incomplete or too long."""
        return self._hash.hexdigest() if self._hash is not None and self.is_complete else None
