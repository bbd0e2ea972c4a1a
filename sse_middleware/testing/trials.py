"""The base of each trial of a store: its own event loop, its own store, and nothing left."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sse_middleware.stores.base import EventStore, LogSnapshot
from sse_middleware.testing import streams
from sse_middleware.testing.streams import eventually

_Trial = Callable[[Any, Any], Coroutine[Any, Any, None]]

TTL_SECONDS = 1.0
"""The unit of time of the trials in which logs expire; with a real store they wait for it."""
_LONG_SECONDS = 300.0
"""How long other trials may take: their logs must not expire on a busy machine."""


class StoreTrials:
    """The base of the contract: override `make_store`, and `pass_time` if time is faked."""

    def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> EventStore:
        """Return a new store, which is used in one event loop only.

        Args:
            max_events: the number of events of a stream that it keeps.
            max_bytes: the number of bytes of a stream that it keeps.
            ttl: how long it keeps a log after its end, in seconds.
        """
        raise NotImplementedError

    async def pass_time(self, seconds: float) -> None:
        """Advance the time of the store; the default sleeps."""
        await asyncio.sleep(seconds)

    async def found(self, store: EventStore, stream_id: str, **fields: object) -> None:
        """Wait until a log is found with these values of the fields of `LogSnapshot`.

        Raises:
            AssertionError: it was not found in time.
        """

        async def ask() -> LogSnapshot | None:
            return await store.find(stream_id)

        def holds(found: LogSnapshot | None) -> bool:
            return found is not None and found._asdict().items() >= fields.items()

        await eventually(ask, holds, f"the log should be found with {fields}")

    async def lost(self, store: EventStore, stream_id: str) -> None:
        """Wait until a log is no longer found.

        Raises:
            AssertionError: it is still found.
        """

        async def ask() -> LogSnapshot | None:
            return await store.find(stream_id)

        await eventually(ask, lambda found: found is None, "the log should be gone")

    async def _run(self, trial: _Trial, bounds: dict[str, Any]) -> None:
        store = self.make_store(**bounds)
        before = asyncio.all_tasks()
        try:
            async with asyncio.timeout(3 * streams.PATIENCE_SECONDS):
                await trial(self, store)
        except TimeoutError as exc:
            raise AssertionError("a reader of the store waits for too long") from exc
        finally:
            await store.close()

        async def left() -> set[asyncio.Task[Any]]:
            return asyncio.all_tasks() - before

        await eventually(left, lambda tasks: not tasks, "a closed store should leave no task")


def trial(
    *, max_events: int = 100_000, max_bytes: int = 64 << 20, ttl: float = _LONG_SECONDS
) -> Callable[[_Trial], Callable[[Any], None]]:
    """Make a plain test method of a coroutine that takes a store.

    Args:
        max_events: the number of events of a stream that the store keeps.
        max_bytes: the number of bytes of a stream that it keeps.
        ttl: how long it keeps a log after its end, in seconds.
    """
    bounds = {"max_events": max_events, "max_bytes": max_bytes, "ttl": ttl}

    def decorate(run: _Trial) -> Callable[[Any], None]:
        def test(self: StoreTrials) -> None:
            asyncio.run(self._run(run, bounds))

        # Not functools.wraps: a test runner would treat `store` as one of its fixtures.
        test.__name__, test.__qualname__, test.__doc__ = run.__name__, run.__qualname__, run.__doc__
        test.__module__ = run.__module__
        return test

    return decorate
