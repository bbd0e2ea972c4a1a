"""The handler's view of the stream that it writes."""

import logging
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, TypedDict

from starlette.types import Receive, Scope, Send

from sse_middleware.http.request import LONGEST_NAME, SSERequest, trace_id_of
from sse_middleware.http.routes import UNMATCHED
from sse_middleware.observability.source_record import ModelCall
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.observability.tracing import Tracing
from sse_middleware.protocol.event_ids import new_secret, stream_id
from sse_middleware.protocol.token_usage import read_usage
from sse_middleware.stream.callbacks import StreamCallbacks

logger = logging.getLogger("sse_middleware")

IN_SCOPE = "sse_middleware"
"""The key of the `StreamCell` in the scope; a nested middleware that finds it does nothing."""
LEFT_ALONE = "sse_middleware.left_alone"
"""The key in the scope of a request that an outer middleware leaves to a nested one."""


class Follow(Protocol):
    """Responds to a request with the stream of a name, or stops it."""

    def __call__(
        self, name: str, request: SSERequest, receive: Receive, send: Send, *, replays: bool
    ) -> Awaitable[None]:
        """Respond; `replays` is whether a stream that has finished is sent too."""


@dataclass(frozen=True, slots=True)
class RequestServices:
    """What the middleware does for its requests when their handlers ask for it.

    Attributes:
        follow: responds with the stream of a name.
        tracing: determines the trace ids.
    """

    follow: Follow
    tracing: Tracing


class OpenStream(Protocol):
    """The interface of a stream that is open."""

    @property
    def is_draining(self) -> bool:
        """Whether the server shuts down."""

    def remaining_seconds(self) -> float | None:
        """Return the time until the cap ends the stream, `None` if it has none."""

    def on_tokens(self) -> None:
        """Handle that the app has counted tokens."""

    @property
    def callbacks(self) -> StreamCallbacks:
        """Those of the object that runs the app, which do nothing if the stream is unmarked."""

    def set_name(self, name: str, *, is_claimed: bool = False) -> bool:
        """Make the stream available under a name, or a claimed one; return whether it is kept."""


