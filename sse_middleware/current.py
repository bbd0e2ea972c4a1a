"""The stream that a handler is writing, as the handler may see it and speak of it."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar

from sse_middleware.cursors import new_secret, stream_id
from sse_middleware.headers import request_headers, trace_id
from sse_middleware.record import StreamRecord
from sse_middleware.routes import UNMATCHED
from sse_middleware.state import StreamState

IN_SCOPE = "sse_middleware"
"""The scope's key of the current stream while a request is ours; a second layer stands back."""

_Headers = Iterable[tuple[bytes, bytes]]


class CurrentStream:
    """The stream of the current request.

    Outside of a request, or where the middleware is off, it is one that nobody listens to, so that
    code which speaks of its stream works everywhere.
    """

    # All is made when somebody asks for it: most requests are no streams.
    __slots__ = ("_clock", "_headers", "_record", "_secret", "_state", "_trace_id")

    def __init__(self, headers: _Headers | None = None) -> None:
        self._headers = headers
        self._trace_id: str | None = None
        self._secret: str | None = None
        self._record: StreamRecord | None = None
        self._state: StreamState | None = None

    @property
    def trace_id(self) -> str:
        """The trace id of the request, `""` outside of one."""
        if self._trace_id is None:
            headers = self._headers
            self._trace_id = "" if headers is None else trace_id(request_headers(headers))
        return self._trace_id

    @property
    def stream_id(self) -> str:
        """The public name that the stream has, or will have once the response starts."""
        return self.record.stream_id

    @property
    def remaining_seconds(self) -> float | None:
        """The time until the cap; `None` where there is none, or no stream yet."""
        return None if self._state is None else self._state.remaining_seconds(self._clock())

    def add_tokens(self, count: int) -> None:
        """Add to the tokens of the stream, which heartbeats, `complete` and the log tell.

        Raises:
            ValueError: `count` is negative.
        """
        if count < 0:
            raise ValueError(f"count is {count}, allowed is 0 or more")
        self.record.tokens += count

    def annotate(self, **fields: object) -> None:
        """Add fields to the log record of the stream; a later one of a name replaces it."""
        self.record.annotations = {**(self.record.annotations or {}), **fields}

    # What follows is the middleware's, not the handler's.

    @property
    def secret(self) -> str:
        """What opens the stream."""
        if self._secret is None:
            self._secret = new_secret()
        return self._secret

    @property
    def record(self) -> StreamRecord:
        """What is told of the stream."""
        if self._record is None:
            self._record = StreamRecord(stream_id(self.secret), self.trace_id, UNMATCHED, "")
        return self._record

    def open(self, state: StreamState, clock: Callable[[], float]) -> None:
        """Begin to tell the time that is left."""
        self._state = state
        self._clock = clock

    def close(self) -> None:
        """Tell it no more; tasks that the app has left behind may keep this object for long."""
        self._state = None


CURRENT: ContextVar[CurrentStream | None] = ContextVar("sse_middleware_stream", default=None)


def current_stream() -> CurrentStream:
    """Return the stream of the request that is being handled."""
    return CURRENT.get() or CurrentStream()


def current_trace_id() -> str | None:
    """Return the trace id of the request that is being handled, `None` outside of one."""
    current = CURRENT.get()
    return None if current is None else current.trace_id
