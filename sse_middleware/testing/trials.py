"""What each trial of a store stands on: a loop of its own, a store of its own, and nothing left."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sse_middleware.stores.base import EventStore, LogSnapshot
from sse_middleware.testing import streams
from sse_middleware.testing.streams import eventually

_Trial = Callable[[Any, Any], Coroutine[Any, Any, None]]

TTL_SECONDS = 1.0
"""How long the logs of a trial are kept behind their end; a real store makes a test wait for it."""


class StoreTrials:
    """The ground of the contract: override `make_store`, and `pass_time` where time is faked."""

    def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> EventStore:
        """Return a store that is new, and used in one event loop only.

        Args:
            max_events: how many events of a stream it keeps.
            max_bytes: how many bytes of a stream it keeps.
            ttl: how long it keeps a log behind its end, in seconds.
        """
        raise NotImplementedError

    async def pass_time(self, seconds: float) -> None:
        """Let time go by for the store, here by a sleep."""
        await asyncio.sleep(seconds)

    async def found(self, store: EventStore, stream_id: str, **fields: object) -> None:
        """Wait until a log is found with these values of the fields of `LogSnapshot`.

        Raises:
            AssertionError: it has not come to be.
        """

        async def ask() -> LogSnapshot | None:
            return await store.find(stream_id)

        def holds(found: LogSnapshot | None) -> bool:
            return found is not None and found._asdict().items() >= fields.items()

        await eventually(ask, holds, f"it was to be found with {fields}")

    async def lost(self, store: EventStore, stream_id: str) -> None:
        """Wait until a log is not found any more.

        Raises:
            AssertionError: it is still there.
        """

        async def ask() -> LogSnapshot | None:
            return await store.find(stream_id)

        await eventually(ask, lambda found: found is None, "the log was to go")

    async def _run(self, trial: _Trial, bounds: dict[str, Any]) -> None:
        store = self.make_store(**bounds)
        before = asyncio.all_tasks()
        try:
            async with asyncio.timeout(3 * streams.PATIENCE_SECONDS):
                await trial(self, store)
        except TimeoutError as exc:
            raise AssertionError("the store has kept its reader waiting") from exc
        finally:
            await store.close()

        async def left() -> set[asyncio.Task[Any]]:
            return asyncio.all_tasks() - before

        await eventually(left, lambda tasks: not tasks, "a closed store was to leave no task")


def trial(
    *, max_events: int = 100_000, max_bytes: int = 64 << 20, ttl: float = TTL_SECONDS
) -> Callable[[_Trial], Callable[[Any], None]]:
    """Make a plain test method of a coroutine that takes a store.

    Args:
        max_events: how many events of a stream the store keeps.
        max_bytes: how many bytes of a stream it keeps.
        ttl: how long it keeps a log behind its end, in seconds.
    """
    bounds = {"max_events": max_events, "max_bytes": max_bytes, "ttl": ttl}

    def decorate(run: _Trial) -> Callable[[Any], None]:
        def test(self: StoreTrials) -> None:
            asyncio.run(self._run(run, bounds))

        # Not functools.wraps, for a test runner would take `store` for something that it brings.
        test.__name__, test.__qualname__, test.__doc__ = run.__name__, run.__qualname__, run.__doc__
        test.__module__ = run.__module__
        return test

    return decorate
