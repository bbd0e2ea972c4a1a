"""What is known of each response; with `SSE_REDIS_URL`, all workers share it."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from example_app.completions.sessions import shared_redis

_MAX_RECORDS: Final = 10_000
_KEEP_SECONDS: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a response has ended.

    Attributes:
        response: the object that clients get.
        sequence_number: that of its last event, -1 if it has not come to one.
        parent_id: where the next response continues at Qwen.
    """

    response: dict[str, Any]
    sequence_number: int = -1
    parent_id: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One response.

    Attributes:
        owner: a digest of the identity that has created it.
        response: the object that clients get while it runs.
        outcome: how it has ended, `None` before.
    """

    owner: str
    response: dict[str, Any]
    outcome: Outcome | None = None


class Records(Protocol):
    """Keep the records. The first outcome of a response counts: the end, or a cancel."""

    async def add(self, record: Record) -> None:
        """Add a response that begins."""

    async def finish(self, response_id: str, outcome: Outcome) -> bool:
        """Set the outcome; return whether there was none."""

    async def get(self, response_id: str) -> Record | None:
        """Return a record, `None` if there is none."""

    async def delete(self, response_id: str) -> None:
        """Delete a record."""


class ProcessRecords:
    """Keep the records of this process; the oldest one is dropped first."""

    def __init__(self) -> None:
        """Begin without records."""
        self._records: OrderedDict[str, Record] = OrderedDict()

    async def add(self, record: Record) -> None:
        """Add a response that begins."""
        self._records[record.response["id"]] = record
        if len(self._records) > _MAX_RECORDS:
            self._records.popitem(last=False)

    async def finish(self, response_id: str, outcome: Outcome) -> bool:
        """Set the outcome; return whether there was none."""
        record = self._records.get(response_id)
        if record is None or record.outcome is not None:
            return False
        self._records[response_id] = Record(record.owner, record.response, outcome)
        return True

    async def get(self, response_id: str) -> Record | None:
        """Return a record, `None` if there is none."""
        return self._records.get(response_id)

    async def delete(self, response_id: str) -> None:
        """Delete a record."""
        self._records.pop(response_id, None)


class RedisRecords:
    """Keep the records in Redis for a day.

    Args:
        redis: a client of `redis.asyncio` that decodes its answers.
    """

    def __init__(self, redis: Any) -> None:
        """Store the client."""
        self._redis = redis

    async def add(self, record: Record) -> None:
        """Add a response that begins."""
        key = _key(record.response["id"])
        fields = {"owner": record.owner, "response": json.dumps(record.response)}
        async with self._redis.pipeline() as pipeline:
            pipeline.hset(key, mapping=fields)
            pipeline.expire(key, _KEEP_SECONDS)
            await pipeline.execute()

    async def finish(self, response_id: str, outcome: Outcome) -> bool:
        """Set the outcome; return whether there was none."""
        async with self._redis.pipeline() as pipeline:
            pipeline.hsetnx(_key(response_id), "outcome", json.dumps(asdict(outcome)))
            pipeline.expire(_key(response_id), _KEEP_SECONDS)  # it may have been deleted
            is_first, _ = await pipeline.execute()
        return bool(is_first)

    async def get(self, response_id: str) -> Record | None:
        """Return a record, `None` if there is none."""
        found = await self._redis.hgetall(_key(response_id))
        if "response" not in found:
            return None
        outcome = Outcome(**json.loads(found["outcome"])) if "outcome" in found else None
        return Record(found["owner"], json.loads(found["response"]), outcome)

    async def delete(self, response_id: str) -> None:
        """Delete a record."""
        await self._redis.delete(_key(response_id))


def create_records() -> Records:
    """Return the records of this process, or with `SSE_REDIS_URL` those of all workers."""
    redis = shared_redis()
    return ProcessRecords() if redis is None else RedisRecords(redis)


def _key(response_id: str) -> str:
    return f"example-app:response:{response_id}"
