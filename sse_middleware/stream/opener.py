"""Turn a response into a stream: its producer and connection, its response head and its log."""

import logging
import random
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

from starlette.types import Message, Scope, Send

from sse_middleware.config.options import Options
from sse_middleware.http.body_digest import BodyDigest
from sse_middleware.http.request import SSERequest
from sse_middleware.http.response_head import (
    ENCODED,
    has_content_length,
    passthrough_reason,
    serialize_headers,
    stream_headers,
    unmarked_headers,
)
from sse_middleware.http.routes import Mark, name_in, route_name
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import (
    EVENT_STREAM,
    ClientKind,
    CommentForm,
    comment_form,
)
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.intake import ENDS_OF_APPS, Intake
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stores.base import LogInfo
from sse_middleware.stream.callbacks import StreamCallbacks
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.context import Context
from sse_middleware.stream.current import CurrentStream
from sse_middleware.stream.end_callback import EndCallback
from sse_middleware.stream.linger_index import request_key
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.producer_control import ProducerControl
from sse_middleware.stream.report import StreamSlot
from sse_middleware.stream.sender import Sender
from sse_middleware.stream.timers import current_timers
from sse_middleware.stream.unmarked import UnmarkedStream, log_hint_once

logger = logging.getLogger("sse_middleware")

WARNINGS: Final = {
    "attach": (
        "a stream of route %s attaches no request, trace id %s: its client has no identity, or the "
        "mark is not known before the app runs. Set SSEMiddleware(identify=...) or "
        "SSE_IDENTITY_COOKIES, or have clients send an Authorization header; outside Starlette and "
        "FastAPI, set the mark by SSEMiddleware(marks=...). This is logged once per route"
    ),
    "cap": (
        "a stream of route %s has reached its cap, trace id %s; this is logged once per route; "
        "SSE_STREAM_MAX_SECONDS sets the cap"
    ),
    "raw": (
        "a stream of route %s is marked, but its first bytes are no event stream (no line begins "
        "with data, event, id, retry or a colon): it is passed on unchanged, trace id %s. Send "
        "events, for example with sse_middleware.format_sse_event, or remove the mark. This is "
        "logged once per route"
    ),
}
"""The warnings about marked streams, with the route and the trace id."""


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


def warn_once(context: Context, warning: str, record: StreamRecord) -> None:
    """Log one of `WARNINGS` about a marked stream, once per route."""
    if context.is_first_warning(warning, record.route):
        logger.warning(WARNINGS[warning], record.route, record.trace_id)


def create_stream(  # noqa: PLR0917 - one call
    context: Context,
    current: CurrentStream,
    request: SSERequest,
    mark: Mark,
    client_kind: ClientKind,
    body: BodyDigest | None,
    send: Send,
    start: Message,
    callbacks: StreamCallbacks,
) -> tuple[Producer, Coroutine[Any, Any, None]]:
    """Create the producer of a marked stream, with a log if it is to be kept.

    Args:
        context: the objects that all requests of one middleware share.
        current: the handler's view of the stream.
        request: the request, with its scope as the app has routed it.
        mark: the mark of the endpoint.
        client_kind: the kind of the client.
        body: the digest of the received part of the request body, if it identifies the stream.
        send: the server's `send`.
        start: the app's response start.
        callbacks: those of the object that runs the app.

    Returns:
        The producer, and what sends the response start with our headers.
    """
    options, timers, has_app_ids = context.options_for(mark), current_timers(), _has_app_ids(mark)
    record, secret = current.record, current.take_secret()
    record.family, record.route = client_kind, route_name(request.scope, mark)
    terms = context.terms(mark, client_kind)
    reads_control_events = client_kind is ClientKind.EVENTSOURCE
    dialect = Dialect(
        options,
        terms,
        client_kind=client_kind,
        record=record,
        secret=secret if reads_control_events else "",
        comment=CommentForm.BLOCK if reads_control_events else comment_form(options.comment_style),
        app_ids=has_app_ids,
    )
    producer = Producer(
        _intake(options, terms, record, client_kind, has_app_ids=has_app_ids),
        options,
        terms,
        timers,
        send,
        observers=context.observers,
        callbacks=callbacks,
        linger_queue=context.linger_queue,
    )
    if mark.on_end is not None:
        producer.log.call_at_end(
            EndCallback(
                mark.on_end,
                options,
                record,
                observers=context.observers,
                calls=context.end_calls,
                drain=timers.drain,
            )
        )
    if options.keep and options.replay_max_events:
        create_log = partial(
            _create_log, producer, context, request, mark, record, terms, secret, start, body
        )
        if reads_control_events or has_app_ids or "keep" in options.explicit:
            create_log()
        else:  # most clients cannot resume it without a name
            producer.log.begin_if_named(create_log)
    sender = Sender(send, timers, record, context.observers)
    producer.attach(Connection(dialect, sender, producer, send_timeout=options.send_timeout))
    current.open(producer, _default_name(mark, request))
    if mark.attach != "never" and not current.is_matched:
        context.attaching.is_needed = True  # the route may be newer than the first request
        callbacks.warn("attach")
    reset = request.intent.reset if reads_control_events else ""
    now = record.opened_at = timers.clock()
    preamble = dialect.open(
        now,
        timers.epoch(),
        reset=reset,
        event_id=_client_event_id(request) if reads_control_events else None,
        jitter=random.random(),  # noqa: S311 - no secret
        ends_in=context.credential_ttl(request.scope),
    )
    if reset:
        for observer in context.observers:
            observer.resumed(record.route, reset, 0)
    headers = stream_headers(
        start.get("headers") or (),
        terms,
        trace_id=record.trace_id,
        stream_id=record.stream_id,
        has_ids=reads_control_events,
    )
    return producer, producer.open({**start, "headers": headers}, preamble)


