"""The app of `streams`, whose places are given back soon when its process dies."""

from sse_middleware.limits import redis_leases as leases

leases.LEASE_SECONDS = 2.0

from tests.e2e.servers.app import app  # noqa: E402 - it is made with what is set above

__all__ = ["app"]
