"""The wire format: splits, reads, edits and encodes blocks of an event stream.

It follows WHATWG HTML 9.2.5 and 9.2.6 exactly
(https://html.spec.whatwg.org/#parsing-an-event-stream), in linear time and with any chunking.

`Splitter` splits a byte stream between events and keeps every byte; `format_sse_event` encodes one
block; the other functions read or edit one complete block.
"""

import codecs
import enum
import json
import re
from collections.abc import Callable

from sse_middleware.errors import EventFormatError

BOM = codecs.BOM_UTF8
DEFAULT_EVENT = "message"
"""The type of an event whose block names none (WHATWG HTML 9.2.6)."""

_CR = 13
_NOTHING = bytearray()  # shared by all streams with an empty buffer, which are most; never changed

# "end-of-line = ( cr lf / cr / lf )". The possessive `?+` never backtracks into a CRLF. A CR at the
# end of the buffer ends its line immediately; a LF that arrives later is the second half of it.
EOL = re.compile(rb"\r\n?+|\n")
_BLANK_LINE = re.compile(rb"(?:\r\n?+|\n)(?:\r\n?+|\n)")
_DATA_LINE = re.compile(rb"(?:\A|[\r\n])data[:\r\n]")
_DATA_VALUES = re.compile(rb"(?:\A|[\r\n])data(?:: ?|(?=[\r\n]))([^\r\n]*)")
_ID_LINE = re.compile(rb"(?:\A|[\r\n])id[:\r\n]")
_ID_VALUES = re.compile(rb"(?:\A|[\r\n])id(?:: ?|(?=[\r\n]))([^\r\n]*)")
RETRY_DIGITS = 18
_USUAL = re.compile(rb"(?:(?:event:[^\r\n]*+\n)?+data:[^\r\n]*+\n\n)++")
_EVENT_LINE = re.compile(rb"(?:\A|[\r\n])event(?:: ?|(?=[\r\n]))([^\r\n]*)")


class Kind(enum.IntEnum):
    """The kind of a `Piece`."""

    BLOCK = 1
    """One complete block, including its blank line."""
    LINE = 2
    """A comment or an empty line between two blocks, or the LF of a CRLF in two chunks."""
    PART = 3
    """A part of a block over the limit; only the rest of the block may follow."""
    LAST_PART = 4
    """The end of a block over the limit, including its blank line."""
    BOM = 5
    """The byte order mark, which is valid only as the first bytes of a stream."""


Piece = tuple[Kind, bytes]
"""Some bytes of the stream. All pieces and the tail, concatenated, are the stream."""