def _default_name(mark: Mark, request: SSERequest) -> Callable[[], str] | None:
    """Return a function that returns the name of a stream unless its handler sets one."""
    if mark.stream_name is not None:
        return partial(name_in, mark.stream_name, request.scope)
    if b"idempotency-key" in request.headers and request.idempotency_key:
        return partial(getattr, request, "idempotency_key")
    return None


def _has_app_ids(mark: Mark) -> bool:
    """Return whether the app sets the ids of a stream that is kept all the same."""
    return mark.stream_key is not None


def _intake(
    options: Options,
    terms: StreamTerms,
    record: StreamRecord,
    client_kind: ClientKind,
    *,
    has_app_ids: bool,
) -> Intake:
    prefix = terms.event_prefix.encode()
    return Intake(
        options,
        record,
        end_names=tuple([prefix + name for name in ENDS_OF_APPS]) if prefix else ENDS_OF_APPS,
        app_ids=has_app_ids,
        # The first event of a plain client's stream shows whether its dialect is OpenAI's.
        is_openai=None if client_kind is ClientKind.PLAIN else client_kind is ClientKind.OPENAI,
    )


def _client_event_id(request: SSERequest) -> str | None:
    """Return the id of the app with which the client has reconnected, and which it keeps.

    The app has continued after this id. If our own id replaced it, the app would start again.
    """
    if request.intent.reset or request.event_id is not None:
        return None
    return request.last_event_id


def _create_log(  # noqa: PLR0917 - one call
    producer: Producer,
    context: Context,
    request: SSERequest,
    mark: Mark,
    record: StreamRecord,
    terms: StreamTerms,
    secret: str,
    start: Message,
    body: BodyDigest | None,
) -> None:
    """Create the log of a stream, unless it is not known who may resume it."""
    has_app_ids = _has_app_ids(mark)
    identity = context.identities.of(request)
    name = context.key_name(mark, request) if has_app_ids else ""
    has_ids = has_app_ids or record.family is ClientKind.EVENTSOURCE
    if identity is None or name is None or not (identity or has_ids):  # a name needs an identity
        return
    info = LogInfo(
        stream_id=record.stream_id,
        path=request.request_path,
        identity=identity,
        method=request.method,
        body_digest=None if body is None else body.hexdigest(),
        origin=request.origin,
        headers=serialize_headers(start.get("headers") or ()),
        route=record.route,
        app_ids=has_app_ids,
        opened_on=time.time(),
        terms=terms,
        secret=secret,
        asks_for_stream=mark.attach != "never" and EVENT_STREAM in request.accepted_types,
        keep_seconds=mark.cache_ttl,
    )
    producer.log.create(context.store, info)
    _make_recognizable(producer.control, context, request, info)
    if name:
        producer.log.set_key(name)


def _make_recognizable(
    stream: ProducerControl, context: Context, request: SSERequest, info: LogInfo
) -> None:
    """Store which client has made which request, for when the stream lingers."""
    stream.client = info.identity or context.proxies.client_address(request) or ""
    stream.request_key = key = request_key(request, info.identity, info.body_digest)
    if key is not None and request.last_event_id is None:
        context.linger_queue.on_opened(key, current_timers().clock())