class CurrentStream:
    """The stream of the current request.

    Outside of a request, or if the middleware is disabled, it has no client and all calls have no
    effect, so that handlers need no condition.
    """

    # All values are computed on demand: most requests are no streams.
    __slots__ = (
        "_headers",
        "_name",
        "_record",
        "_secret",
        "_services",
        "_stream",
        "_trace_id",
        "claimed",
        "is_answered",
        "is_matched",
        "request",
    )

    # Tasks that outlive the request may keep this object, so it has no reference to the scope.
    def __init__(
        self,
        headers: Collection[tuple[bytes, bytes]] | None = None,
        services: RequestServices | None = None,
        request: SSERequest | None = None,
    ) -> None:
        self._headers = headers
        self._services = services
        self.request = request
        self.is_answered = False
        self.claimed = ""  # the store's name that the stream is to have
        self.is_matched = False  # whether other requests can be attached to the stream
        self._trace_id: str | None = None
        self._secret: str | None = None
        self._record: StreamRecord | None = None
        self._name = ""
        self._stream: OpenStream | None = None

    @property
    def trace_id(self) -> str:
        """The trace id of the request, `""` outside of one."""
        if self._trace_id is None:
            if self.request is not None:
                self._trace_id = self.request.trace_id
            else:
                self._trace_id = self._read_trace_id()
        return self._trace_id

    def _read_trace_id(self) -> str:
        return "" if self._headers is None else trace_id_of(self._headers, self._tracing)

    @property
    def _tracing(self) -> Tracing | None:
        return None if self._services is None else self._services.tracing

    @property
    def stream_id(self) -> str:
        """The public id that the stream has, or will have after the response start."""
        return self.record.stream_id

    @property
    def remaining_seconds(self) -> float | None:
        """The time until the cap; `None` if there is none, or no stream yet.

        If the cap ends only connections, the stream has none.
        """
        return None if self._stream is None else self._stream.remaining_seconds()

    @property
    def draining(self) -> bool:
        """Whether the server shuts down, so that the stream will end within `SSE_DRAIN_SECONDS`."""
        return self._stream is not None and self._stream.is_draining

    def add_tokens(self, count: int) -> None:
        """Add to the token count of the stream; heartbeats, `complete` and the log contain it.

        Raises:
            ValueError: `count` is negative.
            TypeError: `count` is no number.
        """
        try:
            is_negative = count < 0
        except TypeError:
            raise TypeError(f"count is {count!r}, allowed is a number, 0 or more") from None
        if is_negative:
            raise ValueError(f"count is {count}, allowed is 0 or more")
        self.record.tokens += count
        if self._stream is not None:
            self._stream.on_tokens()

    def usage(
        self,
        report: object,
        *,
        model: str = "",
        provider: str = "",
        call: str = "",
        cost: Decimal | None = None,
    ) -> None:
        """Count the tokens that a provider reports; the log, metrics and heartbeats contain them.

        It may be called with each event of an answer: a report without usage has no effect, and a
        later report of the same call updates an earlier one.

        Args:
            report: an `Event` with JSON data, a mapping or an object of an SDK, in the format of
                OpenAI, Anthropic, Google or Qwen: a response, an event, or its usage alone.
            model: the name of the model, by default the one in the report.
            provider: its provider, as genai-prices names it, by default found by the model.
            call: distinguishes several calls of models in one stream, such as those of an agent.
            cost: the price in US dollars, by default computed with the option `usage_cost`.
        """
        found = read_usage(report)
        if found is None:
            return
        usage, reported_model = found
        one = self.record.source_record().calls.setdefault(call, ModelCall())
        one.model = model or reported_model or one.model
        one.provider = provider or one.provider
        one.cost = cost if cost is not None else one.cost
        before, one.usage = one.usage, one.usage.updated(usage)
        self.add_tokens(one.usage.total_tokens - before.total_tokens)

    def annotate(self, **fields: object) -> None:
        """Add fields to the log record of the stream; a later value replaces an earlier one."""
        self.record.annotations = {**(self.record.annotations or {}), **fields}

    def name(self, name: str) -> None:
        """Make the stream available under `name`, through a `resume_endpoint`.

        The latest stream of a name is used, so that a name can be the id of a chat; a stream may
        have several names. A name belongs
        to the identity of the request (see `identify`): the same name of another identity is
        another stream. Without an identity there is no name. The stream of a client that is no
        `EventSource` is kept only if it has a name before its first event.

        Args:
            name: 1 to 200 characters.

        Raises:
            ValueError: `name` is no text, empty or too long.
        """
        if not isinstance(name, str):
            raise ValueError(f"name is {name!r}, allowed is text: str(...)")  # noqa: TRY004
        if not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"name has {len(name)} characters, allowed is 1 to {LONGEST_NAME}")
        self._name = name
        if self._stream is not None:
            self._stream.set_name(name)

    # The rest is for the middleware, not for handlers.

    def note_source(self, name: str, *, is_fallback: bool) -> None:
        """Store the name of the source that answers, and whether it is not the first one."""
        record = self.record.source_record()
        record.source = name
        record.fallback_used = record.fallback_used or is_fallback

    def note_upstream(self) -> None:
        """Have the app stopped when its client has left for good, although it does not receive."""
        record = self.record.source_record()
        if not record.has_upstream:
            record.has_upstream = True
            self._watch_for_disconnect()

    def _watch_for_disconnect(self) -> None:
        if self._stream is not None:
            self._stream.callbacks.watch_for_disconnect()

    @property
    def has_name(self) -> bool:
        """Whether the handler has set a name."""
        return bool(self._name)

    @property
    def known_stream_id(self) -> str:
        """The public id if the stream has opened or the handler has read it, else `""`."""
        return "" if self._record is None else self._record.stream_id

    def request_in(self, scope: Scope) -> SSERequest:
        """Return the request with the scope as layers of the app have changed it."""
        if self.request is not None:
            return self.request.with_scope(scope)
        if self._trace_id is None and scope.get("headers") is self._headers:
            # It reads the headers, which `trace_id` would do again.
            request = SSERequest(scope, tracing=self._tracing)
            self._trace_id = request.trace_id
            return request
        return SSERequest(scope, trace_id=self.trace_id)

    @property
    def secret(self) -> str:
        """The secret from which the event ids of the stream are made."""
        if self._secret is None:
            self._secret = new_secret()
        return self._secret

    @property
    def record(self) -> StreamRecord:
        """The numbers of the stream."""
        if self._record is None:
            self._record = StreamRecord(stream_id(self.secret), self.trace_id, UNMATCHED, "")
        return self._record

    def claim(self, key: str, secret: str) -> None:
        """Have the stream get a name that is claimed for the stream with this secret."""
        self.claimed, self._secret = key, secret

    def take_secret(self) -> str:
        """Return the secret, and delete it here."""
        secret, self._secret = self._secret or new_secret(), None
        return secret

    def open(self, stream: OpenStream, default_name: Callable[[], str] | None = None) -> None:
        """Attach the open stream, and give it the name that the handler or its mark has set."""
        self._stream = stream
        self._trace_id = self.record.trace_id  # that of its span, if it has one
        self.request = None  # not needed after this; released early
        if self._record is not None and self._record.has_upstream:
            self._watch_for_disconnect()
        if self._name:
            stream.set_name(self._name)
        elif default_name is not None:
            try:
                self.name(default_name())
            except Exception:
                logger.exception("stream_name has failed; the stream has no name")
        if self.claimed and stream.set_name(self.claimed, is_claimed=True):
            self.claimed = ""

    async def follow(
        self, name: str, scope: Any, receive: Any, send: Any, *, replays: bool = False
    ) -> None:
        """Respond to the request with the stream of a name, in place of a new stream of the app.

        A POST and a DELETE stop the stream.

        Args:
            name: the name of the stream, `""` for none.
            scope: the scope of the endpoint, which may be a copy of the request's.
            receive: the endpoint's `receive`.
            send: the endpoint's `send`.
            replays: whether a stream that has finished is sent too.

        Raises:
            RuntimeError: the request did not pass the middleware.
        """
        if self._services is None:
            raise RuntimeError("resume_endpoint needs SSEMiddleware around the app")
        self.is_answered = True
        follow = self._services.follow
        await follow(name, self.request_in(scope), receive, send, replays=replays)

    def on_app_raised(self, exc: BaseException) -> None:
        """Store the exception that the app has raised, for the span of the stream."""
        if self._record is not None and self._record.span is not None:
            self._record.span.on_app_raised(exc)

    def close(self) -> None:
        """Detach the stream; tasks that outlive the request may hold this object for long."""
        self._stream = None


class StreamCell(TypedDict, total=False):
    """The current stream of a request, or what it is created from when it is used first.

    Most requests are no streams and never use it, and a dictionary costs less than an object. Tasks
    that outlive the request may keep it, so it has no reference to the scope.
    """

    headers: Collection[tuple[bytes, bytes]]
    services: RequestServices
    current: CurrentStream


def current_in(cell: StreamCell) -> CurrentStream:
    """Return the current stream of a request."""
    current = cell.get("current")
    if current is None:  # of two threads, one is first
        current = cell.setdefault("current", CurrentStream(cell["headers"], cell["services"]))
    return current


CURRENT: ContextVar[StreamCell | None] = ContextVar("sse_middleware_stream", default=None)


def current_stream() -> CurrentStream:
    """Return the stream of the request that is being handled."""
    cell = CURRENT.get()
    return CurrentStream() if cell is None else current_in(cell)


def current_trace_id() -> str | None:
    """Return the trace id of the request that is being handled, `None` outside of one."""
    cell = CURRENT.get()
    return None if cell is None else current_in(cell).trace_id
