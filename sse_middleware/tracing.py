"""Trace ids: the one of the current request, wherever its code runs."""

from contextvars import ContextVar

TRACE_ID: ContextVar[str | None] = ContextVar("sse_middleware_trace_id", default=None)


def current_trace_id() -> str | None:
    """Return the trace id of the request that is being handled, `None` outside of one."""
    return TRACE_ID.get()
