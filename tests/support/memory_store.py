"""Reads from a memory store."""

from sse_middleware.stores.memory import MemoryStore
from sse_middleware.testing import Reader

KIB = 1 << 10


async def reading(store: MemoryStore, stream_id: str, after: int = 0) -> Reader:
    return await Reader(store, stream_id, after).read_all()
