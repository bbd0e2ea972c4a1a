"""The entry of one request: whether its stream is let in, asked where it costs least.

Before the app runs, where the request shows that it wants a stream, else at the response start.
What turns out to be no stream gives its place back then.
"""

from typing import Final

from starlette.types import Scope, Send

from sse_middleware.http.own_responses import PROCESS, RATE, put_off, refuse
from sse_middleware.http.request import ResumeIntent, last_event_id
from sse_middleware.http.response_head import request_headers
from sse_middleware.http.routes import Mark
from sse_middleware.limits.admission import Admission
from sse_middleware.limits.slots import Evictable, Slot
from sse_middleware.protocol.client_kinds import EVENT_STREAM, ClientKind, accepted_types
from sse_middleware.stream.context import Context

RETRY_SECONDS: Final = 5
"""When to come again where there is no room; nobody knows when there will be."""
_ANY: Final = frozenset((EVENT_STREAM, b"text/*", b"*/*"))
_NO_STREAMS: Final = ("HEAD", "OPTIONS")


class AdmissionCheck:
    """One request on its way in.

    Args:
        admission: knows what room there is.
        setup: what all requests share.
        scope: the request's.
        claim: what has become of its cursor.

    Attributes:
        refusal: what has no room for it, `""` while nothing is known to have none.
    """

    __slots__ = (
        "_admission",
        "_claim",
        "_client",
        "_counted",
        "_family",
        "_place",
        "_retry_after",
        "_scope",
        "_setup",
        "refusal",
    )

    def __init__(
        self, admission: Admission, setup: Context, scope: Scope, claim: ResumeIntent
    ) -> None:
        self._admission = admission
        self._setup = setup
        self._scope = scope
        self._claim = claim
        self._family = ClientKind.PLAIN
        self._client: str | None = None
        self._place: Slot | None = None
        self._retry_after = RETRY_SECONDS
        self.refusal = ""

    async def ask_ahead(self) -> None:
        """Ask before the app runs, where the request shows that it wants a stream."""
        accepted = accepted_types(request_headers(self._scope.get("headers") or ()))
        only_stream = accepted == {EVENT_STREAM} or self._claim.cursor is not None
        if self._scope.get("method") in _NO_STREAMS or not (only_stream or accepted & _ANY):
            return
        mark, route = self._setup.ahead(self._scope)
        if mark is None and (self._setup.options.only_marked or not only_stream):
            return
        if (mark is not None and mark.overrides.get("enabled") is False) or self._is_off(mark):
            return
        rate, client = self._admission.rate, self._client
        if rate is not None and client is not None:
            self._refuse_for(await rate.seconds_left(client))
        if not self.refusal and self._evicts():
            # What it may turn out not to be is no reason to end a stream that is.
            if self._admission.is_hopeless(client):
                self.refusal = PROCESS
        elif not self.refusal:
            await self._take()
        self._tell(route)

    async def ask(self, mark: Mark | None, route: str) -> bool:
        """Ask at the start of a stream; tell whether it may begin."""
        if self._is_off(mark):
            self.leave()
            return True
        rate, client = self._admission.rate, self._client
        if rate is not None and client is not None:
            self._refuse_for(await rate.count(client))
        if not self.refusal and self._place is None:
            await self._take()
        if self.refusal:
            self.leave()
        self._tell(route)
        return not self.refusal

    def let_in(self, tenant: Evictable) -> Slot | None:
        """Give the stream its place."""
        if self._place is not None:
            self._place.let_in(tenant)
        return self._place

    def leave(self) -> None:
        """Give the place back, if there is one."""
        if self._place is not None:
            self._place.give_back()
            self._place = None

    async def answer(self, send: Send) -> None:
        """Answer in place of the app."""
        if self._family is ClientKind.EVENTSOURCE and self._evicts():
            cursor = self._claim.cursor
            held = last_event_id(self._scope) or ("" if cursor is None else str(cursor))
            await put_off(send, self._scope, self._setup.options, held, 2 * self._retry_after)
        else:
            await refuse(send, self._scope, self.refusal, self._retry_after)

    def _is_off(self, mark: Mark | None) -> bool:
        """Find out who asks, and tell whether the rollout leaves it out."""
        has_cursor = self._claim.cursor is not None
        headers = request_headers(self._scope.get("headers") or ())
        self._family = self._setup.family_of(self._scope, headers, mark, has_cursor=has_cursor)
        if self._family is ClientKind.OFF:
            return True
        if self._client is None:
            self._client = self._admission.client_of(self._scope)
        return False

    def _evicts(self) -> bool:
        return self._setup.options.evicts(eventsource=self._family is ClientKind.EVENTSOURCE)

    async def _take(self) -> None:
        got = await self._admission.take(
            self._client,
            tells_end=self._family is ClientKind.EVENTSOURCE,
            evicts=self._evicts(),
        )
        if isinstance(got, Slot):
            self._place = got
        else:
            self.refusal = got

    def _refuse_for(self, seconds: int) -> None:
        if seconds:
            self.refusal, self._retry_after = RATE, seconds

    def _tell(self, route: str) -> None:
        if self.refusal:
            for observer in self._setup.observers:
                observer.rejected(route, self.refusal)
