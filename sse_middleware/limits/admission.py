"""Admission: whether there is a slot for a stream, and how one is freed.

A client is known by its identity, else by its address. No client is rejected because of streams
that it has left: if it seems to have too many, the check waits a moment and runs again.
"""

import asyncio
import hashlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from sse_middleware._once import OncePerLoop
from sse_middleware.errors import ConfigurationError, StoreError
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

_RECHECK_SECONDS: Final = 0.1
"""The wait for the disconnect of streams that a client may have left."""
_BLOCKED_SECONDS: Final = 1.0
"""A client that blocks a write for this time may be gone: its next stream is admitted."""


class Admission:
    """Admit streams or reject them; one object for each middleware.

    Args:
        context: the objects that all requests share.

    Raises:
        ConfigurationError: an extra is missing.
    """

    def __init__(self, context: Context) -> None:
        options = context.options
        self._context = context
        self._leases: OncePerLoop[Leases] | None = None
        if options.redis_url and options.max_streams_per_client is not None:
            self._leases = OncePerLoop(self._leases_in_redis(options.max_streams_per_client))
        self.slots = SlotPool(options.max_streams, options.max_streams_per_client)
        self.slots.listener = self
        self.rate = _open_rate(context)
        self._warned_of_no_address = False

    def client_of(self, request: SSERequest) -> str | None:
        """Return a digest that identifies a client, `None` if the request has no identity."""
        name = self._context.identities.of(request)
        kind = b"identity"
        if not name:
            kind, name = b"address", self._context.proxies.client_address(request)
        if name is None:
            self._warn_of_no_address()
            return None
        data = name.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16, person=kind).hexdigest()

    def take_at_once(self, client: str | None, *, reads_end: bool) -> Slot | None:
        """Take a slot if that needs neither a wait nor an eviction, else return `None`.

        Args:
            client: the client.
            reads_end: whether it understands how its stream ends.
        """
        slots = self.slots
        if self._leases_for(client) is not None or slots.is_share_used(client) or slots.is_full:
            return None
        slot = slots.take(client, reads_end=reads_end)
        slots.trim(client)
        return slot

    async def seconds_until_lookup(self, request: SSERequest) -> int:
        """Return the seconds until an id of a client is looked up again, 0 for now."""
        if self.rate is None or (client := self.client_of(request)) is None:
            return 0
        return await self.rate.seconds_until_lookup(client)

    async def count_miss(self, request: SSERequest) -> None:
        """Count an id of a client that no stream has."""
        if self.rate is not None and (client := self.client_of(request)) is not None:
            await self.rate.count_miss(client)

    async def take(self, client: str | None, *, reads_end: bool, evicts: bool) -> Slot | str:
        """Take a slot for a stream, or return the reason why there is none.

        Args:
            client: the client.
            reads_end: whether it understands how its stream ends.
            evicts: whether an older stream may be evicted.
        """
        got = await self._take_now(client, reads_end=reads_end, evicts=False)
        if isinstance(got, str) and await self._may_retry(client, got, evicts=evicts):
            got = await self._take_now(client, reads_end=reads_end, evicts=evicts)
        return got

    def is_full_for(self, client: str | None) -> bool:
        """Return whether a client gets no slot, not even after an eviction."""
        slots = self.slots
        return slots.is_full and slots.eviction_candidate(client, any_kind=self._any_kind) is None

    def on_taken(self, slot: Slot) -> None:
        """Count a slot for all workers."""
        leases = self._leases_for(slot.client)
        if leases is not None:
            leases.hold(slot)

    def on_released(self, slot: Slot) -> None:
        """Count a slot no longer."""
        leases = self._leases_for(slot.client)
        if leases is not None:
            leases.drop(slot)

    async def close(self) -> None:
        """Release the leases and close the connections of the running loop."""
        leases = None if self._leases is None else self._leases.take()
        if leases is not None:
            await leases.close()
        if self.rate is not None:
            await self.rate.close()

    @property
    def _any_kind(self) -> bool:
        """Whether a stream may be evicted if its client does not understand how it ends."""
        return "limit_action" in self._context.options.explicit

    async def _take_now(self, client: str | None, *, reads_end: bool, evicts: bool) -> Slot | str:
        """Take a slot like `take`, without a wait."""
        slots, leases = self.slots, self._leases_for(client)
        if leases is None and slots.is_share_used(client):
            own = slots.oldest(client, any_kind=self._any_kind) if evicts else None
            if own is None:
                return CLIENT
            own.evict()
        was_full = slots.is_full
        if was_full and (not evicts or self.is_full_for(client)):
            return PROCESS
        slot = slots.take(client, reads_end=reads_end)
        if leases is None:
            slots.trim(client)
        else:
            try:
                if not await self._lease(leases, slot, evicts=evicts):
                    return CLIENT
            except BaseException:
                slot.release()
                raise
        if was_full and slots.is_overfull:  # only now: no stream ends for a rejected one
            candidate = slots.eviction_candidate(client, any_kind=self._any_kind)
            if candidate is None:
                slot.release()
                return PROCESS
            candidate.evict()
        return slot

    async def _lease(self, leases: "Leases", slot: Slot, *, evicts: bool) -> bool:
        """Request a lease, or count locally without Redis; return whether there is a slot."""
        slots, elsewhere = self.slots, 0
        evict = ("any" if self._any_kind else "e") if evicts else "nobody"
        try:
            count = await leases.take(slot, evict)
            if count is None or slot.evicted:
                slot.release()
                return False
            elsewhere = count - slots.count(slot.client)
        except StoreError:
            if evicts and not slots.is_within_share(slot):
                _evict(slots.oldest(slot.client, any_kind=self._any_kind))
            if not slots.is_within_share(slot):
                slot.release()
                return False
        leases.hold(slot)
        slots.trim(slot.client, max(0, elsewhere))
        return True

    async def _may_retry(self, client: str | None, reason: str, *, evicts: bool) -> bool:
        """End the streams that a client has left; return whether a second attempt may succeed.

        If a page is reloaded, its new request can arrive before the disconnect of the old one.
        """
        open_slots = self.slots.open_slots(client)
        elsewhere = reason == CLIENT and self._leases_for(client) is not None
        if client is None or not (open_slots or elsewhere):
            return evicts
        blocked = {}
        for slot in open_slots:
            assert slot.stream is not None
            slot.stream.watch_for_disconnect()
            blocked[slot] = slot.stream.blocked_at()
        if await self._has_fewer(client, _RECHECK_SECONDS) or evicts or not _unchanged(blocked):
            return True
        if not await self._has_fewer(client, _BLOCKED_SECONDS - _RECHECK_SECONDS):
            _evict(next(iter(_unchanged(blocked)), None))
        return True

    async def _has_fewer(self, client: str, seconds: float) -> bool:
        """Wait at most `seconds` until a client has fewer slots than now; return whether it has."""
        count = self.slots.count(client)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.slots.count(client) >= count and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(min(0.01, seconds))
        return self.slots.count(client) < count

    def _leases_for(self, client: str | None) -> "Leases | None":
        return None if client is None or self._leases is None else self._leases()

    def _leases_in_redis(self, limit_per_client: int) -> "Callable[[], Leases]":
        from sse_middleware.limits.redis_leases import Leases  # noqa: PLC0415 - an extra

        options = self._context.options
        breaker = _breaker(self._context)
        address = (options.redis_url, options.redis_prefix)
        on_client = _counts_connections(self._context)
        return lambda: Leases(*address, self.slots, limit_per_client, breaker, on_client=on_client)

    def _warn_of_no_address(self) -> None:
        if not self._warned_of_no_address:
            self._warned_of_no_address = True
            logger.warning(
                "Requests have no client address, so that SSE_MAX_STREAMS_PER_CLIENT and "
                "SSE_OPEN_RATE do not limit them; all other settings apply. If a proxy connects by "
                "a unix socket, set SSE_TRUSTED_PROXIES=unix and have it send X-Forwarded-For. "
                "This is logged once."
            )


