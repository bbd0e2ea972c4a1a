"""Admission: whether there is room for a stream, and what is done to make some.

Whose a stream is tells the identity of its client, else the address. Nobody is turned away for
streams that he has left: whoever seems to have too many is given a moment.
"""

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Final

from sse_middleware._once import OncePerLoop
from sse_middleware.errors import ConfigurationError, StoreError
from sse_middleware.http.identity import TrustedProxies, identity_of
from sse_middleware.http.own_responses import CLIENT, PROCESS
from sse_middleware.http.request import SSERequest
from sse_middleware.limits.slots import Slot, SlotPool
from sse_middleware.stream.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_middleware.limits.open_rate import OpenRate
    from sse_middleware.limits.redis_leases import Leases
    from sse_middleware.stores.circuit_breaker import CircuitBreaker

logger = logging.getLogger("sse_middleware")

_DOUBT_SECONDS: Final = 0.1
"""How long a client is given of whose leaving we may not have heard yet."""
_BLOCKED_SECONDS: Final = 1.0
"""A client that has not taken a write for so long may be gone: its next stream is let in."""


class Admission:
    """Let streams in, or not; one for each middleware.

    Args:
        context: what all requests share.

    Raises:
        ConfigurationError: an extra is missing.
    """

    def __init__(self, context: Context) -> None:
        options = context.options
        self._context = context
        self._proxies = TrustedProxies(options.trusted_proxies)
        self._leases: OncePerLoop[Leases] | None = None
        if options.redis_url and options.max_streams_per_client is not None:
            self._leases = OncePerLoop(self._leases_in_redis(options.max_streams_per_client))
        self.places = SlotPool(options.max_streams, options.max_streams_per_client)
        self.places.listener = self
        self.rate = _open_rate(context)
        self._warned_of_nobody = False

    def client_of(self, request: SSERequest) -> str | None:
        """Return a digest that stands for a client, `None` where none can be told from another."""
        who = identity_of(request, self._context.identify, self._context.options.identity_cookies)
        kind = b"identity"
        if not who:
            kind, who = b"address", self._proxies.client_address(request)
        if who is None:
            self._warn_of_nobody()
            return None
        data = who.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16, person=kind).hexdigest()

    async def take(self, client: str | None, *, tells_end: bool, evicts: bool) -> Slot | str:
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
        return places.is_full and places.eviction_candidate(client, any_kind=self._any_kind) is None

    def hold(self, place: Slot) -> None:
        """Count a place for all workers too."""
        leases = self._leases_for(place.client)
        if leases is not None:
            leases.hold(place)

    def drop(self, place: Slot) -> None:
        """Count it no more."""
        leases = self._leases_for(place.client)
        if leases is not None:
            leases.drop(place)

    async def close(self) -> None:
        """Let go of the leases and connections of the running loop."""
        leases = None if self._leases is None else self._leases.take()
        if leases is not None:
            await leases.close()
        if self.rate is not None:
            await self.rate.close()

    @property
    def _any_kind(self) -> bool:
        """Whether a stream may end whose client does not understand why."""
        return "limit_action" in self._context.options.explicit

    async def _try(self, client: str | None, *, tells_end: bool, evicts: bool) -> Slot | str:
        """Do as `take` does, at once."""
        places, leases = self.places, self._leases_for(client)
        if leases is None and places.is_used_up(client):
            own = places.oldest(client, any_kind=self._any_kind) if evicts else None
            if own is None:
                return CLIENT
            own.evict()
        was_full = places.is_full
        if was_full and (not evicts or self.is_hopeless(client)):
            return PROCESS
        place = places.take(client, tells_end=tells_end)
        if leases is None:
            places.trim(client)
        else:
            try:
                if not await self._lease(leases, place, evicts=evicts):
                    return CLIENT
            except BaseException:
                place.release()
                raise
        if was_full and places.is_overdrawn:  # only now: nobody ends for who is not let in
            eviction_candidate = places.eviction_candidate(client, any_kind=self._any_kind)
            if eviction_candidate is None:
                place.release()
                return PROCESS
            eviction_candidate.evict()
        return place

    async def _lease(self, leases: "Leases", place: Slot, *, evicts: bool) -> bool:
        """Ask for a lease, and where nobody answers count alone; tell whether there is room."""
        places, elsewhere = self.places, 0
        evict = ("any" if self._any_kind else "e") if evicts else "nobody"
        try:
            count = await leases.take(place, evict)
            if count is None or place.evicted:
                place.release()
                return False
            elsewhere = count - places.count(place.client)
        except StoreError:
            if evicts and not places.is_within_share(place):
                _evict(places.oldest(place.client, any_kind=self._any_kind))
            if not places.is_within_share(place):
                place.release()
                return False
        leases.hold(place)
        places.trim(place.client, max(0, elsewhere))
        return True

    async def _doubt(self, client: str | None, reason: str, *, evicts: bool) -> bool:
        """Give up the streams of a client that has left; tell whether to ask once more.

        A page that is loaded anew has left and come back before we have heard that it has left.
        """
        open_slots = self.places.open_slots(client)
        elsewhere = reason == CLIENT and self._leases_for(client) is not None
        if client is None or not (open_slots or elsewhere):
            return evicts
        blocked = {}
        for place in open_slots:
            assert place.stream is not None
            place.stream.watch_for_disconnect()
            blocked[place] = place.stream.blocked_at()
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
        return None if client is None or self._leases is None else self._leases()

    def _leases_in_redis(self, most_of_client: int) -> "Callable[[], Leases]":
        from sse_middleware.limits.redis_leases import Leases  # noqa: PLC0415 - an extra

        options = self._context.options
        breaker = _breaker(self._context)
        where = (options.redis_url, options.redis_prefix)
        return lambda: Leases(*where, self.places, most_of_client, breaker)

    def _warn_of_nobody(self) -> None:
        if not self._warned_of_nobody:
            self._warned_of_nobody = True
            logger.warning(
                "requests come without an address, so that no client can be limited; this is told "
                "once; behind a proxy at a unix socket, set SSE_TRUSTED_PROXIES=unix and have it "
                "tell X-Forwarded-For"
            )


