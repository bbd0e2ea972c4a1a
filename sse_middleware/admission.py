"""Admission: whether a stream is let in, asked where it costs least.

Before the app runs, where the request shows that it wants a stream, else at the response start.
What turns out to be no stream gives its place back then. Whose it is tells the identity of its
client, else the address.
"""

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Final

from starlette.types import Scope, Send

from sse_middleware.addresses import Addresses
from sse_middleware.claims import Claim, identity_of
from sse_middleware.errors import ConfigurationError, StoreError
from sse_middleware.families import Family
from sse_middleware.headers import request_headers
from sse_middleware.limits import Place, Places, Tenant
from sse_middleware.refusing import CLIENT, PROCESS, RATE, put_off, refuse
from sse_middleware.routes import Mark
from sse_middleware.setup import Setup
from sse_middleware.stores.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_middleware.stores.leases import Leases
    from sse_middleware.stores.open_rate import OpenRate

logger = logging.getLogger("sse_middleware")

RETRY_SECONDS: Final = 5
"""When to come again where there is no room; nobody knows when there will be."""
_DOUBT_SECONDS: Final = 0.1
"""How long a client is given of whose leaving we may not have heard yet."""
_BLOCKED_SECONDS: Final = 1.0
"""A client that has not taken a write for so long may be gone: its next stream is let in."""
_STREAM: Final = b"text/event-stream"
_ANY: Final = frozenset((_STREAM, b"text/*", b"*/*"))
_NO_STREAMS: Final = ("HEAD", "OPTIONS")


class Admission:
    """Let streams in, or not; one for each middleware.

    Args:
        setup: what all requests share.

    Raises:
        ConfigurationError: an extra is missing.
    """

    def __init__(self, setup: Setup) -> None:
        options = setup.options
        self._setup = setup
        self._addresses = Addresses(options.trusted_proxies)
        self._make_leases: Callable[[], Leases] | None = None
        if options.redis_url and options.max_streams_per_client is not None:
            self._make_leases = self._leases_in_redis(options.max_streams_per_client)
        self.places = Places(options.max_streams, options.max_streams_per_client)
        self.places.watcher = self
        self.rate = _open_rate(setup)
        self._leases: dict[asyncio.AbstractEventLoop, Leases] = {}
        self._warned_of_nobody = False

    async def enter(self, scope: Scope, claim: Claim) -> "Entry":
        """Look at a request before the app runs."""
        entry = Entry(self, self._setup, scope, claim)
        await entry.ask_ahead()
        return entry

    def client_of(self, scope: Scope) -> str | None:
        """Return a digest that stands for a client, `None` where none can be told from another."""
        headers = request_headers(scope.get("headers") or ())
        cookies = self._setup.options.identity_cookies
        who = identity_of(scope, headers, self._setup.identify, cookies)
        kind = b"identity"
        if not who:
            kind, who = b"address", self._addresses.of(scope)
        if who is None:
            self._warn_of_nobody()
            return None
        data = who.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16, person=kind).hexdigest()

    async def take(self, client: str | None, *, tells_end: bool, evicts: bool) -> Place | str:
        """Take a place for a stream, or return what has no room.

        Args:
            client: whose it is.
            tells_end: whether it understands how its stream ends.
            evicts: whether an older stream may end for it.
        """
        got = await self._try(client, tells_end=tells_end, evicts=False)
        if isinstance(got, str) and await self._doubt(client, got, evicts=evicts):
            got = await self._try(client, tells_end=tells_end, evicts=evicts)
        return got

    def is_hopeless(self, client: str | None) -> bool:
        """Tell whether there is no room even for who may have an older stream end."""
        places = self.places
        return places.is_full and places.victim(client, any_kind=self._any_kind) is None

    def hold(self, place: Place) -> None:
        """Count a place for all workers too."""
        leases = self._leases_for(place.client)
        if leases is not None:
            leases.hold(place)

    def drop(self, place: Place) -> None:
        """Count it no more."""
        leases = self._leases_for(place.client)
        if leases is not None:
            leases.drop(place)

    async def close(self) -> None:
        """Let go of the leases and connections of the running loop."""
        leases = self._leases.pop(asyncio.get_running_loop(), None)
        if leases is not None:
            await leases.close()
        if self.rate is not None:
            await self.rate.close()

    @property
    def _any_kind(self) -> bool:
        """Whether a stream may end whose client does not understand why."""
        return "limit_action" in self._setup.options.explicit

    async def _try(self, client: str | None, *, tells_end: bool, evicts: bool) -> Place | str:
        """Do as `take` does, at once."""
        places, leases = self.places, self._leases_for(client)
        if evicts and places.is_full:
            _evict(places.victim(client, any_kind=self._any_kind))
        if evicts and leases is None and places.is_used_up(client):
            _evict(places.oldest(client, any_kind=self._any_kind))
        if places.is_full:
            return PROCESS
        if leases is None:
            if places.is_used_up(client):
                return CLIENT
            place = places.take(client, tells_end=tells_end)
            places.trim(client)
            return place
        place = places.take(client, tells_end=tells_end)
        try:
            return place if await self._lease(leases, place, evicts=evicts) else CLIENT
        except BaseException:
            place.give_back()
            raise

    async def _lease(self, leases: "Leases", place: Place, *, evicts: bool) -> bool:
        """Ask for a lease, and where nobody answers count alone; tell whether there is room."""
        places, elsewhere = self.places, 0
        evict = ("any" if self._any_kind else "e") if evicts else "nobody"
        try:
            count = await leases.take(place, evict)
            if count is None:
                place.give_back()
                return False
            elsewhere = count - places.count(place.client)
        except StoreError:
            if evicts and not places.is_within_share(place):
                _evict(places.oldest(place.client, any_kind=self._any_kind))
            if not places.is_within_share(place):
                place.give_back()
                return False
        leases.hold(place)
        places.trim(place.client, max(0, elsewhere))
        return True

    async def _doubt(self, client: str | None, reason: str, *, evicts: bool) -> bool:
        """Give up the streams of a client that has left; tell whether to ask once more.

        A page that is loaded anew has left and come back before we have heard that it has left.
        """
        tenants = self.places.tenants(client)
        elsewhere = reason == CLIENT and self._leases_for(client) is not None
        if client is None or not (tenants or elsewhere):
            return evicts
        blocked = {}
        for place in tenants:
            assert place.tenant is not None
            place.tenant.listen()
            blocked[place] = place.tenant.blocked_at()
        if await self._gets_less(client, _DOUBT_SECONDS) or evicts or not _still(blocked):
            return True
        if not await self._gets_less(client, _BLOCKED_SECONDS - _DOUBT_SECONDS):
            _evict(next(iter(_still(blocked)), None))
        return True

    async def _gets_less(self, client: str, seconds: float) -> bool:
        """Wait until a client has fewer places than now, or `seconds` are over; tell which."""
        count = self.places.count(client)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.places.count(client) >= count and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(min(0.01, seconds))
        return self.places.count(client) < count

    def _leases_for(self, client: str | None) -> "Leases | None":
        if client is None or self._make_leases is None:
            return None
        loop = asyncio.get_running_loop()
        if loop not in self._leases:
            for other in [other for other in self._leases if other.is_closed()]:
                del self._leases[other]
            self._leases[loop] = self._make_leases()
        return self._leases[loop]

    def _leases_in_redis(self, most_of_client: int) -> "Callable[[], Leases]":
        from sse_middleware.stores.leases import Leases  # noqa: PLC0415 - an extra
        from sse_middleware.stores.redis_link import FAILURES  # noqa: PLC0415

        options = self._setup.options
        patience = Patience(FAILURES, self._setup.observers)
        where = (options.redis_url, options.redis_prefix)
        return lambda: Leases(*where, self.places, most_of_client, patience)

    def _warn_of_nobody(self) -> None:
        if not self._warned_of_nobody:
            self._warned_of_nobody = True
            logger.warning(
                "requests come without an address, so that no client can be limited; this is told "
                "once; behind a proxy at a unix socket, set SSE_TRUSTED_PROXIES=unix"
            )


