"""The wire format: bytes in, bytes out, in linear time, whatever the chunking.

WHATWG HTML 9.2.5 and 9.2.6 (https://html.spec.whatwg.org/#parsing-an-event-stream) to the
letter. Nothing here does I/O, keeps time, or knows why it is asked.

`Splitter` cuts a byte stream between events and keeps every byte; `format_sse_event` writes one
block; the others look into a whole block, or change it.
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
_NOTHING = bytearray()  # of all streams that keep nothing, which are most; nobody writes into it

# "end-of-line = ( cr lf / cr / lf )". The possessive `?+` never gives the LF of a CRLF back, so
# a CR at the end of the buffer ends its line now and a LF that comes later is known as its half.
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
    """What a `Piece` is, and so what may stand behind it."""

    BLOCK = 1
    """One whole block, up to and with its blank line."""
    LINE = 2
    """A comment or an empty line between two blocks, or the LF of a CRLF cut in two."""
    PART = 3
    """A part of a block over the limit: more of it follows, nothing else may."""
    LAST_PART = 4
    """The end of a block over the limit, with its blank line."""
    BOM = 5
    """The byte order mark, which counts only as the first bytes of a stream."""


Piece = tuple[Kind, bytes]
"""Some bytes of the stream. All pieces and the tail, joined, are the stream."""


class Splitter:
    """Cut a byte stream into blocks, with any chunking, and keep every byte.

    A block is passed on when it is whole, a comment or an empty line between two blocks at once.
    A block longer than `max_block_bytes` is passed on in parts as it comes, so that memory is
    bounded by the limit and one chunk; the latch opens again at its blank line.

    Attributes:
        at_rest: whether the next byte begins a line between two blocks, and none is kept here.
    """

    __slots__ = (
        "_at_start",
        "_buffer",
        "_in_long_block",
        "_lf_is_ours",
        "_limit",
        "_owed_lf",
        "_searched",
        "at_rest",
    )

    def __init__(self, max_block_bytes: int) -> None:
        self._limit = max_block_bytes
        self._buffer = _NOTHING
        self._searched = 0  # no blank line begins before this offset, so no byte is read twice
        self._owed_lf = False  # the last piece ended in CR: a LF that comes next is its half
        self._lf_is_ours = False  # ... and we have written that half already
        self._in_long_block = False
        self._at_start = True
        self.at_rest = False

    @property
    def between_blocks(self) -> bool:
        """Whether all that was passed on ends between two blocks."""
        return not self._in_long_block

    def count_usual(self, chunk: bytes) -> int:
        """Return how many events `chunk` is where all of them are usual, else 0.

        That is a `data` line, perhaps with an `event` line before it, and a blank one; all end in
        LF. Such a chunk passes as it is and need not be fed.
        """
        if _CR in chunk or len(chunk) > self._limit:
            return 0
        # To look for a byte by its number is many times faster than for a string of one.
        line, _, rest = chunk.partition(b"\n")
        if rest == b"\n":
            count = int(line[:5] == b"data:")
        elif chunk[-2:] == b"\n\n":
            count = _count_lines(chunk) or _count_named(chunk)
        else:
            return 0
        return count if count and (self.at_rest or self._begins(chunk)) else 0

    def feed(self, chunk: bytes) -> list[Piece]:
        """Take the next bytes and return the pieces that are whole with them."""
        if not chunk:
            return []
        if (self.at_rest or self._begins(chunk)) and self._is_one_block(chunk):
            return [(Kind.BLOCK, chunk)]
        pieces: list[Piece] = []
        if self._buffer:
            self._buffer += chunk
        else:
            self._buffer = bytearray(chunk)
        if not self._at_start or self._pass_bom(pieces):
            if self._owed_lf:
                self._settle_owed_lf(pieces)
            self._pass_blocks(pieces)
        if not self._buffer:
            self._buffer = _NOTHING
        self.at_rest = not (self._buffer or self._at_start or self._owed_lf or self._in_long_block)
        return pieces

    def flush(self) -> bytes:
        """Return the unterminated tail, which no client dispatches, and forget it."""
        tail = bytes(self._buffer)
        self._buffer = _NOTHING
        self._searched = 0
        return tail

    def complete_line_end(self) -> bytes:
        """Return the LF that completes a cut CRLF, or nothing; who writes in between writes it.

        The stream's own LF is then dropped when it comes. Where none comes a CR has become a
        CRLF, which parses the same.
        """
        if not self._owed_lf or self._lf_is_ours:
            return b""
        self._lf_is_ours = True
        return b"\n"

    def _begins(self, chunk: bytes) -> bool:
        """Tell whether `chunk` is the first of the stream, and no byte order mark."""
        if not self._at_start or self._buffer or chunk[0] == BOM[0]:
            return False
        self._at_start = False
        self.at_rest = True
        return True

    def _is_one_block(self, chunk: bytes) -> bool:
        """Tell whether `chunk` is just one block, with LF or with CRLF line ends."""
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

    def _pass_bom(self, pieces: list[Piece]) -> bool:
        """Pass a leading byte order mark on; return False while it may still become one."""
        head = bytes(self._buffer[: len(BOM)])
        if head != BOM and BOM.startswith(head):
            return False
        self._at_start = False
        if head == BOM:
            self._pass(pieces, Kind.BOM, len(BOM))
        return True

    def _settle_owed_lf(self, pieces: list[Piece]) -> None:
        ours, self._owed_lf, self._lf_is_ours = self._lf_is_ours, False, False
        if not self._buffer.startswith(b"\n"):
            return
        if ours:
            del self._buffer[:1]
        else:
            self._pass(pieces, Kind.LINE, 1)

    def _pass_blocks(self, pieces: list[Piece]) -> None:
        buffer = self._buffer
        while buffer:
            if not self._in_long_block and self._pass_line(pieces):
                continue
            found = _BLANK_LINE.search(buffer, self._searched)
            if found is not None:
                if not self._in_long_block and found.end() > self._limit:
                    self._in_long_block = True
                kind = Kind.LAST_PART if self._in_long_block else Kind.BLOCK
                self._in_long_block = False
                self._pass(pieces, kind, found.end())
                continue
            self._searched = len(buffer) - _trailing_eol_length(buffer)
            if self._in_long_block or len(buffer) > self._limit:
                self._in_long_block = True
                self._pass(pieces, Kind.PART, self._searched)
            return

    def _pass_line(self, pieces: list[Piece]) -> bool:
        """Pass an empty or a comment line at the start of a block on, if it is whole."""
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
            return False  # a comment of its own block: `: ping` and its blank line stay one piece
        self._pass(pieces, Kind.LINE, end)
        return True

    def _pass(self, pieces: list[Piece], kind: Kind, length: int) -> None:
        if not length:
            return
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._searched = 0
        self._owed_lf = data.endswith(b"\r") and not self._buffer
        pieces.append((kind, data))


def _count_lines(chunk: bytes) -> int:
    # Each LF has to be one of two behind a line, and `data:` what follows them but at the end.
    count, odd = divmod(chunk.count(b"\n"), 2)
    whole = not odd and chunk[:5] == b"data:" and chunk.count(b"\n\ndata:") == count - 1
    return count if whole else 0


def _count_named(chunk: bytes) -> int:
    return chunk.count(b"\n\n") if _USUAL.fullmatch(chunk) else 0


def _trailing_eol_length(buffer: bytes | bytearray) -> int:
    """Return the length of the line end that `buffer` ends with, 0 where it ends in a line."""
    if buffer.endswith(b"\r\n"):
        return 2
    return 1 if buffer.endswith((b"\r", b"\n")) else 0


def has_data(block: bytes) -> bool:
    """Tell whether a client dispatches an event for this whole `block`."""
    if block.startswith(b"data:") or block.find(b"\ndata:") >= 0:
        return True
    return _DATA_LINE.search(block) is not None


def has_id(block: bytes) -> bool:
    """Tell whether this whole `block` has an `id` line, of whatever value."""
    # The substring look-up is there for its speed: most blocks have none.
    if not block.startswith(b"id") and block.find(b"\nid") < 0 and block.find(b"\rid") < 0:
        return False
    return _ID_LINE.search(block) is not None


def event_id(block: bytes) -> bytes:
    """Return the last event id that this whole `block` sets, `b""` where it sets none."""
    ids = [value for value in _ID_VALUES.findall(block) if b"\0" not in value]
    return ids[-1] if ids else b""


def event_name(block: bytes) -> bytes:
    """Return the event type that this whole `block` names last, `b""` where it names none."""
    names = _EVENT_LINE.findall(block)
    return names[-1] if names else b""


def event_data(block: bytes) -> bytes:
    """Return the data that a client dispatches for this whole `block`."""
    return b"\n".join(_DATA_VALUES.findall(block))


def _change_data(block: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return the whole `block` with its data changed, where it has just one line of it."""
    lines = list(_DATA_VALUES.finditer(block))
    if len(lines) != 1:
        return block
    start, end = lines[0].span(1)
    data = block[start:end]
    changed = change(data)
    return block if changed is data else block[:start] + changed + block[end:]


