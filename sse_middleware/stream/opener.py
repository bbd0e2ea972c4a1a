"""Turn a response into a stream: its producer and connection, its response head and its log."""

import logging
import random
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from starlette.types import Message, Scope, Send

from sse_middleware.http.request import BodyDigest, SSERequest
from sse_middleware.http.response_head import (
    ENCODED,
    has_content_length,
    passthrough_reason,
    serialize_headers,
    stream_headers,
    unmarked_headers,
)
from sse_middleware.http.routes import Mark, route_name
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm, comment_form
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.intake import ENDS_OF_APPS, Intake
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stores.base import LogInfo
from sse_middleware.stream.callbacks import StreamCallbacks
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.context import Context
from sse_middleware.stream.current import CurrentStream
from sse_middleware.stream.linger_index import request_key
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.producer_control import ProducerControl
from sse_middleware.stream.report import StreamSlot
from sse_middleware.stream.sender import Sender
from sse_middleware.stream.timers import current_timers
from sse_middleware.stream.unmarked import UnmarkedStream, log_hint_once

logger = logging.getLogger("sse_middleware")


class StreamAdmission(Protocol):
    """The check whether the stream of one request is admitted."""

    def is_admitted_at_once(self, mark: Mark | None) -> bool:
        """Return whether the stream may open now; called at the response start."""

    async def check_before_body(self, route: str) -> bool:
        """Return whether the stream may open; called after that, and may wait."""

    def attach(self, stream: ProducerControl | UnmarkedStream, /) -> StreamSlot | None:
        """Give the stream its slot, and return it."""

    def release(self) -> None:
        """Release the slot, because the response is no stream."""

    async def send_rejection(self, send: Send) -> None:
        """Send the rejection in place of the app's response."""


def match_stream(
    context: Context, current: CurrentStream, scope: Scope, path: str, start: Message
) -> tuple[bool, Mark | None]:
    """Return whether a response is to be a stream, and the mark of its endpoint.

    Args:
        context: the objects that all requests of one middleware share.
        current: the handler's view of the stream.
        scope: the scope of the request, after the app has routed it.
        path: the `app_path` before that.
        start: the response start.
    """
    headers = start.get("headers") or ()
    reason = passthrough_reason(scope.get("method", ""), start["status"], headers)
    if reason is ENCODED:
        warn_cannot_stream(context, route_name(scope), "content-encoding")
    if reason is None and current.is_answered:
        reason = "it is written by sse_middleware"
    mark = context.get_mark(scope, path) if reason is None else None
    if mark is None and reason is None and context.options.only_marked:
        reason = "its endpoint has no mark"
    elif mark is not None and mark.overrides.get("enabled") is False:
        reason = "its mark disables streams"
    if reason is not None and logger.isEnabledFor(logging.DEBUG):
        logger.debug("response passed on unchanged: %s, trace id %s", reason, current.trace_id)
    return reason is None, mark


def open_unmarked(  # noqa: PLR0917 - one call
    context: Context,
    current: CurrentStream,
    scope: Scope,
    send: Send,
    mark: Mark | None,
    kind: ClientKind,
    callbacks: StreamCallbacks,
) -> UnmarkedStream:
    """Open a stream that is passed on as it is.

    Args:
        context: the objects that all requests of one middleware share.
        current: the handler's view of the stream.
        scope: the scope of the request, after the app has routed it.
        send: the server's `send`.
        mark: the mark of the endpoint, if it has one.
        kind: `UNMARKED`, or `OFF` for a client outside the rollout.
        callbacks: are called if the stream is ended for its app.
    """
    record, options = current.record, context.options
    record.family, record.route = kind, route_name(scope, mark)
    is_drained = kind is ClientKind.UNMARKED and "drain_seconds" in options.explicit
    stream = UnmarkedStream(
        record,
        send,
        observers=context.observers,
        callbacks=callbacks,
        drain_seconds=options.drain_seconds if is_drained else None,
    )
    current.take_secret()
    current.open(stream)
    return stream


def with_headers(context: Context, record: StreamRecord, start: Message) -> Message:
    """Return the response start of an unmarked stream with our headers, if the client gets any."""
    if record.family is ClientKind.OFF:
        return start
    headers = start.get("headers") or ()
    log_hint_once(record.route)
    if has_content_length(headers):
        warn_cannot_stream(context, record.route, "content-length")
    added = unmarked_headers(headers, trace_id=record.trace_id, stream_id=record.stream_id)
    return {**start, "headers": [*headers, *added]} if added else start


def warn_cannot_stream(context: Context, route: str, header: str) -> None:
    """Log a warning about a header with which no event stream can stream, once per route."""
    if context.is_first_warning(header, route):
        logger.warning(
            "an event stream of route %s has a %s, so that it cannot stream: an inner layer "
            "compresses or collects it; exclude event streams there. This is logged once per route",
            route,
            header,
        )


def warn_of_cap(context: Context, record: StreamRecord) -> None:
    """Log a warning that a stream has reached its cap, once per route."""
    if context.is_first_warning("cap", record.route):
        logger.warning(
            "a stream of route %s has reached its cap, trace id %s; this is logged once per "
            "route; SSE_STREAM_MAX_SECONDS sets the cap",
            record.route,
            record.trace_id,
        )


