"""Opening: how a response becomes a stream of ours, and what its log begins with."""

import time

from starlette.types import Message, Scope, Send

from sse_middleware.http.request import RequestBody, identity_of, last_event_id, place_of
from sse_middleware.http.response_head import packed, request_headers, stream_headers
from sse_middleware.http.routes import Mark, route_name
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm, comment_form
from sse_middleware.protocol.event_ids import parse_event_id
from sse_middleware.protocol.stream_state import StreamState
from sse_middleware.stores.base import LogInfo
from sse_middleware.stream.context import Context
from sse_middleware.stream.current import CurrentStream
from sse_middleware.stream.kept_producer import KeptProducer
from sse_middleware.stream.owner import Owner
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.timers import current_timers


class Opening:
    """Open one stream.

    Args:
        setup: what all requests share.
        current: the stream as the handler sees it.
        scope: the request's, behind the app's routing.
        mark: the endpoint's, if it has one.
        body: what has come of the request's body, if it may count.

    Attributes:
        words: the first bytes of ours.
    """

    __slots__ = (
        "_body",
        "_current",
        "_headers",
        "_mark",
        "_options",
        "_scope",
        "_setup",
        "_state",
        "_ticker",
        "words",
    )

    def __init__(
        self,
        setup: Context,
        current: CurrentStream,
        scope: Scope,
        mark: Mark | None,
        body: RequestBody | None,
    ) -> None:
        self._setup = setup
        self._current = current
        self._scope = scope
        self._mark = mark
        self._body = body
        self._options = setup.options if mark is None else setup.options_of(mark)
        self._headers = headers = request_headers(scope.get("headers") or ())
        record = current.begin(headers)
        has_cursor = current.claim.cursor is not None
        record.family = family = setup.family_of(scope, headers, mark, has_cursor=has_cursor)
        record.route = route_name(scope, mark)
        numbers = family is ClientKind.EVENTSOURCE
        secret = current.take_secret()
        self._state = StreamState(
            self._options,
            family=family,
            record=record,
            secret=secret if numbers else "",
            marked=mark is not None,
            comment=(
                CommentForm.BLOCK if numbers else comment_form(headers, self._options.comment_style)
            ),
            app_ids=mark is not None and mark.stream_key is not None,
        )
        self._ticker = current_timers()
        self.words = self._state.open(
            self._ticker.clock(),
            self._ticker.epoch(),
            reset=current.claim.reset if numbers else "",
            event_id=self._held_id() if numbers else None,
            ends_in=None if family is ClientKind.OFF else setup.seconds_left(scope),
        )

    def outbox(self, send: Send, start: Message, *, owner: Owner) -> Producer:
        """Return what writes the stream to `send`, and keeps it where it is to be kept."""
        setup, state = self._setup, self._state
        info = self._log_info(start) if state.family is ClientKind.EVENTSOURCE else None
        outbox: Producer
        if info is None:
            outbox = Producer(state, send, self._ticker, observers=setup.observers, owner=owner)
        else:
            outbox = KeptProducer(
                state,
                send,
                self._ticker,
                observers=setup.observers,
                owner=owner,
                store=setup.store,
                info=info,
                lingering=setup.lingering,
            )
            if info.app_ids:
                outbox.set_name(setup.key_name(self._mark, self._scope) or "")
        self._current.open(outbox)
        if state.family is ClientKind.EVENTSOURCE and self._current.claim.reset:
            for observer in setup.observers:
                observer.resumed(state.record.route, self._current.claim.reset, 0)
        return outbox

    def start(self, start: Message) -> Message:
        """Return the response start with our headers, or as it is where we only look on."""
        state, options = self._state, self._options
        if state.family is ClientKind.OFF:
            return start
        headers = stream_headers(
            start.get("headers") or (),
            http_version=self._scope.get("http_version", ""),
            trace_id=state.record.trace_id,
            stream_id=state.record.stream_id,
            max_seconds=state.max_seconds,
            heartbeat_interval=options.heartbeat_interval,
            silence_threshold=options.silence_threshold,
            keep_cache_control=state.family is not ClientKind.EVENTSOURCE,
        )
        return {**start, "headers": headers}

    def _held_id(self) -> str | None:
        """Return the id of the app's that the client has come with, and keeps until the next one.

        The app has been handed it, and ours in its place would make it begin anew.
        """
        if self._current.claim.reset:
            return None
        told = last_event_id(self._scope)
        return told if told is not None and parse_event_id(told) is None else None

    def _log_info(self, start: Message) -> LogInfo | None:
        """Return what the log begins with, `None` where there is to be none."""
        state, scope, setup, mark = self._state, self._scope, self._setup, self._mark
        if not self._options.replay_max_events:
            return None
        cookies = self._options.identity_cookies
        identity = identity_of(scope, self._headers, setup.identify, cookies)
        app_ids = mark is not None and mark.stream_key is not None
        if identity is None or (app_ids and setup.key_name(mark, scope) is None):
            return None
        return LogInfo(
            stream_id=state.record.stream_id,
            path=place_of(scope),
            identity=identity,
            method=scope.get("method", ""),
            body_digest=None if self._body is None else self._body.digest(),
            origin=self._headers.get(b"origin", b"").decode("latin-1"),
            headers=packed(start.get("headers") or ()),
            route=state.record.route,
            marked=mark is not None,
            app_ids=app_ids,
            opened_on=time.time(),
            max_seconds=state.max_seconds,
            rotates=state.rotates,
            heartbeat_interval=self._options.heartbeat_interval,
            silence_threshold=self._options.silence_threshold,
            event_prefix=self._options.event_prefix,
            retry_ms=state.retry_ms,
        )
