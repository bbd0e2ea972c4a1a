"""The app of `servers.app`, with leases that expire soon and a long wait for Redis."""

from sse_middleware.limits import redis_leases
from sse_middleware.stores import circuit_breaker
from tests.support.product_constants import override

override(4.0, "LEASE_SECONDS", redis_leases)
# A worker that does not wait for a busy Redis counts alone, and admits too many streams.
override(2.0, "CALL_TIMEOUT_SECONDS", circuit_breaker)
override(2.0, "FIRST_CALL_TIMEOUT_SECONDS", circuit_breaker, redis_leases)

from tests.e2e.servers.app import app  # noqa: E402 - it is created with these values

__all__ = ["app"]