class Splitter:
    """Split a byte stream, in any chunking, into blocks, and keep every byte.

    A block is returned when it is complete, a comment or an empty line between two blocks
    immediately. A block longer than `max_block_bytes` is returned in parts as they arrive, until
    its blank line, so that memory is bounded by the limit and one chunk.

    Args:
        max_block_bytes: the limit.
        at_start: whether the bytes are the first of the stream, which may have a byte order mark.

    Attributes:
        at_rest: whether the next byte begins a line between two blocks and the buffer is empty.
        ended_in_cr: whether all bytes are returned, and end in CR: a LF that follows completes it.
    """

    __slots__ = (
        "_at_start",
        "_buffer",
        "_in_long_block",
        "_is_endless",
        "_limit",
        "_searched",
        "at_rest",
        "ended_in_cr",
    )

    def __init__(self, max_block_bytes: int, *, at_start: bool = True) -> None:
        self._limit = max_block_bytes
        self._buffer = _NOTHING
        self._searched = 0  # no blank line begins before this offset; no byte is searched twice
        self.ended_in_cr = False
        self._in_long_block = False
        self._is_endless = False
        self._at_start = at_start
        self.at_rest = not at_start

    @property
    def between_blocks(self) -> bool:
        """Whether the bytes returned so far end between two blocks."""
        return not self._in_long_block

    def count_usual(self, chunk: bytes) -> int:
        """Return the number of events in `chunk` if all of them are usual, else 0.

        A usual event is an optional `event` line, one `data` line and a blank line, all with LF.
        A chunk of usual events needs no splitting and must not be fed.
        """
        if _CR in chunk or len(chunk) > self._limit:
            return 0
        # A search for a byte by its number is many times faster than for a string of one byte.
        line, _, rest = chunk.partition(b"\n")
        if rest == b"\n" and line[:5] == b"data:":
            count = 1
        elif chunk[-2:] == b"\n\n":
            count = _count_lines(chunk) or _count_named(chunk)
        else:
            return 0
        return count if count and (self.at_rest or self._begins(chunk)) else 0

    def feed(self, chunk: bytes) -> list[Piece]:
        """Add the next bytes and return the pieces that they complete."""
        if not chunk:
            return []
        if self._is_endless:
            return [(Kind.PART, self.flush() + chunk)]
        if (self.at_rest or self._begins(chunk)) and self._is_one_block(chunk):
            return [(Kind.BLOCK, chunk)]
        pieces: list[Piece] = []
        if self._buffer:
            self._buffer += chunk
        else:
            self._buffer = bytearray(chunk)
        if not self._at_start or self._emit_bom(pieces):
            if self.ended_in_cr:
                self._emit_missing_lf(pieces)
            self._emit_blocks(pieces)
        if not self._buffer:
            self._buffer = _NOTHING
        self.at_rest = not (
            self._buffer or self._at_start or self.ended_in_cr or self._in_long_block
        )
        return pieces

    def stop_splitting(self) -> None:
        """Return all later bytes as parts of one endless block: they are no event stream."""
        self._is_endless = self._in_long_block = True
        self.at_rest = self._at_start = False

    def flush(self) -> bytes:
        """Return the incomplete block at the end, which no client dispatches, and drop it."""
        tail = bytes(self._buffer)
        self._buffer = _NOTHING
        self._searched = 0
        return tail

    def _begins(self, chunk: bytes) -> bool:
        """Return whether `chunk` is the first of the stream and has no byte order mark."""
        if not self._at_start or self._buffer or chunk[0] == BOM[0]:
            return False
        self._at_start = False
        self.at_rest = True
        return True

    def _is_one_block(self, chunk: bytes) -> bool:
        """Return whether `chunk` is exactly one block, with LF or with CRLF line ends."""
        if chunk.startswith((b":", b"\n", b"\r")) or len(chunk) > self._limit:
            return False
        if chunk.endswith(b"\n\n"):
            return _CR not in chunk and chunk.find(b"\n\n") == len(chunk) - 2
        line_ends = chunk.count(b"\r\n")
        return (
            chunk.endswith(b"\r\n\r\n")
            and chunk.find(b"\r\n\r\n") == len(chunk) - 4
            and chunk.count(b"\r") == line_ends == chunk.count(b"\n")
        )

    def _emit_bom(self, pieces: list[Piece]) -> bool:
        """Emit a byte order mark; return False while the first bytes may still become one."""
        head = bytes(self._buffer[: len(BOM)])
        if head != BOM and BOM.startswith(head):
            return False
        self._at_start = False
        if head == BOM:
            self._emit(pieces, Kind.BOM, len(BOM))
        return True

    def _emit_missing_lf(self, pieces: list[Piece]) -> None:
        self.ended_in_cr = False
        if self._buffer.startswith(b"\n"):
            self._emit(pieces, Kind.LINE, 1)

    def _emit_blocks(self, pieces: list[Piece]) -> None:
        buffer = self._buffer
        while buffer:
            if not self._in_long_block and self._emit_line(pieces):
                continue
            found = _BLANK_LINE.search(buffer, self._searched)
            if found is not None:
                if not self._in_long_block and found.end() > self._limit:
                    self._in_long_block = True
                kind = Kind.LAST_PART if self._in_long_block else Kind.BLOCK
                self._in_long_block = False
                self._emit(pieces, kind, found.end())
                continue
            self._searched = len(buffer) - _trailing_eol_length(buffer)
            if self._in_long_block or len(buffer) > self._limit:
                self._in_long_block = True
                self._emit(pieces, Kind.PART, self._searched)
            return

    def _emit_line(self, pieces: list[Piece]) -> bool:
        """Emit an empty line or a comment at the start of a block, if it is complete."""
        first = self._buffer[0]
        if first in b"\r\n":
            found = EOL.match(self._buffer)
        elif first == ord(":"):
            found = EOL.search(self._buffer, self._searched)
        else:
            return False
        if found is None:
            return False
        end = found.end()
        if first == ord(":") and EOL.match(self._buffer, end):
            return False  # a block of its own: `: ping` and its blank line are one piece
        self._emit(pieces, Kind.LINE, end)
        return True

    def _emit(self, pieces: list[Piece], kind: Kind, length: int) -> None:
        if not length:
            return
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._searched = 0
        self.ended_in_cr = data.endswith(b"\r") and not self._buffer
        pieces.append((kind, data))


def _count_lines(chunk: bytes) -> int:
    # Each line ends in two LFs, and `data:` follows them except at the end.
    count, odd = divmod(chunk.count(b"\n"), 2)
    usual = not odd and chunk[:5] == b"data:" and chunk.count(b"\n\ndata:") == count - 1
    return count if usual else 0


def _count_named(chunk: bytes) -> int:
    return chunk.count(b"\n\n") if _USUAL.fullmatch(chunk) else 0


def _trailing_eol_length(buffer: bytes | bytearray) -> int:
    """Return the length of the line end at the end of `buffer`, 0 if there is none."""
    if buffer.endswith(b"\r\n"):
        return 2
    return 1 if buffer.endswith((b"\r", b"\n")) else 0


def has_data(block: bytes) -> bool:
    """Return whether a client dispatches an event for this complete `block`."""
    if block.startswith(b"data:") or block.find(b"\ndata:") >= 0:
        return True
    return _DATA_LINE.search(block) is not None


