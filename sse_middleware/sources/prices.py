"""The prices of tokens; needs the extra `usage`."""

from sse_middleware.observability.prices import price_of

__all__ = ["price_of"]
