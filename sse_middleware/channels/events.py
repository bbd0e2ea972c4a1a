"""Events of channels as data: the event that a worker publishes, and the event that a reader gets.

An event is validated before it is sent. A stored event has a position in its channel. Its data is
JSON in one line; an entry with other data is malformed, and readers skip it.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

from sse_middleware.channels.unencodable import description
from sse_middleware.errors import EventFormatError, Unquoted
from sse_middleware.protocol.wire import DEFAULT_EVENT

ACK: Final = "worker_ack"
"""The event with which a worker takes a job."""
COMPLETE: Final = "complete"
ERROR: Final = "error"
ANSWER_END: Final = "FinalAnswerStreamEnd"
"""The event with which an agent ends a session."""
_END: Final = "end"  # the key of each event that ends a channel; users' keys begin with u:

_CHANNEL: Final = re.compile(r"[!-~]{1,200}")
_EVENT: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_KEY: Final = re.compile(r"[!-~]{1,200}")
_POSITION: Final = re.compile(r"([0-9]{1,15}-[0-9]{1,15})\.([1-9][0-9]{0,14})(?:\.([0-9a-f]{8}))?")
_GENERATION: Final = re.compile(rb"[0-9a-f]{8}")
_NUMBER: Final = re.compile(rb"[1-9][0-9]{0,14}")
_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_compact: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


class Position(NamedTuple):
    """The position after an event of a channel.

    Attributes:
        id: the store's id of the event, `0-0` before the first one.
        number: the number of the event, from 1, without gaps; 0 before the first one; `None` if
            the reader begins with the oldest event that is kept.
        generation: differs for each channel that is created under the same name; `""` before the
            first event, and in memory, where the id contains it.
    """

    id: str
    number: int | None
    generation: str = ""

    def __str__(self) -> str:
        suffix = f".{self.generation}" if self.generation else ""
        return f"{self.id}.{self.number}{suffix}"

    def is_before(self, following: "Position") -> bool:
        """Return whether a position is the one after the next event."""
        if self.number is None:
            return True
        is_same = not self.number or self.generation == following.generation
        return is_same and self.number + 1 == following.number


BEGINNING: Final = Position("0-0", None)
"""Before the oldest event that is kept."""
EMPTY: Final = Position("0-0", 0)
"""The position in an empty channel."""


def parse_position(text: str) -> Position | None:
    """Parse a position in untrusted input; return `None` if it is malformed."""
    found = _POSITION.fullmatch(text)
    return None if found is None else Position(found[1], int(found[2]), found[3] or "")


class OutgoingEvent(NamedTuple):
    """An event to be published.

    Attributes:
        channel: the channel's name.
        event: the event's name.
        data: the payload, JSON in one line.
        key: a channel contains one event with this key at most; `""` for no key.
    """

    channel: str
    event: str
    data: bytes
    key: str


def outgoing_event(
    channel: str, event: str, data: object, key: str | None, max_bytes: int
) -> OutgoingEvent:
    """Return an event that is allowed.

    Raises:
        EventFormatError: its channel, its name, its data or its key is not allowed.
    """
    check_channel(channel)
    if key is not None and (not isinstance(key, str) or not _KEY.fullmatch(key)):
        raise EventFormatError("key", key, "1 to 200 visible ASCII characters, without spaces")
    event, encoded = encode_event(event, data)
    if len(encoded) > max_bytes:
        got = f"{len(encoded)} bytes of JSON"
        raise EventFormatError("data", got, f"at most {max_bytes}, see SSE_MAX_EVENT_BYTES")
    return OutgoingEvent(channel, event, encoded, f"u:{key}" if key else "")


def encode_event(event: object, data: object) -> tuple[str, bytes]:
    """Return the name of an event, and its data as JSON in one line.

    Raises:
        EventFormatError: its name or its data is not allowed.
    """
    if not isinstance(event, str) or not _EVENT.fullmatch(event):
        raise EventFormatError("event", event, "1 to 128 characters, none of them a control")
    try:
        encoded = _compact(data).encode()
        event.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        # The error must not contain the payload, because errors are logged.
        allowed = "what JSON and UTF-8 can encode: convert it before you publish it"
        raise EventFormatError("data", Unquoted(description(data)), allowed) from exc
    return event, encoded


def check_channel(channel: str) -> None:
    """Validate the name of a channel.

    Raises:
        EventFormatError: it is too long or contains other characters. The error does not contain
            the name, which is a secret.
    """
    if not isinstance(channel, str) or not _CHANNEL.fullmatch(channel):
        raise EventFormatError(
            "channel",
            Unquoted(_described(channel)),
            "1 to 200 visible ASCII characters, without spaces",
        )


def _described(channel: object) -> str:
    """Return what is wrong with a name, without the name."""
    if not isinstance(channel, str):
        return f"of the type {type(channel).__name__}"
    wrong = [number for number, character in enumerate(channel, 1) if not "!" <= character <= "~"]
    if not wrong:
        return f"{len(channel)} characters long"
    kind = "a space" if channel[wrong[0] - 1] == " " else "one that is not allowed"
    return f"{len(channel)} characters long, with {kind} at position {wrong[0]}"


class ChannelEvent(bytes):
    """One event as bytes of an event stream, and its parts.

    It is bytes because the responses of Starlette, sse-starlette and FastAPI send bytes unchanged.

    Attributes:
        event: its name.
        data: its payload, JSON in one line.
        id: its position in the channel; `subscribe(history=...)` continues after it. `None` for an
            error that the reader has added itself, and for a plain message of Redis.
    """

    event: str
    data: str
    id: str | None

    def __new__(cls, block: bytes, *, event: str, data: str, id: str | None) -> Self:  # noqa: A002
        """Create it from its block."""
        created = super().__new__(cls, block)
        created.event = event
        created.data = data
        created.id = id
        return created

    def json(self) -> Any:
        """Return the payload."""
        return json.loads(self.data)


class EventFormat(NamedTuple):
    """How events are written.

    Attributes:
        envelope: whether `data: {"event_type", "payload"}` replaces the `event:` line.
        ids: whether each event has an `id:` line.
    """

    envelope: bool = False
    ids: bool = False

    def write(self, event: str, data: str, position: str | None) -> ChannelEvent:
        """Return an event in this format; no argument contains a line end."""
        if self.envelope:
            lines = f'data: {{"event_type":{_compact(event)},"payload":{data}}}\n'
        elif event == DEFAULT_EVENT:
            lines = f"data: {data}\n"
        else:
            lines = f"event: {event}\ndata: {data}\n"
        if self.ids and position is not None:
            lines += f"id: {position}\n"
        return ChannelEvent(f"{lines}\n".encode(), event=event, data=data, id=position)


class StoredEvent:
    """An event in a channel; all readers share it.

    Attributes:
        position: the position after it, `EMPTY` for one that no log contains; it has no id.
        number: its number.
        event: its name.
        data: its payload, JSON in one line.
    """

    __slots__ = ("_written", "data", "event", "number", "position")

    def __init__(self, position: Position, event: str, data: str) -> None:
        assert position.number is not None
        self.position = position
        self.number = position.number
        self.event = event
        self.data = data
        self._written: dict[EventFormat, ChannelEvent] = {}

    def write(self, event_format: EventFormat) -> ChannelEvent:
        """Return the event in a format, written once for all readers."""
        written = self._written.get(event_format)
        if written is None:
            position = str(self.position) if self.number else None
            written = event_format.write(self.event, self.data, position)
            self._written[event_format] = written
        return written


def parse_entry(position: Position, event: bytes, data: bytes) -> StoredEvent | None:
    """Return the event in an entry of a store, `None` if the entry is malformed."""
    try:
        name, text = _name_of(event), data.decode()
        if name is None or not _is_json(text) or "\n" in text or "\r" in text:
            return None
    except (ValueError, RecursionError):
        return None
    return StoredEvent(position, name, text)


@lru_cache(maxsize=256)
def _name_of(event: bytes) -> str | None:
    name = event.decode()
    return name if _EVENT.fullmatch(name) else None


def _is_json(text: str) -> bool:
    try:
        if _scan(text, 0)[1] == len(text):  # only the part of the decoder that is written in C
            return True
    except StopIteration:
        pass
    json.loads(text)  # with white space around it
    return True


def parse_number(text: bytes) -> int | None:
    """Return the number in an entry of a store, `None` if it is malformed."""
    return int(text) if _NUMBER.fullmatch(text) else None


def parse_generation(text: bytes) -> str | None:
    """Return the generation in an entry of a store, `None` if it is malformed."""
    return text.decode() if _GENERATION.fullmatch(text) else None


class ReadResult(NamedTuple):
    """The events after a position.

    Attributes:
        entries: events in order, without gaps.
        position: the position after the last of them, and after all skipped entries.
        is_whole: whether the next event is kept, or has not been published yet.
    """

    entries: Sequence[StoredEvent]
    position: Position
    is_whole: bool = True


class LastEvent(NamedTuple):
    """The last event of a channel.

    Attributes:
        position: the position after it, `EMPTY` if there is no such channel.
        event: its name.
    """

    position: Position
    event: str


NO_CHANNEL: Final = LastEvent(EMPTY, "")


def read_result(found: Sequence[tuple[str, StoredEvent | None]], after: Position) -> ReadResult:
    """Return the result for a reader from entries with their ids; malformed entries are `None`."""
    entries: list[StoredEvent] = []
    position = after
    for entry_id, entry in found:
        if entry is None:
            position = position._replace(id=entry_id)
            continue
        if not position.is_before(entry.position):
            return ReadResult(entries, position, is_whole=False)
        entries.append(entry)
        position = entry.position
    # The next event of an empty channel must be its first one.
    return ReadResult(entries, EMPTY if position is BEGINNING else position)


def ack_event(channel: str) -> OutgoingEvent:
    """Return the event with which a worker takes the job of a channel; only one worker can."""
    check_channel(channel)
    return OutgoingEvent(channel, ACK, b"{}", ACK)


def finish_event(channel: str, data: object, max_bytes: int) -> OutgoingEvent:
    """Return the event that ends a channel; a channel ends once."""
    return outgoing_event(channel, COMPLETE, data, None, max_bytes)._replace(key=_END)


def fail_event(channel: str, code: str, message: str, max_bytes: int) -> OutgoingEvent:
    """Return the event that ends a channel because the worker has failed."""
    error = {"type": "worker_error", "code": code, "message": message}
    return outgoing_event(channel, ERROR, {"error": error}, None, max_bytes)._replace(key=_END)