def admission_for(context: Context) -> Admission | None:
    """Return what lets streams in, `None` where all are.

    Raises:
        ConfigurationError: an extra is missing.
    """
    return Admission(context) if context.options.has_limits else None


def _open_rate(context: Context) -> "OpenRate | None":
    options = context.options
    if not options.open_rate:
        return None
    try:
        from sse_middleware.limits.open_rate import (  # noqa: PLC0415
            OpenRate,
            shared_by_redis,
            supports_installed_redis,
        )
    except ImportError as exc:
        allowed = "nothing, or with pip install 'sse-middleware[limits]' what is there"
        raise ConfigurationError("SSE_OPEN_RATE", options.open_rate, allowed) from exc
    if not options.redis_url:
        return OpenRate(options.open_rate, None, None)
    if not supports_installed_redis():
        allowed = "nothing, or with pip install 'redis>=5.2' what is there"
        raise ConfigurationError("SSE_OPEN_RATE", options.open_rate, allowed)
    url, prefix = options.redis_url, options.redis_prefix
    breaker = _breaker(context)
    return OpenRate(options.open_rate, lambda: shared_by_redis(url, prefix), breaker)


def _breaker(context: Context) -> "CircuitBreaker":
    """Return the circuit breaker of the limits that all processes share."""
    from sse_middleware.stores.redis.commands import circuit_breaker_for  # noqa: PLC0415

    consequence = "Limits are counted in each process alone. Check SSE_REDIS_URL."
    return circuit_breaker_for(context.options.redis_url, context.observers, "limit", consequence)


def _evict(place: Slot | None) -> None:
    if place is not None:
        place.evict()


def _still(blocked: dict[Slot, int | None]) -> list[Slot]:
    """Return the places whose streams are in the same write as before."""
    return [
        place
        for place, at in blocked.items()
        if at is not None and place.stream is not None and place.stream.blocked_at() == at
    ]