def admission_for(context: Context) -> Admission | None:
    """Return the admission of a middleware, `None` if it has no limits.

    Raises:
        ConfigurationError: an extra is missing.
    """
    options = context.options
    has_limits = options.max_streams or options.max_streams_per_client or options.open_rate
    return Admission(context) if has_limits else None


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
        allowed = "nothing without the extra: pip install 'sse-middleware[limits]'"
        raise ConfigurationError("SSE_OPEN_RATE", options.open_rate, allowed) from exc
    if not options.redis_url:
        return OpenRate(options.open_rate, None, None)
    if not supports_installed_redis():
        allowed = "nothing with this redis: pip install 'redis>=5.2'"
        raise ConfigurationError("SSE_OPEN_RATE", options.open_rate, allowed)
    url, prefix = options.redis_url, options.redis_prefix
    breaker = _breaker(context)
    on_client = _counts_connections(context)
    return OpenRate(options.open_rate, lambda: shared_by_redis(url, prefix, on_client), breaker)


def _counts_connections(context: Context) -> "Callable[[object], None]":
    """Return a function that has observers count the connections of a client."""
    from sse_middleware.stores.redis.counted_connection import count_connections  # noqa: PLC0415

    return partial(count_connections, observers=context.observers, name="limits")


def _breaker(context: Context) -> "CircuitBreaker":
    """Return the circuit breaker of the limits that all processes share."""
    from sse_middleware.stores.redis.commands import circuit_breaker_for  # noqa: PLC0415

    consequence = "Limits are counted in each process alone. Check SSE_REDIS_URL."
    return circuit_breaker_for(context.options.redis_url, context.observers, "limit", consequence)


def _evict(slot: Slot | None) -> None:
    if slot is not None:
        slot.evict()


def _unchanged(blocked: dict[Slot, int | None]) -> list[Slot]:
    """Return the slots of streams that are still in the same write."""
    return [
        slot
        for slot, at in blocked.items()
        if at is not None and slot.stream is not None and slot.stream.blocked_at() == at
    ]
