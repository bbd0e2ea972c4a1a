"""The turns of the threads; with `SSE_REDIS_URL`, all workers share them."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

_MAX_THREADS: Final = 1000
_MAX_TURNS: Final = 100
_KEEP_SECONDS: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a thread: of the `user` or of the `assistant`."""

    role: str
    content: str


class ThreadMemory(Protocol):
    """Keep the last turns of each thread."""

    async def add_turn(self, thread_id: str, turn: Turn) -> None:
        """Add a turn to a thread."""

    async def turns(self, thread_id: str) -> list[Turn]:
        """Return the turns of a thread, the oldest first."""


class ProcessMemory:
    """Keep the turns of this process; the thread that is unused for longest is dropped first."""

    def __init__(self) -> None:
        """Begin without threads."""
        self._threads: OrderedDict[str, list[Turn]] = OrderedDict()

    async def add_turn(self, thread_id: str, turn: Turn) -> None:
        """Add a turn to a thread."""
        turns = self._threads.setdefault(thread_id, [])
        turns.append(turn)
        del turns[:-_MAX_TURNS]
        self._threads.move_to_end(thread_id)
        if len(self._threads) > _MAX_THREADS:
            self._threads.popitem(last=False)

    async def turns(self, thread_id: str) -> list[Turn]:
        """Return the turns of a thread, the oldest first."""
        return list(self._threads.get(thread_id, ()))


class RedisMemory:
    """Keep the turns in Redis for a day.

    Args:
        redis: a client of `redis.asyncio` that decodes its answers.
    """

    def __init__(self, redis: Any) -> None:
        """Store the client."""
        self._redis = redis

    async def add_turn(self, thread_id: str, turn: Turn) -> None:
        """Add a turn to a thread."""
        async with self._redis.pipeline() as pipeline:
            pipeline.rpush(_key(thread_id), json.dumps(asdict(turn)))
            pipeline.ltrim(_key(thread_id), -_MAX_TURNS, -1)
            pipeline.expire(_key(thread_id), _KEEP_SECONDS)
            await pipeline.execute()

    async def turns(self, thread_id: str) -> list[Turn]:
        """Return the turns of a thread, the oldest first."""
        return [
            Turn(**json.loads(turn)) for turn in await self._redis.lrange(_key(thread_id), 0, -1)
        ]


def _key(thread_id: str) -> str:
    return f"example-app:thread:{thread_id}"
