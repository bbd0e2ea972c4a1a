"""The stream that a handler is writing, as the handler may see it and speak of it."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from sse_middleware.http.request import SSERequest, stream_name
from sse_middleware.http.routes import UNMATCHED
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.event_ids import new_secret, stream_id

IN_SCOPE = "sse_middleware"
"""The scope's key of the current stream while a request is ours; a second layer stands back."""

_LONGEST_NAME = 200

Follow = Callable[[str, SSERequest, Receive, Send], Awaitable[None]]
"""Answers a request with the stream of a name."""


class OpenStream(Protocol):
    """What is asked of a stream that is open."""

    @property
    def is_draining(self) -> bool:
        """Whether the server ends."""

    def remaining_seconds(self) -> float | None:
        """Return the time until the stream ends by its cap, `None` where it has none."""

    def set_name(self, name: str) -> None:
        """Let it be found by a name."""


class CurrentStream:
    """The stream of the current request.

    Outside of a request, or where the middleware is off, it is one that nobody listens to, so that
    code which speaks of its stream works everywhere.
    """

    # All is made when somebody asks for it: most requests are no streams.
    __slots__ = (
        "_follow",
        "_name",
        "_record",
        "_request",
        "_scope",
        "_secret",
        "_stream",
        "is_answered",
    )

    def __init__(
        self,
        scope: Scope | None = None,
        follow: Follow | None = None,
        request: SSERequest | None = None,
    ) -> None:
        self._scope = scope
        self._follow = follow
        self._request = request
        self.is_answered = False
        self._secret: str | None = None
        self._record: StreamRecord | None = None
        self._name = ""
        self._stream: OpenStream | None = None

    @property
    def trace_id(self) -> str:
        """The trace id of the request, `""` outside of one."""
        if self._record is not None:
            return self._record.trace_id
        return "" if self._scope is None else self.request.trace_id

    @property
    def stream_id(self) -> str:
        """The public name that the stream has, or will have once the response starts."""
        return self.record.stream_id

    @property
    def remaining_seconds(self) -> float | None:
        """The time until the cap; `None` where there is none, or no stream yet.

        Where the cap ends connections only, the stream has none.
        """
        return None if self._stream is None else self._stream.remaining_seconds()

    @property
    def draining(self) -> bool:
        """Whether the server ends, so that the stream will, within `SSE_DRAIN_SECONDS`."""
        return self._stream is not None and self._stream.is_draining

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

    def name(self, name: str) -> None:
        """Let the stream be followed by `name`, through a `resume_endpoint`.

        The latest stream of a name counts, so that a name may be that of a chat. It works for
        streams that are kept: those of an `EventSource`.

        Args:
            name: 1 to 200 characters; whoever `identify` says has opened the stream can use it.

        Raises:
            ValueError: `name` is empty or too long.
        """
        if not 0 < len(name) <= _LONGEST_NAME:
            raise ValueError(f"name has {len(name)} characters, allowed is 1 to {_LONGEST_NAME}")
        self._name = name
        if self._stream is not None:
            self._stream.set_name(stream_name(name))

    # What follows is the middleware's, not the handler's.

    @property
    def request(self) -> SSERequest:
        """The request, parsed at its first use; there is none after `open`."""
        if self._request is None:
            assert self._scope is not None
            self._request = SSERequest(self._scope)
        return self._request

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

    def take_secret(self) -> str:
        """Return what opens the stream, and forget it."""
        secret, self._secret = self.secret, None
        return secret

    def open(self, stream: OpenStream) -> None:
        """Begin to tell the time that is left, and give the stream the name that it has."""
        self._stream = stream
        self._scope = self._request = None  # not needed any more, and alive for as long as this
        if self._name:
            stream.set_name(stream_name(self._name))

    async def follow(self, name: str, scope: Any, receive: Any, send: Any) -> None:
        """Answer the request with the stream of a name; it is no new one of the app's.

        Args:
            name: the name of the stream.
            scope: the scope that the endpoint has, which may be a copy of the request's.
            receive: the endpoint's.
            send: the endpoint's.

        Raises:
            RuntimeError: the request did not come through the middleware.
        """
        if self._follow is None:
            raise RuntimeError("a resume_endpoint needs SSEMiddleware in front of it")
        self.is_answered = True
        await self._follow(name, self.request.with_scope(scope), receive, send)

    def close(self) -> None:
        """Tell it no more; tasks that the app has left behind may keep this object for long."""
        self._stream = None


CURRENT: ContextVar[CurrentStream | None] = ContextVar("sse_middleware_stream", default=None)


def current_stream() -> CurrentStream:
    """Return the stream of the request that is being handled."""
    return CURRENT.get() or CurrentStream()


def current_trace_id() -> str | None:
    """Return the trace id of the request that is being handled, `None` outside of one."""
    current = CURRENT.get()
    return None if current is None else current.trace_id
