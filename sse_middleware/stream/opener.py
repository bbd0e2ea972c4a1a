"""Turn a response into a stream: its producer and connection, its response head and its log."""

import logging
import random
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

from starlette.types import Message, Scope, Send

from sse_middleware.http.body_digest import BodyDigest
from sse_middleware.http.inner_service import is_of_inner_service
from sse_middleware.http.request import SSERequest, request_path
from sse_middleware.http.response_head import (
    ENCODED,
    NUMBER_OF_UNMARKED_HEADERS,
    OTHER_TYPE,
    has_content_length,
    passthrough_reason,
    serialize_headers,
    stream_headers,
    unmarked_headers,
)
from sse_middleware.http.routes import Mark, name_in, route_name
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import EVENT_STREAM, ClientKind
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.intake import Intake
from sse_middleware.stores.base import LogInfo
from sse_middleware.stream.app_events import AppEvents
from sse_middleware.stream.callbacks import StreamCallbacks
from sse_middleware.stream.collected import CollectedResponse
from sse_middleware.stream.compressed import compressed
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


class StreamOwner(StreamCallbacks, Protocol):
    """The request whose response is a stream.

    Attributes:
        context: the objects that all requests of one middleware share.
        current: the handler's view of the stream.
        scope: the scope of the request, after the app has routed it.
        server_send: the server's `send`.
        body: the digest of the received part of the request body, if it identifies the stream.
    """

    context: Context
    current: CurrentStream
    scope: Scope
    server_send: Send
    body: BodyDigest | None


def match_stream(owner: StreamOwner, path: str, start: Message) -> tuple[bool, Mark | None]:
    """Return whether a response is to be a stream, and the mark of its endpoint.

    Args:
        owner: the request.
        path: the `app_path` before the app has routed it.
        start: the response start.
    """
    context, current, scope = owner.context, owner.current, owner.scope
    headers = start.get("headers") or ()
    reason = passthrough_reason(scope.get("method", ""), start["status"], headers)
    if reason is OTHER_TYPE and context.other_responses.unchecked:
        context.other_responses.check(context, scope, path, start)
    if reason is ENCODED:
        warn_cannot_stream(context, route_name(scope), "content-encoding")
    if reason is None and current.is_answered:
        reason = "it is written by sse_middleware"
        if is_of_inner_service(headers):  # a nested one, which has stored the stream
            context.inner_services.add(request_path(scope))
    mark = context.get_mark(scope, path) if reason is None else None
    if mark is None and reason is None and context.options.only_marked:
        reason = "its endpoint has no mark"
    elif mark is not None and mark.overrides.get("enabled") is False:
        reason = "its mark disables streams"
    if reason is not None and logger.isEnabledFor(logging.DEBUG):
        logger.debug("response passed on unchanged: %s, trace id %s", reason, current.trace_id)
    return reason is None, mark


def open_unmarked(
    owner: StreamOwner, start: Message, mark: Mark | None, kind: ClientKind
) -> UnmarkedStream:
    """Create a stream that is passed on as it is.

    Args:
        owner: the request.
        start: the app's response start.
        mark: the mark of the endpoint, if it has one.
        kind: `UNMARKED`, or `OFF` for a client outside the rollout.
    """
    context, current = owner.context, owner.current
    record, options = current.record, context.options
    record.family, record.route = kind, route_name(owner.scope, mark)
    context.tracing.begin(record, owner.scope, status=start["status"])
    # The stream of an inner service, which has a mark here, is resumed from that service.
    may_end = mark is not None or "drain_seconds" in options.explicit
    is_drained = kind is ClientKind.UNMARKED and may_end
    stream = UnmarkedStream(
        record,
        owner.server_send,
        observers=context.observers,
        callbacks=owner,
        drain_seconds=options.drain_seconds if is_drained else None,
    )
    current.take_secret()
    current.open(stream)
    return stream


def with_headers(owner: StreamOwner, record: StreamRecord, start: Message) -> Message:
    """Return the response start of an unmarked stream with our headers, if the client gets any."""
    if record.family is ClientKind.OFF:
        return start
    headers, context = start.get("headers") or (), owner.context
    added = unmarked_headers(headers, trace_id=record.trace_id, stream_id=record.stream_id)
    if len(added) < NUMBER_OF_UNMARKED_HEADERS and is_of_inner_service(headers):
        context.inner_services.add(request_path(owner.scope))
        if context.is_first_warning("inner", record.route):
            logger.info(
                "an event stream of route %s has a mark in the service from which the app receives "
                "it, by its X-Stream-ID: it is passed on unchanged. This is logged once per route",
                record.route,
            )
    else:
        log_hint_once(record.route)
    if has_content_length(headers):
        warn_cannot_stream(context, record.route, "content-length")
    return {**start, "headers": [*headers, *added]} if added else start


