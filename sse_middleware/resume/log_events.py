"""Look for an event in the log of a stream: by an id of the app, or by its sequence number.

The events of a log are numbered from 1 by the middleware. OpenAI's Responses number theirs
themselves, from 0, in the field `sequence_number` of their JSON.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from sse_middleware.protocol.wire import Kind, Splitter, event_data, has_data
from sse_middleware.stores.base import EventStore, LogSnapshot, LogState

_FIELD: Final = "sequence_number"
_FIRST_EVENT_SECONDS: Final = 0.5
"""How long an event that a client has already may take to reach the store."""


async def blocks_after(
    store: EventStore, found: LogSnapshot, after: int
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the blocks of a log after the event `after`, up to its last event or a gap.

    Args:
        store: the store.
        found: the log.
        after: a number.

    Yields:
        The number of the event, and its block; or a block without data, and the number of the event
        before it.
    """
    number = after
    async with aclosing(store.follow(found.info.stream_id, after)) as log:
        async for batch in log:
            if batch.state is not LogState.RUNNING:
                return
            for kind, block in Splitter(len(batch.frames) + 1).feed(batch.frames):
                if kind is Kind.BLOCK:
                    number += has_data(block)
                    yield number, block
            number = batch.last
            if number >= found.last:
                return


async def number_of(store: EventStore, found: LogSnapshot, sequence: int) -> int | None:
    """Return the number of the last event of a log up to a sequence number of the app.

    The first event shows whether the app numbers its events. The numbers usually grow by one, so
    that two events are parsed; if not, all up to the one that is looked for.

    Args:
        store: the store.
        found: the log.
        sequence: a sequence number.

    Returns:
        The number, less than `found.first - 1` if the events after it are not kept, and more than
        `found.last` if it has not been stored yet. `None` if the events have no sequence numbers.
    """
    first = await _sequence_at(store, found, found.first)
    if first is None:
        return None
    number = found.first + sequence - first
    if number < found.first:
        return max(0, number)
    known = min(number, found.last)
    if (
        known <= found.first
        or await _sequence_at(store, found, known) == first + known - found.first
    ):
        return number
    number = found.first - 1
    async with aclosing(blocks_after(store, found, number)) as blocks:
        async for at, block in blocks:
            if (_sequence_in(block) or 0) > sequence:
                break
            number = at
    return number


async def _sequence_at(store: EventStore, found: LogSnapshot, number: int) -> int | None:
    """Return the sequence number in an event, `None` if it has none or does not come soon."""
    try:
        async with (
            asyncio.timeout(_FIRST_EVENT_SECONDS),
            aclosing(blocks_after(store, found, number - 1)) as blocks,
        ):
            async for at, block in blocks:
                if at == number:
                    return _sequence_in(block)
    except TimeoutError:
        pass
    return None


def _sequence_in(block: bytes) -> int | None:
    """Return the sequence number in the JSON of an event, `None` if it has none."""
    if _FIELD.encode() not in block:
        return None
    try:
        data: Any = json.loads(event_data(block))
    except (ValueError, RecursionError):
        return None
    number = data.get(_FIELD) if isinstance(data, dict) else None
    return number if type(number) is int and number >= 0 else None  # a `bool` is an `int` too
