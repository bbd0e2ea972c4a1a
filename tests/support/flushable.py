"""Flushables for the tests of the background writer."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from typing import Any

from sse_middleware.stream.background_writer import BackgroundWriter

NAME: ContextVar[str] = ContextVar("name", default="unset")


async def nothing() -> None:
    pass


class FakeFlushable:
    """A stream that has something to write: records the `tasks` and the contexts of its writes.

    Each write records them twice, at its begin and at its end.
    """

    def __init__(
        self, name: str, log: list[str], write: Callable[[], Awaitable[Any]] = nothing
    ) -> None:
        self.name = name
        self.log = log
        self.write = write
        self.app_context = contextvars.copy_context()
        self.app_context.run(NAME.set, name)
        self.write_task: asyncio.Task[Any] | None = None
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.seen: list[str] = []
        self.written = 0

    def flush_pending(self) -> Generator[Any, Any, None]:
        return self._flush().__await__()

    async def _flush(self) -> None:
        self.log.append(f"{self.name} begins")
        self.look()
        try:
            await self.write()
            self.written += 1
        finally:
            self.look()
            self.log.append(f"{self.name} ends")

    def look(self) -> None:
        self.tasks.append(asyncio.current_task())
        self.seen.append(NAME.get())


def writer_for(*, streams: int) -> BackgroundWriter:
    writer = BackgroundWriter(asyncio.get_running_loop())
    for _ in range(streams):
        writer.stream_count += 1
    return writer


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def other_tasks() -> set[asyncio.Task[Any]]:
    task = asyncio.current_task()
    assert task is not None
    return asyncio.all_tasks() - {task}