def is_handled_inside(owner: StreamOwner, start: Message, mark: Mark, kind: ClientKind) -> bool:
    """Return whether a marked stream is passed on as it is, since an inner service has marked it.

    Not if the mark does more for the stream than the inner service can know.
    """
    return (
        kind is not ClientKind.JSON
        and is_of_inner_service(start.get("headers") or ())
        and mark.attach == "never"
        and mark.on_end is None
        and mark.stream_name is None
        and (mark.rules is None or not mark.rules.changes_events)
        and not owner.current.has_name
    )


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
    if warning != "attach":
        record.note(warning)
    if context.is_first_warning(warning, record.route):
        logger.warning(WARNINGS[warning], record.route, record.trace_id)


def open_marked(
    owner: StreamOwner, request: SSERequest, start: Message, mark: Mark, client_kind: ClientKind
) -> tuple[Producer, Coroutine[Any, Any, None]]:
    """Create the producer of a marked stream, with a log if it is to be kept.

    Args:
        owner: the request.
        request: the same as the app has routed it.
        start: the app's response start.
        mark: the mark of the endpoint.
        client_kind: the kind of the client.

    Returns:
        The producer, and what sends the response start with our headers.
    """
    context, current, send = owner.context, owner.current, owner.server_send
    profile, timers = context.profile(mark, client_kind), current_timers()
    if mark.collects:
        start = {**start, "headers": [*(start.get("headers") or ()), (b"vary", b"Accept")]}
    record, secret = current.record, current.take_secret()
    record.family, record.route = client_kind, route_name(request.scope, mark)
    context.tracing.begin(record, request.scope, status=start["status"])
    dialect = Dialect(profile, record, secret if profile.reads_control_events else "")
    if client_kind is ClientKind.JSON:
        send = CollectedResponse(send, mark, dialect).send
    else:
        send = compressed(send, request, context.options.compression)
    producer = Producer(
        profile,
        Intake(profile, record),
        timers,
        observers=context.observers,
        callbacks=owner,
        linger_queue=context.linger_queue,
    )
    if mark.on_end is not None:
        producer.log.call_at_end(
            EndCallback(
                mark.on_end,
                profile.options,
                record,
                observers=context.observers,
                calls=context.end_calls,
                drain=timers.drain,
            )
        )
    has_ids = profile.reads_control_events
    if profile.options.keep and profile.options.replay_max_events:
        create_log = partial(
            _create_log, producer, context, request, mark, secret, start, owner.body
        )
        if has_ids or profile.app_ids or "keep" in profile.options.explicit:
            create_log()
        else:  # most clients cannot resume it without a name
            producer.log.begin_if_named(create_log)
    sender = Sender(send, timers, record, context.observers)
    producer.attach(Connection(dialect, sender, producer))
    if mark.rules is not None and mark.rules.changes_events:
        producer.write = AppEvents(producer, mark.rules).write
    current.open(producer, _default_name(mark, request))
    if mark.attach != "never" and not current.is_matched:
        context.attaching.is_needed = True  # the route may be newer than the first request
        owner.warn("attach")
    reset = request.intent.reset if has_ids else ""
    now = record.opened_at = timers.clock()
    preamble = dialect.open(
        now,
        timers.epoch() if has_ids else 0.0,  # only heartbeat events contain the time
        reset=reset,
        event_id=_client_event_id(request) if has_ids else None,
        jitter=random.random(),  # noqa: S311 - no secret
        ends_in=None if context.expires_at is None else context.credential_ttl(request.scope),
    )
    if reset:
        for observer in context.observers:
            observer.resumed(record.route, reset, 0)
    headers = stream_headers(
        start.get("headers") or (),
        profile.headers,
        trace_id=record.trace_id,
        stream_id=record.stream_id,
        has_ids=has_ids,
    )
    return producer, producer.open({**start, "headers": headers}, preamble)


def _default_name(mark: Mark, request: SSERequest) -> Callable[[], str] | None:
    """Return a function that returns the name of a stream unless its handler sets one."""
    if mark.stream_name is not None:
        return partial(name_in, mark.stream_name, request.scope)
    if b"idempotency-key" in request.headers and request.idempotency_key:
        return partial(getattr, request, "idempotency_key")
    return None


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
    secret: str,
    start: Message,
    body: BodyDigest | None,
) -> None:
    """Create the log of a stream, unless it is not known who may resume it."""
    profile, record = producer.profile, producer.report.record
    identity = context.identities.of(request)
    name = context.key_name(mark, request) if profile.app_ids else ""
    has_ids = profile.app_ids or profile.reads_control_events
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
        app_ids=profile.app_ids,
        opened_on=time.time(),
        terms=profile.terms,
        secret=secret,
        asks_for_stream=mark.attach != "never" and EVENT_STREAM in request.accepted_types,
        keep_seconds=mark.cache_ttl,
        traceparent="" if record.span is None else record.span.traceparent,
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
