"""A visit: one request for a stream, and what has come back, with the time of each part.

It is plain data. `client.py` records visits, and everything that is concluded from them is a
function of them: no I/O, no clock. All times are seconds after the request was sent.
"""

import enum
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from sse_middleware.doctor.codings import DecodeError, codings_of, decoder_of
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import EOL, Splitter

EVENT_STREAM = "text/event-stream"
MAX_BODY_BYTES = 16 << 20
"""The largest part of a body that is read, also after it is decompressed."""

_MAX_COMMENT_BYTES = 256
_CONTROL_FIELDS = {
    "uptime_seconds": "heartbeat",
    "duration": "complete",
    "error": "error",
    "reason": "reset",
    "resumed": "start",
}
"""A field by which the data of a control event is recognised; the first one counts."""


class Ending(enum.StrEnum):
    """How a visit has ended."""

    FAILED = "failed"
    """There was no response."""
    COMPLETE = "complete"
    """The response was complete."""
    CLOSED = "closed"
    """The server has closed the connection, and nothing shows whether that was the end."""
    CUT = "cut"
    """The connection was closed before the end of the response."""
    LEFT = "left"
    """The command has closed the connection."""


class Chunk(NamedTuple):
    """Bytes of the body that have arrived together."""

    at: float
    data: bytes


class TimedEvent(NamedTuple):
    """A dispatched event."""

    at: float
    event: Event


class TimedComment(NamedTuple):
    """A comment, without its colon; long ones are shortened."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One request and its response.

    Attributes:
        failure: why there was no response, `""` if there was one.
        status: the status, 0 without a response.
        http_version: the version of the response, `"1.0"` or `"1.1"`.
        headers: the names, in lower case, and values of the response.
        head_at: when the response start arrived.
        chunks: the body, without its transfer encoding.
        ending: how the visit has ended.
        ended_at: when it has ended.
    """

    failure: str = ""
    status: int = 0
    http_version: str = "1.1"
    headers: tuple[tuple[str, str], ...] = ()
    head_at: float = 0.0
    chunks: tuple[Chunk, ...] = field(default=(), repr=False)
    ending: Ending = Ending.COMPLETE
    ended_at: float = 0.0

    def header(self, name: str) -> str:
        """Return the value of a header, several joined by commas, `""` if there is none."""
        return ", ".join(value for other, value in self.headers if other == name)

    @property
    def is_event_stream(self) -> bool:
        """Whether the response is a successful event stream."""
        media_type = self.header("content-type").partition(";")[0].strip().lower()
        return self.status in range(200, 300) and media_type == EVENT_STREAM

    @property
    def is_marked(self) -> bool:
        """Whether the middleware handles the response as a marked stream."""
        return bool(self.header("x-stream-id") and self.header("x-heartbeat-interval"))

    @cached_property
    def body(self) -> "Body":
        """The events and comments of the body."""
        return read_body(self.chunks, self.header("content-encoding"))

    @cached_property
    def control_events(self) -> dict[str, list[tuple[float, dict[str, Any]]]]:
        """The control events of the middleware, with their data, by their name without prefix."""
        found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        for at, event in self.body.events:
            if data := self._control_data(event):
                found.setdefault(_control_name(data), []).append((at, data))
        return found

    @cached_property
    def app_events(self) -> list[TimedEvent]:
        """The events of the app."""
        return [item for item in self.body.events if not self._control_data(item.event)]

    def _control_data(self, event: Event) -> dict[str, Any]:
        """Return the data of a control event, which contains the id of its stream, else `{}`."""
        name = self.header("x-stream-id")
        data = _json_object(event.data) if name and name in event.data else {}
        return data if data.get("stream_id") == name and _control_name(data) else {}

    def gaps(self) -> list[tuple[float, float]]:
        """Return the start and the length of each time without a byte after the response start."""
        times = [self.head_at, *(chunk.at for chunk in self.chunks), self.ended_at]
        return [(one, other - one) for one, other in itertools.pairwise(times)]


@dataclass(frozen=True, kw_only=True)
class Body:
    """The decoded body of a stream.

    Attributes:
        events: the events that a client would dispatch.
        comments: the comments.
        rest: the number of bytes after the last blank line, which a client discards.
        breaks: the times at which a chunk arrived that ends within an event.
        size: the number of bytes.
        unreadable: why the body cannot be decoded, in a sentence; `""` if it can.
    """

    events: list[TimedEvent]
    comments: list[TimedComment]
    rest: int
    breaks: list[float]
    size: int
    unreadable: str


def read_body(chunks: Iterable[Chunk], encoding: str) -> Body:
    """Parse the chunks of a body with a content encoding."""
    parser, splitter = EventParser(), Splitter(MAX_BODY_BYTES)
    events, comments = list[TimedEvent](), list[TimedComment]()
    breaks, size, unreadable = list[float](), 0, ""
    try:
        for at, data in _decoded(chunks, encoding):
            size += len(data)
            events += (TimedEvent(at, event) for event in parser.feed(data))
            comments += (
                TimedComment(at, line[1:_MAX_COMMENT_BYTES].decode("utf-8", "replace").strip())
                for _, piece in splitter.feed(data)
                for line in EOL.split(piece)
                if line.startswith(b":")
            )
            if data and not splitter.at_rest:
                breaks.append(at)
    except DecodeError as exc:
        unreadable = str(exc)
    return Body(
        events=events,
        comments=comments,
        rest=len(splitter.flush()),
        breaks=breaks,
        size=size,
        unreadable=unreadable,
    )


def _decoded(chunks: Iterable[Chunk], encoding: str) -> Iterator[Chunk]:
    if not codings_of(encoding):
        yield from chunks
        return
    decode, size = decoder_of(encoding), 0
    for at, data in chunks:
        decoded = decode(data, MAX_BODY_BYTES - size)
        yield Chunk(at, decoded)
        size += len(decoded)
        if size >= MAX_BODY_BYTES:
            return


def _control_name(data: dict[str, Any]) -> str:
    """Return which control event has this data, whatever the prefix of its name is."""
    for field_name, name in _CONTROL_FIELDS.items():
        if field_name in data:
            return name
    return ""


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
