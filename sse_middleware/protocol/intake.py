"""The bytes of an app: split into events, which are counted, numbered and recorded.

None of them is changed, unless the app has opted for trace ids in its data. All connections write
the same bytes, each in the form of its client kind.
"""

import re
from collections import deque
from typing import Any, Final, Protocol

from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol import openai
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.stream_end import Reason, StreamEnd
from sse_middleware.protocol.stream_profile import StreamProfile
from sse_middleware.protocol.wire import (
    BOM,
    EOL,
    Kind,
    Splitter,
    add_trace_id,
    event_data,
    event_name,
    has_data,
    has_id,
)

_ERROR: Final = b"error"
_FIELDS: Final = (b"data", b"event", b"id", b"retry")
_FIELD_LINE: Final = re.compile(rb"(?:\A|[\r\n])(?:(?:data|event|id|retry)[:\r\n]|:)")
_MAX_LOOSE_BYTES: Final = 1 << 16
"""The most bytes between two events that the log keeps, such as the pings of an app."""
INSIDE_EVENT: Final = -1
"""The number of a part of an event that is too long to be kept whole."""
NO_EVENT: Final = 0
"""The number of bytes that are no event, such as a comment."""
_NOTHING: Final[deque[bytes]] = deque()  # shared by all streams without such bytes; never changed

Part = tuple[int, bytes]
"""The number of an event, `NO_EVENT` or `INSIDE_EVENT`; and its bytes."""


