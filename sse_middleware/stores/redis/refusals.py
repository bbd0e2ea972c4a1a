"""The errors with which Redis refuses a command.

redis-py has a class for some error codes, and removes the code from the text of these errors.
"""

from typing import Any, Final

from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnectionError

# MasterDownError is a ClusterDownError.
_TRANSIENT: Final = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError)
_TRANSIENT_CODES: Final = (
    "OOM",
    "BUSY",
    "READONLY",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
)
"""Some have no class; those of Redis 6.2 are in the middle of the text of a script's error."""


def is_final(refusal: BaseException) -> bool:
    """Return whether Redis would refuse another attempt too."""
    if isinstance(refusal, NoPermissionError):
        return True
    if not isinstance(refusal, ResponseError) or isinstance(refusal, _TRANSIENT):
        return False
    return not any(code in str(refusal) for code in _TRANSIENT_CODES)


def is_there(refusal: object) -> bool:
    """Return whether Redis has refused an entry because it has the id, or has had it."""
    return isinstance(refusal, ResponseError) and "equal or smaller" in str(refusal)


def is_of_replica(refusal: object) -> bool:
    """Return whether a server has refused a command because it is not the master any more."""
    if isinstance(refusal, ReadOnlyError | MasterDownError):
        return True
    return isinstance(refusal, ResponseError) and "READONLY" in str(refusal)


def only_to_master(kind: type[Any]) -> type[Any]:
    """Return a class of connections like `kind`, which are closed if their server is a replica.

    One address may lead to another server after a failover, but open connections stay with the
    first one.
    """
    return type(f"MasterOnly{kind.__name__}", (_MasterOnly, kind), {})


class _MasterOnly:
    """Close a connection of `redis.asyncio`, as redis-py does with those of a Sentinel."""

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]
        except ResponseError as exc:
            if not is_of_replica(exc):
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise LostConnectionError("the server is not the master any more") from exc
