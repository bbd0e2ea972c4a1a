"""The admission of one request: the check runs at the point where a rejection costs least.

That is before the app runs if the request wants a stream. If that is not known, or if another
stream may have to end for it, the check runs after the response start and before the first part of
the body. A response that is no stream releases its slot. While the server drains, a request that
wants a stream is rejected by the same rule.
"""

from typing import Final

from starlette.types import Send

from sse_middleware.config.options import Options
from sse_middleware.http.own_responses import (
    PROCESS,
    RATE,
    RETRY_SECONDS,
    SHUTDOWN,
    send_rejection,
    send_retry_later,
)
from sse_middleware.http.request import ANY_STREAM, NEVER_STREAM, SSERequest
from sse_middleware.http.routes import Mark
from sse_middleware.limits.admission import Admission
from sse_middleware.limits.slots import Evictable, Slot
from sse_middleware.protocol.client_kinds import ClientKind, detect_client_kind
from sse_middleware.stream.context import Context

_DRAIN_RETRY_SECONDS: Final = 1


class AdmissionCheck:
    """The check of one request.

    Args:
        admission: the limits and slots.
        context: the objects that all requests share.
        request: the request.

    Attributes:
        rejection: the limit that is reached, `""` if the request may continue.
    """

    __slots__ = (
        "_admission",
        "_client",
        "_context",
        "_kind",
        "_request",
        "_retry_after",
        "_slot",
        "rejection",
    )

    def __init__(self, admission: Admission, context: Context, request: SSERequest) -> None:
        self._admission = admission
        self._context = context
        self._request = request
        self._kind = ClientKind.PLAIN
        self._client: str | None = None
        self._slot: Slot | None = None
        self._retry_after = RETRY_SECONDS
        self.rejection = ""

    async def check_before_app(self) -> None:
        """Check before the app runs, if the request wants a stream."""
        request, options = self._request, self._context.options
        if request.method in NEVER_STREAM or (
            ANY_STREAM.isdisjoint(request.accepted_types) and request.intent.event_id is None
        ):
            return  # a stream that it gets all the same is checked after its response start
        mark, route, _ = self._context.match_route(request.scope)
        if not request.wants_stream(mark, only_marked=options.only_marked):
            return
        self._identify(mark)
        rate, client = self._admission.rate, self._client
        if rate is not None and client is not None:
            self._reject_for(await rate.seconds_left(client))
        if not self.rejection and self._evicts():
            # No stream ends here for a response that may turn out to be none.
            if self._admission.is_full_for(client):
                self.rejection = PROCESS
        elif not self.rejection:
            await self._take()
        self._report(route)

    def is_admitted_at_once(self, mark: Mark | None) -> bool:
        """Check at the response start, without a wait; return whether the stream may open."""
        self._identify(mark)
        if self._admission.rate is not None and self._client is not None:
            return False  # it is counted first
        if self._slot is None:
            reads_end = self._kind is ClientKind.EVENTSOURCE
            self._slot = self._admission.take_at_once(self._client, reads_end=reads_end)
        return self._slot is not None

    async def check_before_body(self, route: str) -> bool:
        """Check after `is_admitted_at_once`, with waits; return whether the stream may open."""
        rate, client = self._admission.rate, self._client
        if rate is not None and client is not None:
            self._reject_for(await rate.count(client))
        if not self.rejection and self._slot is None:
            await self._take()
        if self.rejection:
            self.release()
        self._report(route)
        return not self.rejection

    def attach(self, stream: Evictable) -> Slot | None:
        """Give the slot to the stream that has opened, and return it."""
        if self._slot is not None:
            self._slot.attach(stream)
        return self._slot

    def release(self) -> None:
        """Release the slot, if there is one."""
        if self._slot is not None:
            self._slot.release()
            self._slot = None

    async def send_rejection(self, send: Send) -> None:
        """Send the rejection in place of the app's response."""
        if self._kind is ClientKind.EVENTSOURCE and self._evicts():
            held = self._request.last_event_id or ""
            seconds = 2 * self._retry_after
            await send_retry_later(send, self._request, self._context.options, held, seconds)
        else:
            await send_rejection(send, self._request, self.rejection, self._retry_after)

    def _identify(self, mark: Mark | None) -> None:
        """Determine the client and its kind."""
        self._kind = self._context.client_kind(self._request, mark)
        if self._client is None:
            self._client = self._admission.client_of(self._request)

    def _evicts(self) -> bool:
        is_eventsource = self._kind is ClientKind.EVENTSOURCE
        return evicts(self._context.options, eventsource=is_eventsource)

    async def _take(self) -> None:
        got = await self._admission.take(
            self._client,
            reads_end=self._kind is ClientKind.EVENTSOURCE,
            evicts=self._evicts(),
        )
        if isinstance(got, Slot):
            self._slot = got
        else:
            self.rejection = got

    def _reject_for(self, seconds: int) -> None:
        if seconds:
            self.rejection, self._retry_after = RATE, seconds

    def _report(self, route: str) -> None:
        if self.rejection:
            for observer in self._context.observers:
                observer.rejected(route, self.rejection)


def evicts(options: Options, *, eventsource: bool) -> bool:
    """Return whether a stream over a limit ends an older one."""
    if "limit_action" in options.explicit:
        return options.limit_action == "evict_oldest"
    return eventsource


async def reject_if_draining(context: Context, request: SSERequest, send: Send) -> bool:
    """Reject a request that wants a stream while the server drains; return whether it does.

    An `EventSource` gets an empty stream: it reconnects soon, to another worker, with the id that
    it has; any status but 200 would stop it for good. Other clients get 503. A request that does
    not show that it wants a stream is handled as usual, and its stream ends with the others.
    """
    mark, route, _ = context.match_route(request.scope)
    if not request.wants_stream(mark, only_marked=context.options.only_marked):
        return False
    kind = context.client_kind(request, mark)
    is_left_alone = kind is ClientKind.UNMARKED and "drain_seconds" not in context.options.explicit
    if kind is ClientKind.OFF or is_left_alone:
        return False
    if kind is ClientKind.UNMARKED:  # this response is not the app's
        has_event_id = request.intent.event_id is not None
        kind = detect_client_kind(request.method, request.headers, has_event_id=has_event_id)
    for observer in context.observers:
        observer.rejected(route, SHUTDOWN)
    if kind is ClientKind.EVENTSOURCE:
        held = request.last_event_id or ""
        await send_retry_later(send, request, context.options, held)
    else:
        await send_rejection(send, request, SHUTDOWN, _DRAIN_RETRY_SECONDS)
    return True
