"""Clients that watch streams for as long as a block runs."""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any, Self

from tests.support.event_source import EventSource

PATIENCE_SECONDS = 20.0
_CONNECTIONS = 10_000


class Viewer(EventSource):
    """An event source that is open while the block runs; its events are numbers."""

    _task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run(most_connections=_CONNECTIONS))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        (outcome,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    @property
    def cursor(self) -> str:
        """The last event id that it holds."""
        return self._last_event_id

    @property
    def numbers(self) -> list[int]:
        """The numbers of all events that it was given, also of those it has thrown away."""
        runs = [*self.discarded, self.events]
        return [int(event.data) for run in runs for event in run]

    @property
    def last(self) -> int:
        """The last number."""
        return max(self.numbers, default=0)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of the control events of a kind."""
        return [json.loads(event.data) for event in self.controls if event.type == kind]

    def is_whole(self, first: int = 1) -> bool:
        """Whether it was given all from `first` on, once and in order, and told of no reset."""
        return self.numbers == list(range(first, self.last + 1)) and not self.discarded

    def longest_silence(self, since: float) -> float:
        """Return for how long nothing came, at most, since a time of the loop's."""
        now = asyncio.get_running_loop().time()
        times = [since, *(time for time in self.times if time >= since), now]
        return max(after - before for before, after in itertools.pairwise(times))

    async def until(self, number: int) -> None:
        """Wait for a number."""
        await self._wait(lambda: self.last >= number, f"the number {number}")

    async def until_told(self, kind: str, patience: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait for a control event, and return its data."""
        await self._wait(lambda: bool(self.told(kind)), kind, patience)
        return self.told(kind)[0]

    async def until_stopped(self, patience: float = PATIENCE_SECONDS) -> str:
        """Wait for the end, and return what it was."""
        await self._wait(lambda: bool(self.stopped_by), "its end", patience)
        return self.stopped_by

    async def _wait(
        self, has_come: Callable[[], bool], what: str, patience: float = PATIENCE_SECONDS
    ) -> None:
        deadline = asyncio.get_running_loop().time() + patience
        while not has_come():
            assert asyncio.get_running_loop().time() < deadline, (
                f"{what} has not come: {self.last=}, {self.controls[-3:]}, "
                f"{len(self.asked_with)} connections, {self.stopped_by=}"
            )
            await asyncio.sleep(0.01)
