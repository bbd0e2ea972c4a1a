"""The event id of a stop: in a header, or in the body, which the app can still receive."""

from typing import Final

from starlette.types import Message, Receive

from sse_middleware.http.request import SSERequest
from sse_middleware.protocol.event_ids import EventId, parse_event_id

_EVENT_ID_BYTES: Final = 64
"""The longest event id of ours."""


async def read_stop(request: SSERequest, receive: Receive) -> tuple[EventId | None, Receive]:
    """Return the event id of a stop, and a `receive` that returns the same messages again."""
    if request.cancel_target is not None:
        return request.cancel_target, receive
    messages, body, more = list[Message](), b"", True
    while more and len(body) <= _EVENT_ID_BYTES:
        message = await receive()
        messages.append(message)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    messages.reverse()

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    text = body.decode("latin-1") if len(body) <= _EVENT_ID_BYTES else ""
    return parse_event_id(text), receive_again
