"""Events as data: what a client dispatches, and what a block on the wire can say.

The words are those of WHATWG HTML 9.2 (https://html.spec.whatwg.org/#server-sent-events).
"""

from dataclasses import dataclass

DEFAULT_EVENT = "message"
"""The type of an event whose block names none (WHATWG HTML 9.2.6)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event.

    Attributes:
        data: the joined `data` lines, without the last line feed.
        event: the event's type, `message` where the block names none.
        id: what the block itself says: `None` where it has no valid `id` line, `""` where it
            resets the client's last event id.
        retry: the reconnection time in milliseconds that the block sets, if any.
    """

    data: str
    event: str = DEFAULT_EVENT
    id: str | None = None
    retry: int | None = None
