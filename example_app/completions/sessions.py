"""The sessions of conversations: the id of the answer after which each one continues.

OpenAI's clients send a conversation whole each time, and no id of it. A session is therefore found
by the caller and the first question. With `SSE_REDIS_URL`, all workers share the sessions.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_SESSIONS: Final = 10_000
_KEEP_SECONDS: Final = 24 * 3600


class SessionManager(Protocol):
    """Keep the sessions."""

    async def get_parent_id(self, session_id: str) -> str | None:
        """Return the answer after which a session continues, `None` for a new one."""

    async def update_session(self, session_id: str, parent_id: str) -> None:
        """Store the answer after which a session continues."""


class MemorySessions:
    """Keep the sessions of this process; the one that was used first is dropped first."""

    def __init__(self) -> None:
        """Begin without sessions."""
        self._parents: OrderedDict[str, str] = OrderedDict()

    async def get_parent_id(self, session_id: str) -> str | None:
        """Return the answer after which a session continues, `None` for a new one."""
        return self._parents.get(session_id)

    async def update_session(self, session_id: str, parent_id: str) -> None:
        """Store the answer after which a session continues."""
        self._parents[session_id] = parent_id
        self._parents.move_to_end(session_id)
        if len(self._parents) > _MAX_SESSIONS:
            self._parents.popitem(last=False)


class RedisSessions:
    """Keep the sessions in Redis for a day.

    Args:
        redis: a client of `redis.asyncio` that decodes its answers.
    """

    def __init__(self, redis: Any) -> None:
        """Store the client."""
        self._redis = redis

    async def get_parent_id(self, session_id: str) -> str | None:
        """Return the answer after which a session continues, `None` for a new one."""
        parent_id: str | None = await self._redis.get(_key(session_id))
        return parent_id

    async def update_session(self, session_id: str, parent_id: str) -> None:
        """Store the answer after which a session continues."""
        await self._redis.set(_key(session_id), parent_id, ex=_KEEP_SECONDS)


def create_sessions() -> SessionManager:
    """Return the sessions of this process, or with `SSE_REDIS_URL` those of all workers."""
    redis = shared_redis()
    return MemorySessions() if redis is None else RedisSessions(redis)


def shared_redis() -> Any:
    """Return a client of the Redis that all workers share, `None` without one."""
    url = os.environ.get("SSE_REDIS_URL", "")
    if not url:
        return None
    import redis.asyncio  # noqa: PLC0415 - only if Redis is used

    return redis.asyncio.from_url(url, decode_responses=True)


def get_or_create_session(messages: Sequence[dict[str, Any]], authorization: str) -> str:
    """Return the id of the session of a conversation: a digest of its caller and first question."""
    first = next(one["content"] for one in messages if one["role"] == "user")
    key = f"{len(authorization)}:{authorization}{first}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=16).hexdigest()


def _key(session_id: str) -> str:
    return f"example-app:session:{session_id}"
