"""The parser: reads bytes in any chunking and returns the events that a client would dispatch.

It follows WHATWG HTML 9.2.5 and 9.2.6 exactly
(https://html.spec.whatwg.org/#parsing-an-event-stream).
"""

from dataclasses import dataclass

from sse_middleware.protocol.wire import BOM, DEFAULT_EVENT, EOL, RETRY_DIGITS


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event.

    Attributes:
        data: the joined `data` lines, without the last line feed.
        event: the event's type, `message` if the block names none.
        id: the id that the block itself sets: `None` if it has no valid `id` line, `""` if it
            resets the client's last event id.
        retry: the reconnection time in milliseconds that the block sets, if any.
    """

    data: str
    event: str = DEFAULT_EVENT
    id: str | None = None
    retry: int | None = None


class EventParser:
    """Read a byte stream as a client does, and return the events that the client would dispatch.

    WHATWG HTML 9.2.6. One deviation: a `retry` of more than 18 digits is ignored.

    Attributes:
        last_event_id: the last event id string, which a client sends when it reconnects.
        retry: the reconnection time in milliseconds, `None` until the stream sets one.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._at_start = True
        self._after_cr = False
        self._id = ""
        self._reset_block()

    def feed(self, chunk: bytes) -> list[Event]:
        """Parse the next bytes of the stream and return the events that they complete."""
        events: list[Event] = []
        self._buffer += chunk
        if not self._buffer or (self._at_start and not self._drop_bom()):
            return events
        if self._after_cr:
            self._after_cr = False
            if self._buffer.startswith(b"\n"):
                del self._buffer[:1]
        while (found := EOL.search(self._buffer, self._searched)) is not None:
            line = bytes(self._buffer[: found.start()])
            self._after_cr = found.group() == b"\r" and found.end() == len(self._buffer)
            del self._buffer[: found.end()]
            self._searched = 0
            if line:
                self._read_line(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        self._searched = len(self._buffer)
        return events

    def _drop_bom(self) -> bool:
        head = bytes(self._buffer[: len(BOM)])
        if head != BOM and BOM.startswith(head):
            return False
        self._at_start = False
        if head == BOM:
            del self._buffer[: len(BOM)]
        return True

    def _reset_block(self) -> None:
        self._data: list[str] = []
        self._event = ""
        self._block_id: str | None = None
        self._block_retry: int | None = None

    def _read_line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._data.append(value.decode("utf-8", "replace"))
            case b"event":
                self._event = value.decode("utf-8", "replace")
            case b"id" if b"\0" not in value:
                self._id = self._block_id = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit() and len(value) <= RETRY_DIGITS:
                self.retry = self._block_retry = int(value)

    def _dispatch(self) -> Event | None:
        # "Set the last event ID string of the event source to the value of the last event ID
        # buffer" is the first step: a block without data also changes it.
        self.last_event_id = self._id
        event = None
        if self._data:
            event = Event(
                data="\n".join(self._data),
                event=self._event or DEFAULT_EVENT,
                id=self._block_id,
                retry=self._block_retry,
            )
        self._reset_block()
        return event
