"""Event storage for clients that reconnect: in memory, or in Redis."""

from sse_middleware.stores.base import EventStore, LogInfo
from sse_middleware.stores.memory import MemoryStore

__all__ = ["EventStore", "LogInfo", "MemoryStore"]
