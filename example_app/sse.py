"""Events with JSON data as frames."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import sse_middleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Event = tuple[str, dict[str, Any]]
"""The type of an event, and its data."""


def format_sse_event(event_type: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    """Return an event with its type, its data as JSON, and an id if it has one."""
    text = json.dumps(data, ensure_ascii=False)
    return sse_middleware.format_sse_event(text, event=event_type, id=event_id)


async def stream_events(events: AsyncIterator[Event], session: str = "") -> AsyncIterator[bytes]:
    """Yield events as frames; with a session, each has an id: the session, and a number from 1."""
    number = 0
    async for event_type, data in events:
        number += 1
        event_id = f"{session}-{number}" if session else None
        yield format_sse_event(event_type, data, event_id)