class StreamOpener:
    """Open one stream.

    Args:
        context: the objects that all requests of one middleware share.
        current: the handler's view of the stream.
        request: the request, with its scope as the app has routed it.
        mark: the mark of the endpoint.
        client_kind: the kind of the client.
        body: the digest of the received part of the request body, `None` if there is none.
    """

    __slots__ = (
        "_body",
        "_context",
        "_current",
        "_dialect",
        "_has_app_ids",
        "_mark",
        "_options",
        "_preamble",
        "_record",
        "_request",
        "_secret",
        "_terms",
        "_timers",
    )

    def __init__(
        self,
        context: Context,
        current: CurrentStream,
        request: SSERequest,
        mark: Mark,
        *,
        client_kind: ClientKind,
        body: BodyDigest | None,
    ) -> None:
        self._context = context
        self._current = current
        self._mark = mark
        self._body = body
        self._options = context.options_for(mark)
        self._request = request
        record = current.record
        record.family = client_kind
        record.route = route_name(request.scope, mark)
        has_ids, style = client_kind is ClientKind.EVENTSOURCE, self._options.comment_style
        self._record = record
        self._has_app_ids = mark.stream_key is not None
        self._timers = current_timers()
        self._terms = StreamTerms.from_options(self._options, client_kind)
        self._secret = current.take_secret()
        self._dialect = Dialect(
            self._options,
            self._terms,
            client_kind=client_kind,
            record=record,
            secret=self._secret if has_ids else "",
            marked=True,
            comment=CommentForm.BLOCK if has_ids else comment_form(style),
            app_ids=self._has_app_ids,
        )
        now = record.opened_at = self._timers.clock()
        self._preamble = self._dialect.open(
            now,
            self._timers.epoch(),
            reset=request.intent.reset if has_ids else "",
            event_id=self._client_event_id() if has_ids else None,
            jitter=random.random(),  # noqa: S311 - no secret
            ends_in=context.credential_ttl(request.scope),
        )

    def create_producer(
        self, send: Send, start: Message, *, callbacks: StreamCallbacks
    ) -> Producer:
        """Return the producer that writes to `send`, with a log if the stream is to be kept."""
        context, kind = self._context, self._dialect.client_kind
        info = self._log_info(start) if kind is ClientKind.EVENTSOURCE else None
        prefix = self._terms.event_prefix.encode()
        is_openai = None if kind is ClientKind.PLAIN else kind is ClientKind.OPENAI
        producer = Producer(
            Intake(
                self._options,
                self._record,
                end_names=tuple(prefix + name for name in ENDS_OF_APPS),
                app_ids=self._has_app_ids,
                is_openai=is_openai,
            ),
            self._options,
            self._terms,
            self._timers,
            send,
            observers=context.observers,
            callbacks=callbacks,
            linger_queue=context.linger_queue,
        )
        if info is not None:
            producer.log.create(context.store, info)
            self._make_recognizable(producer.control, info)
            if info.app_ids:
                producer.set_name(context.key_name(self._mark, self._request) or "")
        self._current.open(producer)
        if kind is ClientKind.EVENTSOURCE and self._request.intent.reset:
            for observer in context.observers:
                observer.resumed(self._record.route, self._request.intent.reset, 0)
        return producer

    def _make_recognizable(self, stream: ProducerControl, info: LogInfo) -> None:
        """Store which client has made which request, for when the stream lingers."""
        context, request = self._context, self._request
        stream.client = info.identity or context.proxies.client_address(request) or ""
        stream.request_key = key = request_key(request, info.identity, info.body_digest)
        if key is not None and request.last_event_id is None:
            context.linger_queue.on_opened(key, self._timers.clock())

    def open(self, producer: Producer, send: Send, start: Message) -> Coroutine[Any, Any, None]:
        """Open the connection of the client, and return what sends the response start."""
        sender = Sender(send, self._timers, self._record, self._context.observers)
        timeout = self._options.send_timeout
        connection = Connection(self._dialect, sender, producer, send_timeout=timeout)
        return producer.open(connection, self._start(start), self._preamble)

    def _start(self, start: Message) -> Message:
        """Return the response start with our headers."""
        headers = stream_headers(
            start.get("headers") or (),
            self._terms,
            trace_id=self._record.trace_id,
            stream_id=self._record.stream_id,
            has_ids=self._record.family is ClientKind.EVENTSOURCE,
        )
        return {**start, "headers": headers}

    def _client_event_id(self) -> str | None:
        """Return the id of the app with which the client has reconnected, and which it keeps.

        The app has continued after this id. If our own id replaced it, the app would start again.
        """
        if self._request.intent.reset:
            return None
        return None if self._request.event_id is not None else self._request.last_event_id

    def _log_info(self, start: Message) -> LogInfo | None:
        """Return the description of the log, `None` if the stream is not kept."""
        request, context, mark = self._request, self._context, self._mark
        if not self._options.replay_max_events:
            return None
        identity = context.identities.of(request)
        app_ids = self._has_app_ids
        if identity is None or (app_ids and context.key_name(mark, request) is None):
            return None
        return LogInfo(
            stream_id=self._record.stream_id,
            path=request.request_path,
            identity=identity,
            method=request.method,
            body_digest=None if self._body is None else self._body.hexdigest(),
            origin=request.origin,
            headers=serialize_headers(start.get("headers") or ()),
            route=self._record.route,
            marked=True,
            app_ids=app_ids,
            opened_on=time.time(),
            terms=self._terms,
            secret=self._secret,
        )
