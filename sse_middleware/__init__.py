"""Make the Server-Sent-Events routes of any ASGI app survive the real world.

`app.add_middleware(SSEMiddleware)` is all that an app needs; the rest is settings.
"""

from sse_middleware.current import CurrentStream, current_stream, current_trace_id
from sse_middleware.errors import ConfigurationError, EventFormatError, SSEError
from sse_middleware.events import Event
from sse_middleware.middleware import SSEMiddleware
from sse_middleware.options import Options
from sse_middleware.parser import EventParser
from sse_middleware.routes import Mark, streaming
from sse_middleware.wire import format_sse_event

__version__ = "0.1.0.dev0"

__all__ = [
    "ConfigurationError",
    "CurrentStream",
    "Event",
    "EventFormatError",
    "EventParser",
    "Mark",
    "Options",
    "SSEError",
    "SSEMiddleware",
    "current_stream",
    "current_trace_id",
    "format_sse_event",
    "streaming",
]
