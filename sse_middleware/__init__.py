"""Make the Server-Sent-Events routes of any ASGI app survive the real world.

`app.add_middleware(SSEMiddleware)` is all that an app needs; the rest is settings.
"""

from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError, EventFormatError, SSEError, StoreError
from sse_middleware.http.routes import Mark, streaming
from sse_middleware.middleware import SSEMiddleware
from sse_middleware.protocol.end_info import EndInfo, OnEnd
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import format_sse_event
from sse_middleware.resume.endpoint import resume_endpoint
from sse_middleware.stores.base import EventStore, LogInfo
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stream.current import CurrentStream, current_stream, current_trace_id
from sse_middleware.stream.log_context import StreamLogFilter, add_stream_context
from sse_middleware.stream.shutdown import SHUTDOWN

drain = SHUTDOWN.drain

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "CurrentStream",
    "EndInfo",
    "Event",
    "EventFormatError",
    "EventParser",
    "EventStore",
    "LogInfo",
    "Mark",
    "MemoryStore",
    "OnEnd",
    "Options",
    "SSEError",
    "SSEMiddleware",
    "StoreError",
    "StreamLogFilter",
    "add_stream_context",
    "current_stream",
    "current_trace_id",
    "drain",
    "format_sse_event",
    "resume_endpoint",
    "streaming",
]