def has_id(block: bytes) -> bool:
    """Return whether this complete `block` has an `id` line, with any value."""
    # Most blocks have none, and a substring search is faster than the expression.
    if not block.startswith(b"id") and block.find(b"\nid") < 0 and block.find(b"\rid") < 0:
        return False
    return _ID_LINE.search(block) is not None


def event_id(block: bytes) -> bytes:
    """Return the last event id that this complete `block` sets, `b""` if it sets none."""
    ids = [value for value in _ID_VALUES.findall(block) if b"\0" not in value]
    return ids[-1] if ids else b""


def event_name(block: bytes) -> bytes:
    """Return the last event type in this complete `block`, `b""` if it names none."""
    names = _EVENT_LINE.findall(block)
    return names[-1] if names else b""


def event_data(block: bytes) -> bytes:
    """Return the data that a client dispatches for this complete `block`."""
    return b"\n".join(_DATA_VALUES.findall(block))


def _change_data(block: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return the `block` with its data changed, if it has exactly one `data` line."""
    lines = list(_DATA_VALUES.finditer(block))
    if len(lines) != 1:
        return block
    start, end = lines[0].span(1)
    data = block[start:end]
    changed = change(data)
    return block if changed is data else block[:start] + changed + block[end:]


def add_trace_id(block: bytes, trace_id: str) -> bytes:
    """Return the `block` with a `trace_id` added to its data, if that is a one-line JSON object."""

    def add(data: bytes) -> bytes:
        try:
            payload = json.loads(data)
        except (ValueError, RecursionError):
            return data
        if not isinstance(payload, dict) or "trace_id" in payload:
            return data
        before, _, after = data.partition(b"{")
        comma = b"," if payload else b""
        return before + b'{"trace_id":"%b"' % trace_id.encode() + comma + after

    return _change_data(block, add)


def add_line(block: bytes, line: bytes) -> bytes:
    """Return the `block` with `line` after its own lines, with the same line end."""
    if block.endswith(b"\n\n"):
        return block[:-1] + line + b"\n\n"
    lines = block[: -(_trailing_eol_length(block))]
    blank = block[len(lines) :]
    return lines + line + line_end(lines) + blank


def line_end(lines: bytes) -> bytes:
    """Return the line end (CRLF, LF or CR) at the end of `lines`, `b""` if there is none."""
    length = _trailing_eol_length(lines)
    return lines[-length:] if length else b""


def format_sse_event(
    data: str | None = None,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002 - the name of the field on the wire
    retry: int | None = None,
    comment: str | None = None,
) -> bytes:
    """Encode one block of an event stream in UTF-8, including its blank line.

    Args:
        data: the payload; each of its lines (LF, CR or CRLF) becomes a `data` line. Without it,
            a client applies the other fields and dispatches no event.
        event: the event's type; `None`, `""` and `"message"` write no line.
        id: the new last event id; `""` resets it.
        retry: the reconnection time in milliseconds.
        comment: text that clients ignore, in one or more lines.

    Raises:
        EventFormatError: a field has characters that would end its line and inject another one,
            or there is no field.
    """
    lines: list[bytes] = []
    if comment is not None:
        lines += [b": " + line for line in _encoded_lines("comment", comment)]
    if event and event != DEFAULT_EVENT:
        lines.append(b"event: " + _encoded("event", event, forbidden="\r\n"))
    if data is not None:
        lines += [b"data: " + line for line in _encoded_lines("data", data)]
    if id is not None:
        lines.append(b"id: " + _encoded("id", id, forbidden="\r\n\0"))
    if retry is not None:
        if (
            isinstance(retry, bool)
            or not isinstance(retry, int)
            or not 0 <= retry < 10**RETRY_DIGITS
        ):
            raise EventFormatError("retry", retry, "a whole number of milliseconds, 0 or more")
        lines.append(b"retry: %d" % retry)
    if not lines:
        raise EventFormatError("block", "", "at least one of data, event, id, retry, comment")
    return b"\n".join(lines) + b"\n\n"


def _encoded(field: str, value: str, *, forbidden: str = "") -> bytes:
    if not isinstance(value, str):
        raise _not_text(field, value)
    if any(character in value for character in forbidden):
        raise EventFormatError(field, value, f"text without any of {forbidden!a}")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise EventFormatError(field, value, "text that UTF-8 can encode") from exc


def _encoded_lines(field: str, text: str) -> list[bytes]:
    if not isinstance(text, str):
        raise _not_text(field, text)
    # Not str.splitlines, because U+2028 and similar characters do not end a line on the wire.
    return _encoded(field, text.replace("\r\n", "\n").replace("\r", "\n")).split(b"\n")


def _not_text(field: str, value: object) -> EventFormatError:
    remedy = "decode it" if isinstance(value, bytes) else "str(...), or json.dumps(...) for JSON"
    return EventFormatError(field, value, f"text: {remedy}")


def joined(parts: list[bytes]) -> bytes:
    """Return `parts` as one bytes object."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
