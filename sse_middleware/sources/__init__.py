"""Sources of the answers that an app streams, such as LLM providers.

They are async iterators, which work without the middleware too.
"""

from sse_middleware.observability.source_record import TokenUsage
from sse_middleware.sources.errors import NoFirstEventError, UpstreamError
from sse_middleware.sources.fallback import Source, fallback
from sse_middleware.sources.start import started
from sse_middleware.sources.upstream import upstream

__all__ = [
    "NoFirstEventError",
    "Source",
    "TokenUsage",
    "UpstreamError",
    "fallback",
    "started",
    "upstream",
]