class Recording(Protocol):
    """Keeps the events, as the app has sent them."""

    def append(self, first: int, data: bytes, count: int = 1) -> None:
        """Keep the frames of `count` events, the first of which has the number `first`.

        Of several, each ends at its first blank line, two LF.
        """

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept."""

    def use_app_ids(self) -> "Recording | None":
        """Keep nothing: the app sets its own ids. Return where the events are collected still."""


class Intake:
    """Process the bytes of one app, in any chunking.

    Args:
        profile: the common part of streams like this one.
        record: the numbers of the stream.

    Attributes:
        app_owns_ids: whether the app has sent an id that the middleware does not use.
        first_chunk: the first chat completion chunk, `None` if the dialect is not OpenAI's.
        has_ids: whether the app has sent an id.
        has_own_end: whether the app has sent the last event itself.
        has_own_error: whether that is an error.
        is_raw: whether the bytes are no event stream, so that they are passed on at once.
        log: keeps the events; `None` if they are not kept.
        record: as the argument.
    """

    __slots__ = (
        "_examines_all",
        "_head",
        "_is_openai",
        "_lacks_lf",
        "_loose",
        "_loose_bytes",
        "_marker",
        "_profile",
        "_splitter",
        "app_owns_ids",
        "first_chunk",
        "has_ids",
        "has_own_end",
        "has_own_error",
        "is_raw",
        "log",
        "record",
    )

    def __init__(self, profile: StreamProfile, record: StreamRecord) -> None:
        self._profile = profile
        self.record = record
        self.log: Recording | None = None
        self._splitter = Splitter(profile.options.max_event_bytes)
        self._is_openai = profile.is_openai
        self._examines_all = profile.trace_in_data or profile.is_openai is not False
        self._marker = b"event:"
        self._loose = _NOTHING
        self._loose_bytes = 0
        self._lacks_lf: Part | None = None  # an event for the log that ends in half a CRLF
        self.app_owns_ids = False
        self.has_ids = False
        self.has_own_end = False
        self.has_own_error = False
        self.is_raw = False
        self._head: bytes | None = b""  # the first bytes; `None` if they are an event stream
        self.first_chunk: dict[str, Any] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the app has sent any bytes."""
        return self.record.chunks > 0 or self._head != b""

    def feed_usual(self, chunk: bytes, now: float) -> int:
        """Process a chunk if all of it are usual events, none of which may end the stream.

        Returns:
            The number of events; 0 if the chunk has not been processed.
        """
        count = self._splitter.count_usual(chunk)
        if not count or (
            (self._examines_all or chunk.find(self._marker) >= 0) and self._needs_a_look(chunk)
        ):
            return 0
        last, log = self.record.count_events(count, now), self.log
        if log is not None:
            if self._loose:
                self._append_after_loose(log, last - count + 1, chunk, count)
            else:
                log.append(last - count + 1, chunk, count)
        return count

    def feed(self, chunk: bytes, now: float) -> list[Part]:
        """Process a chunk, and return the parts of the stream that are complete."""
        if self._head is not None:
            self._examine_head(chunk)
        if self.is_raw:
            self.record.count_events(1, now)
        takes_lf = self._lacks_lf is not None and chunk != b"" and self._keep_lacking(chunk[:1])
        parts: list[Part] = []
        pieces = self._splitter.feed(chunk)
        for kind, data in pieces:
            if kind is Kind.BLOCK:
                is_last = self._splitter.ended_in_cr and data is pieces[-1][1]
                parts.append(self._process_block(data, now, ends_in_cr=is_last))
            elif kind is Kind.PART:
                parts.append((INSIDE_EVENT, data))
            else:
                if kind is Kind.LAST_PART:  # too long to be kept, and without an id
                    self._skip(self.record.count_events(1, now))
                elif takes_lf:  # the first piece
                    takes_lf = False
                else:
                    self._keep_loose(data)
                parts.append((NO_EVENT, data))
        return parts

    def end(self, reason: Reason, duration: float) -> tuple[StreamEnd, StreamEnd]:
        """End the stream, and return its end for clients that are connected, and for the log.

        The log has all bytes after the last event, of which connected clients have received some.
        """
        record = self.record
        end = StreamEnd(
            reason,
            trace_id=record.trace_id,
            duration=duration,
            chunks=record.chunks,
            tokens=record.tokens,
            is_inside_event=not self._splitter.between_blocks,
            tail=self._splitter.flush(),
            has_own_end=self.has_own_end,
            first_chunk=self.first_chunk,
        )
        if self._lacks_lf is not None:
            self._keep_lacking(b"")
        self.log = None
        if not self._loose:
            return end, end
        return end, end._replace(tail=self._take_loose() + end.tail)

    def _examine_head(self, chunk: bytes) -> None:
        """Detect a body that is no event stream by its first bytes."""
        head = (self._head or b"") + chunk
        is_event_stream = True if self.record.chunks else begins_event_stream(head)
        # Blank lines alone decide nothing; one of them shows that the body has begun.
        self._head = (head.lstrip(b"\r\n") or b"\n") if is_event_stream is None else None
        if is_event_stream is False:
            self.is_raw = True
            self.record.family = ClientKind.UNMARKED
            self._splitter.stop_splitting()

    def _take_loose(self) -> bytes:
        """Return the bytes after the last event that clients have received, and drop them."""
        loose, self._loose = self._loose, _NOTHING
        self._loose_bytes = 0
        return b"".join(loose)

    def _needs_a_look(self, chunk: bytes) -> bool:
        """Return whether usual events have to be examined one by one."""
        if self._profile.trace_in_data:
            return True
        if self._is_openai is None:
            if chunk.find(openai.CHUNK_TYPE) >= 0:
                return True
            self._set_dialect(is_openai=False)  # the first event decides
        if self._is_openai:
            has_first = self.first_chunk is None and chunk.find(openai.CHUNK_TYPE) >= 0
            return has_first or chunk.find(openai.DONE) >= 0
        return chunk.find(b"event:") >= 0 and any(
            chunk.find(name) >= 0 for name in self._profile.end_names
        )

    def _process_block(self, block: bytes, now: float, *, ends_in_cr: bool) -> Part:
        if has_id(block):
            self._on_app_id()
        if not has_data(block):
            self._keep_loose(block)
            return NO_EVENT, block
        number = self.record.count_events(1, now)
        if self._profile.trace_in_data:
            block = add_trace_id(block, self.record.trace_id)
        self._examine(block)
        if self.log is not None:
            frame = self._take_loose() + block if self._loose else block
            if ends_in_cr and b"\n" in block:
                self._lacks_lf = number, frame
            else:
                self.log.append(number, frame)
        return number, block

    def _examine(self, block: bytes) -> None:
        """Detect the dialect of a stream at its first event, and later the app's own last event."""
        if self._is_openai is not False and self.first_chunk is None:
            if block.find(openai.CHUNK_TYPE) >= 0:
                self.first_chunk = openai.parse_chunk(event_data(block))
                if self.first_chunk is not None:
                    self.record.family = ClientKind.OPENAI
                    if self.record.span is not None:
                        self.record.span.on_completion(self.first_chunk)
            is_openai = self.first_chunk is not None if self._is_openai is None else self._is_openai
            self._set_dialect(is_openai=is_openai)
        if self._is_openai:
            if block.find(openai.DONE) >= 0 and event_data(block) == openai.DONE:
                self.has_own_end = True
        elif block.find(b"event") >= 0 and (name := event_name(block)) in self._profile.end_names:
            self.has_own_end = True
            self.has_own_error = name.endswith(_ERROR)

    def _set_dialect(self, *, is_openai: bool) -> None:
        self._is_openai = is_openai
        self._examines_all = self._profile.trace_in_data or (is_openai and not self.first_chunk)
        self._marker = openai.DONE if is_openai else b"event:"

    def _on_app_id(self) -> None:
        self.has_ids = True
        if not (self._profile.app_ids or self.app_owns_ids):
            self.app_owns_ids = True
            if self.log is not None:
                self.log = self.log.use_app_ids()

    def _keep_loose(self, data: bytes) -> None:
        """Keep bytes that are no event, for the log: they precede the next event there."""
        if self.log is None:
            return
        if not self._loose:
            self._loose = deque()
        self._loose.append(data)
        self._loose_bytes += len(data)
        while self._loose_bytes > _MAX_LOOSE_BYTES:
            self._loose_bytes -= len(self._loose.popleft())

    def _keep_lacking(self, next_byte: bytes) -> bool:
        """Keep an event that ends in half a CRLF, with the LF if that is the next byte.

        A client that resumes after the event has the LF, so that the next event must not have it.
        """
        assert self._lacks_lf is not None
        (number, frame), self._lacks_lf = self._lacks_lf, None
        takes_lf = next_byte == b"\n"
        if self.log is not None:
            self.log.append(number, frame + next_byte if takes_lf else frame)
        return takes_lf

    def _append_after_loose(self, log: Recording, first: int, chunk: bytes, count: int) -> None:
        """Append usual events, the first of which follows bytes that are no event."""
        end = chunk.index(b"\n\n") + 2
        log.append(first, self._take_loose() + chunk[:end])
        if count > 1:
            log.append(first + 1, chunk[end:], count - 1)

    def _skip(self, number: int) -> None:
        self._take_loose()
        if self.log is not None:
            self.log.skip(number)


def begins_event_stream(head: bytes) -> bool | None:
    """Return whether a body that begins like this is an event stream, `None` if it may be.

    It is one if any line has a field or is a comment. Clients ignore other lines.
    """
    head = head.removeprefix(BOM)
    if _FIELD_LINE.search(head):
        return True
    *_, last = EOL.split(head)
    if not head.strip(b"\r\n") or BOM.startswith(head):
        return None
    return None if last and any(field.startswith(last) for field in _FIELDS) else False
