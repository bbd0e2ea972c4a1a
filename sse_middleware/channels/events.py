"""Events of channels as data: what a worker may post, and what a reader is handed.

A post is checked before anything is sent. An entry is a post that stands in a channel, with its
place there; its data is JSON in one line, whoever has written it, or it is no entry.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

from sse_middleware.errors import EventFormatError
from sse_middleware.protocol.wire import DEFAULT_EVENT

ACK: Final = "worker_ack"
"""The event by which a worker says that it is at it."""
COMPLETE: Final = "complete"
ERROR: Final = "error"
_END: Final = "end"  # the one key of all that ends a channel; those of users begin with u:

_CHANNEL: Final = re.compile(r"[!-~]{1,200}")
_EVENT: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_KEY: Final = re.compile(r"[!-~]{1,200}")
_PLACE: Final = re.compile(r"([0-9]{1,15}-[0-9]{1,15})\.([1-9][0-9]{0,14})")
_NUMBER: Final = re.compile(rb"[1-9][0-9]{0,14}")
_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_compact: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":")
).encode


class Position(NamedTuple):
    """A place in a channel: behind one of its entries.

    Attributes:
        id: that the store has given to the entry, `0-0` before the first one.
        number: of the entry, from 1, without gaps; 0 before the first one, and `None` where the
            reader takes what is kept, from whichever number on.
    """

    id: str
    number: int | None

    def __str__(self) -> str:
        return f"{self.id}.{self.number}"


BEGINNING: Final = Position("0-0", None)
"""Before whatever is kept."""
EMPTY: Final = Position("0-0", 0)
"""In a channel that nobody has posted on."""


def parse_place(text: str) -> Position | None:
    """Read a place out of hostile input, `None` where it is anything else."""
    found = _PLACE.fullmatch(text)
    return None if found is None else Position(found[1], int(found[2]))


class OutgoingEvent(NamedTuple):
    """An event that is to be published.

    Attributes:
        channel: where.
        event: its name.
        data: its payload, JSON in one line.
        key: what it is published under at most once, `""` where it has none.
    """

    channel: str
    event: str
    data: bytes
    key: str


def post_of(
    channel: str, event: str, data: object, key: str | None, max_bytes: int
) -> OutgoingEvent:
    """Return a post that is allowed.

    Raises:
        EventFormatError: its channel, its name, its data or its key is not.
    """
    check_channel(channel)
    if not isinstance(event, str) or not _EVENT.fullmatch(event):
        raise EventFormatError("event", event, "1 to 128 characters, none of them a control")
    if key is not None and (not isinstance(key, str) or not _KEY.fullmatch(key)):
        raise EventFormatError("key", key, "1 to 200 visible ASCII characters, without spaces")
    try:
        encoded = _compact(data).encode()
        event.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        # Nor may what was refused stand in a log: it is a payload.
        got = f"a {type(data).__name__}"
        raise EventFormatError("data", got, "what JSON and UTF-8 can encode") from exc
    if len(encoded) > max_bytes:
        got = f"{len(encoded)} bytes of JSON"
        raise EventFormatError("data", got, f"at most {max_bytes}, see SSE_MAX_EVENT_BYTES")
    return OutgoingEvent(channel, event, encoded, f"u:{key}" if key else "")


def check_channel(channel: str) -> None:
    """Refuse what is no name of a channel.

    Raises:
        EventFormatError: it is too long, or has other characters; it says not which, for a name
            is a secret.
    """
    if not isinstance(channel, str) or not _CHANNEL.fullmatch(channel):
        got = f"{len(channel)} characters" if isinstance(channel, str) else type(channel).__name__
        raise EventFormatError("channel", got, "1 to 200 visible ASCII characters, without spaces")


class ChannelEvent(bytes):
    """One event as it goes over the wire: the bytes of its block, and what they say.

    Bytes, since the responses of Starlette and sse-starlette, and FastAPI's where it is returned,
    pass them on as they are.

    Attributes:
        event: its name.
        data: its payload, JSON in one line.
        id: its place in the channel, by which `subscribe(history=...)` goes on behind it; `None`
            for an error that the reader's side has found.
    """

    event: str
    data: str
    id: str | None

    def __new__(cls, block: bytes, *, event: str, data: str, id: str | None) -> Self:  # noqa: A002
        """Make it of its block."""
        made = super().__new__(cls, block)
        made.event = event
        made.data = data
        made.id = id
        return made

    def json(self) -> Any:
        """Return the payload."""
        return json.loads(self.data)


class EventFormat(NamedTuple):
    """How events are written.

    Attributes:
        envelope: `data: {"event_type", "payload"}` in place of an `event:` line.
        ids: whether each says its place.
    """

    envelope: bool = False
    ids: bool = False

    def write(self, event: str, data: str, place: str | None) -> ChannelEvent:
        """Return an event in this form; nothing of it has a line end."""
        if self.envelope:
            lines = f'data: {{"event_type":{_compact(event)},"payload":{data}}}\n'
        elif event == DEFAULT_EVENT:
            lines = f"data: {data}\n"
        else:
            lines = f"event: {event}\ndata: {data}\n"
        if self.ids and place is not None:
            lines += f"id: {place}\n"
        return ChannelEvent(f"{lines}\n".encode(), event=event, data=data, id=place)


class StoredEvent:
    """An event that stands in a channel; all its readers share it.

    Attributes:
        place: behind it.
        number: its own.
        event: its name.
        data: its payload, JSON in one line.
    """

    __slots__ = ("_written", "data", "event", "number", "place")

    def __init__(self, entry_id: str, number: int, event: str, data: str) -> None:
        self.place = Position(entry_id, number)
        self.number = number
        self.event = event
        self.data = data
        self._written: dict[EventFormat, ChannelEvent] = {}

    def write(self, form: EventFormat) -> ChannelEvent:
        """Return it in a form, written once for all readers."""
        written = self._written.get(form)
        if written is None:
            written = self._written[form] = form.write(self.event, self.data, str(self.place))
        return written


def entry_of(entry_id: bytes, number: int, event: bytes, data: bytes) -> StoredEvent | None:
    """Return an entry out of what a store holds, `None` where something else has written it."""
    try:
        name, text = _name_of(event), data.decode()
        if name is None or not _is_json(text) or "\n" in text or "\r" in text:
            return None
    except (ValueError, RecursionError):
        return None
    return StoredEvent(entry_id.decode(), number, name, text)


@lru_cache(maxsize=256)
def _name_of(event: bytes) -> str | None:
    name = event.decode()
    return name if _EVENT.fullmatch(name) else None


def _is_json(text: str) -> bool:
    try:
        if _scan(text, 0)[1] == len(text):  # of the decoder nothing but what is in C
            return True
    except StopIteration:
        pass
    json.loads(text)  # there may be blanks around it
    return True


def number_of(text: bytes) -> int | None:
    """Return the number of an entry out of what a store holds, `None` where it is none."""
    return int(text) if _NUMBER.fullmatch(text) else None


class ReadResult(NamedTuple):
    """What stands behind a place.

    Attributes:
        entries: in order, none missing between them.
        place: behind the last of them, and of all that was passed over.
        is_whole: whether none is missing in front of what follows; where not, the next one is not
            kept any more.
    """

    entries: Sequence[StoredEvent]
    place: Position
    is_whole: bool = True


class LastEvent(NamedTuple):
    """The last entry of a channel.

    Attributes:
        place: behind it, `EMPTY` where there is no such channel.
        event: its name.
        is_acked: whether a worker has said that it is at it.
    """

    place: Position
    event: str
    is_acked: bool


NO_CHANNEL: Final = LastEvent(EMPTY, "", is_acked=False)


def page_of(found: Sequence[tuple[str, StoredEvent | None]], after: Position) -> ReadResult:
    """Return what a reader gets of entries that were found, by their ids.

    What is no entry is passed over.
    """
    entries: list[StoredEvent] = []
    place = after
    for entry_id, entry in found:
        number = place.number
        if entry is None:
            place = Position(entry_id, number)
            continue
        if number is not None and entry.number != number + 1:
            return ReadResult(entries, place, is_whole=False)
        entries.append(entry)
        place = entry.place
    # Behind an empty channel there can be nothing but its first entry.
    return ReadResult(entries, EMPTY if place is BEGINNING else place)


def ack_of(channel: str) -> OutgoingEvent:
    """Return the post by which a worker takes the job of a channel; one does."""
    check_channel(channel)
    return OutgoingEvent(channel, ACK, b"{}", ACK)


def finish_of(channel: str, data: object, max_bytes: int) -> OutgoingEvent:
    """Return the post by which a channel ends; it does so once."""
    return post_of(channel, COMPLETE, data, None, max_bytes)._replace(key=_END)


def fail_of(channel: str, code: str, message: str, max_bytes: int) -> OutgoingEvent:
    """Return the post by which a channel ends because the worker has failed."""
    error = {"type": "worker_error", "code": code, "message": message}
    return post_of(channel, ERROR, {"error": error}, None, max_bytes)._replace(key=_END)