class Entry:
    """One request on its way in.

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

    def __init__(self, admission: Admission, setup: Setup, scope: Scope, claim: Claim) -> None:
        self._admission = admission
        self._setup = setup
        self._scope = scope
        self._claim = claim
        self._family = Family.PLAIN
        self._client: str | None = None
        self._place: Place | None = None
        self._retry_after = RETRY_SECONDS
        self.refusal = ""

    async def ask_ahead(self) -> None:
        """Ask before the app runs, where the request shows that it wants a stream."""
        accepted = _accepted(self._scope)
        only_stream = accepted == {_STREAM} or self._claim.cursor is not None
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

    def let_in(self, tenant: Tenant) -> Place | None:
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
        if self._family is Family.EVENTSOURCE and self._evicts():
            options = self._setup.options
            await put_off(send, self._scope, options, self._claim, self._retry_after)
        else:
            await refuse(send, self._scope, self.refusal, self._retry_after)

    def _is_off(self, mark: Mark | None) -> bool:
        """Find out who asks, and tell whether the rollout leaves it out."""
        has_cursor = self._claim.cursor is not None
        headers = request_headers(self._scope.get("headers") or ())
        self._family = self._setup.family_of(self._scope, headers, mark, has_cursor=has_cursor)
        if self._family is Family.OFF:
            return True
        if self._client is None:
            self._client = self._admission.client_of(self._scope)
        return False

    def _evicts(self) -> bool:
        return self._setup.options.evicts(eventsource=self._family is Family.EVENTSOURCE)

    async def _take(self) -> None:
        got = await self._admission.take(
            self._client,
            tells_end=self._family is Family.EVENTSOURCE,
            evicts=self._evicts(),
        )
        if isinstance(got, Place):
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


def admission_for(setup: Setup) -> Admission | None:
    """Return what lets streams in, `None` where all are.

    Raises:
        ConfigurationError: an extra is missing.
    """
    return Admission(setup) if setup.options.limits_something else None


def _open_rate(setup: Setup) -> "OpenRate | None":
    options = setup.options
    if not options.open_rate:
        return None
    try:
        from sse_middleware.stores.open_rate import OpenRate, shared_by_redis  # noqa: PLC0415
    except ImportError as exc:
        allowed = "nothing, or with pip install 'sse-middleware[limits]' what is there"
        raise ConfigurationError("SSE_OPEN_RATE", options.open_rate, allowed) from exc
    if not options.redis_url:
        return OpenRate(options.open_rate, None, None)
    from sse_middleware.stores.redis_link import FAILURES  # noqa: PLC0415 - an extra

    url, prefix = options.redis_url, options.redis_prefix
    patience = Patience(FAILURES, setup.observers)
    return OpenRate(options.open_rate, lambda: shared_by_redis(url, prefix), patience)


def _accepted(scope: Scope) -> set[bytes]:
    """Return the media types that a request accepts, without their parameters."""
    accept = request_headers(scope.get("headers") or ()).get(b"accept", b"*/*").lower()
    return {part.partition(b";")[0].strip() for part in accept.split(b",")}


def _evict(place: Place | None) -> None:
    if place is not None:
        place.evict()


def _still(blocked: dict[Place, int | None]) -> list[Place]:
    """Return the places whose streams are in the same write as before."""
    return [
        place
        for place, at in blocked.items()
        if at is not None and place.tenant is not None and place.tenant.blocked_at() == at
    ]
