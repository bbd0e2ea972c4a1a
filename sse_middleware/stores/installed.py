"""The middleware objects of this process, and the Redis of each, which channels use too."""

from typing import Final, NamedTuple

from sse_middleware._once import ValuesOfOwners


class RedisAddress(NamedTuple):
    """A place in Redis.

    Attributes:
        url: of Redis, `""` for none.
        prefix: of all keys.
    """

    url: str
    prefix: str


INSTALLED: Final = ValuesOfOwners[object, RedisAddress]()
"""The address of each middleware object that lives."""


def installed_redis() -> RedisAddress | None:
    """Return the Redis of the newest middleware object that has one, `None` without one."""
    addresses = [address for address in INSTALLED.values() if address.url]
    return addresses[-1] if addresses else None
