"""Clients that follow streams of numbers until a block ends."""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any, Self

from tests.support.event_source import EventSource
from tests.support.waiting import until

_CONNECTIONS = 10_000


class Viewer(EventSource):
    """An event source that is open until the block ends; its events are numbers."""

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
    def last_event_id(self) -> str:
        return self._last_event_id

    @property
    def numbers(self) -> list[int]:
        """The numbers of all events that it has received, including the discarded ones."""
        runs = [*self.discarded, self.events]
        return [int(event.data) for run in runs for event in run]

    @property
    def last(self) -> int:
        """The last number."""
        return max(self.numbers, default=0)

    def data_of(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of the control events of a kind."""
        return [json.loads(event.data) for event in self.controls if event.type == kind]

    def is_whole(self, first: int = 1) -> bool:
        """Whether it has received all numbers from `first`, once, in order and without a reset."""
        return self.numbers == list(range(first, self.last + 1)) and not self.discarded

    def longest_silence(self, since: float) -> float:
        """Return the longest time without an event since a time of the event loop."""
        now = asyncio.get_running_loop().time()
        times = [since, *(time for time in self.times if time >= since), now]
        return max(after - before for before, after in itertools.pairwise(times))

    async def until(self, number: int) -> None:
        """Wait for a number."""
        await self._until(lambda: self.last >= number, f"the number {number}")

    async def until_control(self, kind: str) -> dict[str, Any]:
        """Wait for a control event, and return its data."""
        await self._until(lambda: bool(self.data_of(kind)), kind)
        return self.data_of(kind)[0]

    async def until_stopped(self) -> str:
        """Wait for the end, and return the event or status that has ended it."""
        await self._until(lambda: bool(self.stopped_by), "its end")
        return self.stopped_by

    async def _until(self, condition: Callable[[], bool], missing: str) -> None:
        def state() -> str:
            return (
                f"{missing} has not arrived: {self.last=}, {self.controls[-3:]}, "
                f"{len(self.asked_with)} connections, {self.stopped_by=}"
            )

        await until(condition, state)
