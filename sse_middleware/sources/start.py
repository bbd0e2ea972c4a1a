"""Wait for the first event of an answer before its response starts."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


async def started(events: AsyncIterable[Item]) -> "StartedAnswer[Item]":
    """Wait for the first item of an answer, and return an iterator of all its items.

    A failure before that is raised here, so that the response can still have a status for it.

    Args:
        events: the items; only the result may be iterated.
    """
    iterator = aiter(events)
    try:
        first = [await anext(iterator)]
    except StopAsyncIteration:
        first = []
    return StartedAnswer(iterator, first)


class StartedAnswer(Generic[Item]):
    """An iterator of the items of an answer that has started."""

    def __init__(self, iterator: AsyncIterator[Item], first: list[Item]) -> None:
        self._iterator = iterator
        self._first = first

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        if self._first:
            return self._first.pop()
        return await anext(self._iterator)

    async def aclose(self) -> None:
        """Close the answer."""
        close: Any = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()