def add_trace_id(block: bytes, trace_id: str) -> bytes:
    """Return the whole `block` with a `trace_id` in its data, if that is a one-line JSON object."""

    def add(data: bytes) -> bytes:
        try:
            payload = json.loads(data)
        except ValueError:
            return data
        if not isinstance(payload, dict) or "trace_id" in payload:
            return data
        before, _, after = data.partition(b"{")
        comma = b"," if payload else b""
        return before + b'{"trace_id":"%b"' % trace_id.encode() + comma + after

    return _change_data(block, add)


def add_line(block: bytes, line: bytes) -> bytes:
    """Return the whole `block` with `line` behind its own lines, ended as those are."""
    if block.endswith(b"\n\n"):
        return block[:-1] + line + b"\n\n"
    lines = block[: -(_trailing_eol_length(block))]
    blank = block[len(lines) :]
    return lines + line + line_end(lines) + blank


def line_end(lines: bytes) -> bytes:
    """Return the line end (CRLF, LF or CR) that `lines` close with, `b""` where they do not."""
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
    """Encode one block of an event stream, as UTF-8 and with its blank line.

    Args:
        data: the payload; each of its lines (LF, CR or CRLF) becomes a `data` line. Without it
            a client dispatches nothing, but obeys the other fields.
        event: the event's type; `None`, `""` and `"message"` write no line.
        id: the last event id from here on; `""` resets it.
        retry: the reconnection time in milliseconds.
        comment: text that clients ignore, in one or more lines.

    Raises:
        EventFormatError: a field holds what would end its line or inject another one, or there
            is no field at all.
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
    if any(character in value for character in forbidden):
        raise EventFormatError(field, value, f"text without any of {forbidden!a}")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise EventFormatError(field, value, "text that UTF-8 can encode") from exc


def _encoded_lines(field: str, text: str) -> list[bytes]:
    # Not str.splitlines: U+2028 and its like end no line on this wire.
    return _encoded(field, text.replace("\r\n", "\n").replace("\r", "\n")).split(b"\n")
