"""The wire format, case by case, as WHATWG HTML 9.2.5 and 9.2.6 and the splitter's law have it.

Each case runs whole, byte by byte, cut in two at every place, and with a trailing rest.
"""

import time
from collections.abc import Callable, Iterable

import pytest

from sse_middleware.errors import EventFormatError, SSEError
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import (
    BOM,
    Kind,
    Piece,
    Splitter,
    add_line,
    event_name,
    format_sse_event,
    has_data,
    has_id,
    line_end,
)

LIMIT = 1 << 20
NEXT_LINE = "\x85"
LINE_SEPARATOR = "\u2028"
ARABIC_FIVE = "\u0665"


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def parse(chunks: Iterable[bytes]) -> tuple[list[Event], str, int | None]:
    parser = EventParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events, parser.last_event_id, parser.retry


def split(chunks: Iterable[bytes], limit: int = LIMIT) -> tuple[list[Piece], bytes]:
    splitter = Splitter(limit)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    return pieces, splitter.flush()


def tr(
    stream: bytes, events: list[Event], *, last_event_id: str = "", retry: int | None = None
) -> None:
    """Parse `stream` in every way that must make no difference."""
    expected = (events, last_event_id, retry)
    assert parse([stream]) == expected
    assert parse(bytewise(stream)) == expected
    for at in range(len(stream) + 1):
        assert parse([stream[:at], b"", stream[at:]]) == expected, f"cut at {at}"
    rest = b"data: unfinished"
    assert parse([stream + rest]) == expected
    assert parse(bytewise(stream + rest)) == expected


def tr_split(
    stream: bytes, whole: list[Piece], cut: list[Piece] | None = None, *, limit: int = LIMIT
) -> None:
    """Split `stream` whole, byte by byte (which gives `cut`), and with a trailing rest."""
    if cut is None:
        cut = whole
    rest = b"data: unfinished"[:limit]
    assert split([stream], limit) == (whole, b"")
    assert split(bytewise(stream), limit) == (cut, b"")
    assert split([stream + rest], limit) == (whole, rest)
    assert split(bytewise(stream + rest), limit) == (cut, rest)
    # A BOM counts only first; one chunk of a comment and a block may stay one piece.
    if not stream.startswith((BOM, b":")):
        first = b"id: 0\n\n"
        assert split([first, stream], limit) == ([block(first), *whole], b"")
        assert split([first, stream + rest], limit) == ([block(first), *whole], rest)
    for at in range(len(stream) + 1):
        pieces, tail = split([stream[:at], b"", stream[at:]], limit)
        assert b"".join(data for _, data in pieces) + tail == stream, f"cut at {at}"


def block(data: bytes) -> Piece:
    return (Kind.BLOCK, data)


def line(data: bytes) -> Piece:
    return (Kind.LINE, data)


def part(data: bytes) -> Piece:
    return (Kind.PART, data)


def last_part(data: bytes) -> Piece:
    return (Kind.LAST_PART, data)


# --- EventParser: the examples of the specification -------------------------------------------


@pytest.mark.parametrize(
    ("stream", "events", "last_event_id"),
    [
        pytest.param(
            b"data: This is the first message.\n\n"
            b"data: This is the second message, it\ndata: has two lines.\n\n"
            b"data: This is the third message.\n\n",
            [
                Event("This is the first message."),
                Event("This is the second message, it\nhas two lines."),
                Event("This is the third message."),
            ],
            "",
            id="introduction",
        ),
        pytest.param(
            b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n"
            b"event: add\ndata: 113411\n\n",
            [Event("73857293", "add"), Event("2153", "remove"), Event("113411", "add")],
            "",
            id="event types",
        ),
        pytest.param(
            b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("YHOO\n+2\n10")], "", id="stocks"
        ),
        pytest.param(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
            b"data:  third event\n\n",
            [Event("first event", id="1"), Event("second event", id=""), Event(" third event")],
            "",
            id="four blocks",
        ),
        pytest.param(
            b"data\n\ndata\ndata\n\n", [Event(""), Event("\n")], "", id="two events of data alone"
        ),
        pytest.param(
            b"data:test\n\ndata: test\n\n", [Event("test"), Event("test")], "", id="identical"
        ),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_the_examples_of_the_specification_are_read_as_it_says(
    stream: bytes, events: list[Event], last_event_id: str, end: bytes
) -> None:
    tr(stream.replace(b"\n", end), events, last_event_id=last_event_id)


@pytest.mark.parametrize(
    ("stream", "events", "last_event_id"),
    [
        pytest.param(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
            b"data:  third event\n",
            [Event("first event", id="1"), Event("second event", id="")],
            "",
            id="third event without its blank line",
        ),
        pytest.param(
            b"data\n\ndata\ndata\n\ndata:", [Event(""), Event("\n")], "", id="data and no end"
        ),
        pytest.param(
            b"id: 1\ndata: a\n\nid: 2\ndata: b\n", [Event("a", id="1")], "1", id="id of the tail"
        ),
        pytest.param(b"data: a", [], "", id="no line end at all"),
        pytest.param(b"", [], "", id="nothing"),
    ],
)
def test_a_block_without_its_blank_line_is_not_dispatched(
    stream: bytes, events: list[Event], last_event_id: str
) -> None:
    assert parse([stream]) == (events, last_event_id, None)
    assert parse(bytewise(stream)) == (events, last_event_id, None)


# --- EventParser: lines -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: a\n\ndata: b\n\n", id="LF"),
        pytest.param(b"data: a\r\rdata: b\r\r", id="CR"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", id="CRLF"),
        pytest.param(b"data: a\n\r\ndata: b\r\n\n", id="LF CRLF, CRLF LF"),
        pytest.param(b"data: a\n\rdata: b\r\n\r", id="LF CR, CRLF CR"),
        pytest.param(b"data: a\r\r\ndata: b\r\r\n\n", id="CR CRLF"),
        pytest.param(b"\n\r\n\rdata: a\r\n\r\n\n\n\rdata: b\n\n\r\n", id="empty lines around"),
    ],
)
def test_every_line_end_ends_a_line_and_every_mixture_a_block(stream: bytes) -> None:
    tr(stream, [Event("a"), Event("b")])


@pytest.mark.parametrize(
    ("chunks", "events"),
    [
        pytest.param([b"data: a\r", b"\ndata: b\r\n\r\n"], [Event("a\nb")], id="in a block"),
        pytest.param(
            [b"data: a\r\n\r", b"\ndata: b\n\n"], [Event("a"), Event("b")], id="between blocks"
        ),
        pytest.param([b"data: a\r\n\r", b"\n"], [Event("a")], id="at the very end"),
        pytest.param([b"data: a\r", b"\n", b"\r", b"\n"], [Event("a")], id="each half alone"),
        pytest.param([b"data: a\r", b"", b"\n\r\n"], [Event("a")], id="an empty chunk between"),
        pytest.param([b"data: a\r", b"\n", b"\n"], [Event("a")], id="one LF is swallowed, not two"),
        pytest.param([b"data: a\r", b"data: b\r\r"], [Event("a\nb")], id="no LF comes"),
    ],
)
def test_a_crlf_cut_in_two_is_one_line_end(chunks: list[bytes], events: list[Event]) -> None:
    assert parse(chunks)[0] == events


def test_a_block_is_dispatched_with_the_cr_of_its_blank_line() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\r\n\r") == [Event("a")]
    assert parser.feed(b"\n") == []
    assert parser.feed(b"\n") == []


@pytest.mark.parametrize(
    "char",
    [LINE_SEPARATOR, "\u2029", NEXT_LINE, "\v", "\f", "\x1c", "\0"],
    ids=["U+2028", "U+2029", "U+0085", "VT", "FF", "FS", "NUL"],
)
def test_only_cr_and_lf_end_a_line(char: str) -> None:
    text = f"a{char}data: b{char}{char}c"
    tr(f"event: {text}\ndata: {text}\n\n".encode(), [Event(text, text)])


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(BOM + b"data: a\n\n", [Event("a")], id="before a field"),
        pytest.param(BOM + b": c\n\ndata: a\n\n", [Event("a")], id="before a comment"),
        pytest.param(BOM + b"\ndata: a\n\n", [Event("a")], id="before an empty line"),
        pytest.param(BOM + BOM + b"data: a\n\ndata: b\n\n", [Event("b")], id="doubled"),
        pytest.param(
            b"data: a\n\n" + BOM + b"data: b\n\ndata: c\n\n", [Event("a"), Event("c")], id="later"
        ),
        pytest.param(b"\n" + BOM + b"data: a\n\n", [], id="behind an empty line"),
        pytest.param(b"data: " + BOM + b"\n\n", [Event("\ufeff")], id="in a value"),
        pytest.param(BOM[:2] + b"data: a\n\ndata: b\n\n", [Event("b")], id="two thirds of one"),
        pytest.param(BOM[:1] + b"\ndata: b\n\n", [Event("b")], id="a third of one"),
        pytest.param(BOM[1:] + b"data: a\n\ndata: b\n\n", [Event("b")], id="its end only"),
    ],
)
def test_one_byte_order_mark_counts_and_only_at_the_start(
    stream: bytes, events: list[Event]
) -> None:
    tr(stream, events)


# --- EventParser: fields ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\n", [Event("a")], id="one space goes"),
        pytest.param(b"data:a\n\n", [Event("a")], id="no space is needed"),
        pytest.param(b"data:  a \n\n", [Event(" a ")], id="only one space goes"),
        pytest.param(b"data:\ta\n\n", [Event("\ta")], id="a tab stays"),
        pytest.param(b"data: a: b:c\n\n", [Event("a: b:c")], id="only the first colon counts"),
        pytest.param(b"data::\n\n", [Event(":")], id="a colon as the value"),
        pytest.param(b"data\n\n", [Event("")], id="data alone"),
        pytest.param(b"data:\n\n", [Event("")], id="data with a colon"),
        pytest.param(b"data: \n\n", [Event("")], id="data with a space"),
        pytest.param(b"data\ndata: a\ndata\n\n", [Event("\na\n")], id="empty lines of data"),
        pytest.param(
            b"data: a\n: c\nretry\ndata: b\n\n", [Event("a\nb")], id="other lines in between"
        ),
        pytest.param(b":\n:data: a\n: data: b\n\n", [], id="comments"),
        pytest.param(b"data: a\n:c\n\n", [Event("a")], id="a comment in a block"),
        pytest.param(b"event: x\n\ndata: a\n\n", [Event("a")], id="event without data is gone"),
        pytest.param(b"event\ndata: a\n\n", [Event("a")], id="event alone is message"),
        pytest.param(b"event:\ndata: a\n\n", [Event("a")], id="an empty event is message"),
        pytest.param(b"event: x\nevent: y\ndata: a\n\n", [Event("a", "y")], id="the last event"),
        pytest.param(b"event: x\nevent\ndata: a\n\n", [Event("a")], id="event alone takes it back"),
        pytest.param(b"event:  x\ndata: a\n\n", [Event("a", " x")], id="event behind two spaces"),
        pytest.param(b"data: a\nevent: x\n\n", [Event("a", "x")], id="event behind data"),
        pytest.param(b"Data: a\nDATA: a\nEvent: x\n\n", [], id="field names have a case"),
        pytest.param(b" data: a\ndata : a\ndat: a\ndatab: a\n\n", [], id="near misses"),
        pytest.param(b"foo: a\nfoo\ndata: a\n\n", [Event("a")], id="unknown fields"),
        pytest.param(b"\0\n\xff: a\ndata: a\n\n", [Event("a")], id="unknown fields of garbage"),
    ],
)
def test_fields_are_read_as_the_specification_says(stream: bytes, events: list[Event]) -> None:
    tr(stream, events)


@pytest.mark.parametrize(
    ("stream", "events", "last_event_id"),
    [
        pytest.param(b"id: 1\ndata: a\n\n", [Event("a", id="1")], "1", id="set"),
        pytest.param(b"id: 1\n\ndata: a\n\n", [Event("a")], "1", id="set by a block without data"),
        pytest.param(
            b"id: 1\ndata: a\n\ndata: b\n\n", [Event("a", id="1"), Event("b")], "1", id="kept"
        ),
        pytest.param(b"id: 1\ndata: a\n\nid\n\n", [Event("a", id="1")], "", id="reset by id alone"),
        pytest.param(
            b"id: 1\ndata: a\n\nid:\ndata: b\n\n",
            [Event("a", id="1"), Event("b", id="")],
            "",
            id="reset by an empty id",
        ),
        pytest.param(b"id: 1\nid: 2\ndata: a\n\n", [Event("a", id="2")], "2", id="the last counts"),
        pytest.param(b"id: 1\0\ndata: a\n\n", [Event("a")], "", id="NUL is ignored"),
        pytest.param(
            b"id: 1\n\nid: \0\ndata: a\n\n", [Event("a")], "1", id="NUL leaves the one before"
        ),
        pytest.param(
            b"id: 1\nid: 2\0\ndata: a\n\n", [Event("a", id="1")], "1", id="NUL leaves the block's"
        ),
        pytest.param(b"id:  1\n\n", [], " 1", id="only one space goes"),
        pytest.param("id: \u00e9\n\n".encode(), [], "\u00e9", id="not ASCII"),
        pytest.param(b"ID: 1\nid : 1\nid2: 1\n\n", [], "", id="near misses"),
    ],
)
def test_the_last_event_id_moves_as_the_specification_says(
    stream: bytes, events: list[Event], last_event_id: str
) -> None:
    tr(stream, events, last_event_id=last_event_id)


def test_the_last_event_id_moves_only_with_the_blank_line() -> None:
    parser = EventParser()
    parser.feed(b"id: 1\ndata: a\n")
    assert parser.last_event_id == ""
    parser.feed(b"\n")
    assert parser.last_event_id == "1"


@pytest.mark.parametrize(
    ("value", "retry"),
    [
        pytest.param("2000", 2000, id="digits"),
        pytest.param("0", 0, id="zero"),
        pytest.param("007", 7, id="leading zeros"),
        pytest.param("9" * 18, 10**18 - 1, id="18 digits"),
        pytest.param("9" * 19, None, id="19 digits"),
        pytest.param("9" * 5000, None, id="5000 digits"),
        pytest.param("", None, id="empty"),
        pytest.param("-1", None, id="negative"),
        pytest.param("+1", None, id="plus"),
        pytest.param("1.5", None, id="a fraction"),
        pytest.param("1e3", None, id="an exponent"),
        pytest.param("1_000", None, id="an underscore"),
        pytest.param(" 1", None, id="a second space"),
        pytest.param("1 ", None, id="a trailing space"),
        pytest.param(ARABIC_FIVE, None, id="a unicode digit"),
        pytest.param("\u00b2", None, id="a superscript digit"),
    ],
)
def test_retry_is_obeyed_only_if_it_is_ascii_digits(value: str, retry: int | None) -> None:
    stream = f"retry: {value}\ndata: a\n\n".encode()
    expected = ([Event("a", retry=retry)], "", retry)
    assert parse([stream]) == expected
    assert parse(bytewise(stream)) == expected


def test_retry_holds_at_once_and_until_the_next_valid_one() -> None:
    parser = EventParser()
    parser.feed(b"retry: 10\n")
    assert parser.retry == 10
    assert parser.feed(b"\nretry: no\ndata: a\n\n") == [Event("a")]
    assert parser.retry == 10
    assert parser.feed(b"retry\nretry: 20\ndata: b\n\n") == [Event("b", retry=20)]
    assert parser.retry == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(b"\xff", "\ufffd", id="a byte of no sequence"),
        pytest.param(b"\xe2\x82", "\ufffd", id="cut by the line end"),
        pytest.param(b"\xe2\x82a", "\ufffda", id="cut by a letter"),
        pytest.param(b"\xed\xa0\x80", "\ufffd" * 3, id="a surrogate"),
        pytest.param(b"\xc0\x80", "\ufffd" * 2, id="overlong"),
        pytest.param(b"\xf0\x9f\x98\x80", "\U0001f600", id="valid, four bytes"),
    ],
)
def test_invalid_utf_8_becomes_the_replacement_character(value: bytes, text: str) -> None:
    stream = b"event: " + value + b"\nid: " + value + b"\ndata: " + value + b"\n\n"
    tr(stream, [Event(text, text, text)], last_event_id=text)


def test_empty_chunks_change_nothing() -> None:
    chunks = [b""]
    for byte in bytewise(BOM + b"id: 1\r\ndata: a\r\n\r\n"):
        chunks += [byte, b"", b""]
    assert parse(chunks) == ([Event("a", id="1")], "1", None)


# --- Splitter: pieces -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "whole", "cut"),
    [
        pytest.param(b"", [], None, id="nothing"),
        pytest.param(b"data: a\n\n", [block(b"data: a\n\n")], None, id="LF"),
        pytest.param(b"data: a\r\r", [block(b"data: a\r\r")], None, id="CR"),
        pytest.param(
            b"data: a\r\n\r\n",
            [block(b"data: a\r\n\r\n")],
            [block(b"data: a\r\n\r"), line(b"\n")],
            id="CRLF",
        ),
        pytest.param(b"data: a\r\n\n", [block(b"data: a\r\n\n")], None, id="CRLF LF"),
        pytest.param(b"data: a\n\r", [block(b"data: a\n\r")], None, id="LF CR"),
        pytest.param(
            b"data: a\r\n\r\ndata: b\r\n\r\n",
            [block(b"data: a\r\n\r\n"), block(b"data: b\r\n\r\n")],
            [
                block(b"data: a\r\n\r"),
                line(b"\n"),
                block(b"data: b\r\n\r"),
                line(b"\n"),
            ],
            id="two CRLF blocks",
        ),
        pytest.param(
            b"id: 1\ndata: a\n\nevent: x\ndata: b\ndata: c\n\nretry: 1\n\n",
            [
                block(b"id: 1\ndata: a\n\n"),
                block(b"event: x\ndata: b\ndata: c\n\n"),
                block(b"retry: 1\n\n"),
            ],
            None,
            id="several in one chunk",
        ),
        pytest.param(
            b"data: a\n: c\ndata: b\n\n",
            [block(b"data: a\n: c\ndata: b\n\n")],
            None,
            id="a comment in a block",
        ),
        pytest.param(
            b"\n\r\n\rdata: a\n\n",
            [line(b"\n"), line(b"\r\n"), line(b"\r"), block(b"data: a\n\n")],
            [line(b"\n"), line(b"\r"), line(b"\n"), line(b"\r"), block(b"data: a\n\n")],
            id="empty lines",
        ),
        pytest.param(
            b": c\n:\ndata: a\n\n",
            [line(b": c\n"), line(b":\n"), block(b"data: a\n\n")],
            None,
            id="comment lines",
        ),
        pytest.param(
            b": c\n\ndata: a\n\n",
            [block(b": c\n\n"), block(b"data: a\n\n")],
            [line(b": c\n"), line(b"\n"), block(b"data: a\n\n")],
            id="a comment of its own block",
        ),
        pytest.param(
            b": c\r\n\r\n",
            [block(b": c\r\n\r\n")],
            [line(b": c\r"), line(b"\n"), line(b"\r"), line(b"\n")],
            id="a comment of its own block, CRLF",
        ),
        pytest.param(
            BOM + b"data: a\n\n", [(Kind.BOM, BOM), block(b"data: a\n\n")], None, id="BOM"
        ),
        pytest.param(BOM, [(Kind.BOM, BOM)], None, id="BOM alone"),
        pytest.param(
            BOM + BOM + b"data: a\n\n",
            [(Kind.BOM, BOM), block(BOM + b"data: a\n\n")],
            None,
            id="BOM doubled",
        ),
        pytest.param(
            BOM + b": c\n", [(Kind.BOM, BOM), line(b": c\n")], None, id="BOM and a comment"
        ),
        pytest.param(
            b"\n" + BOM + b"a\n\n", [line(b"\n"), block(BOM + b"a\n\n")], None, id="BOM later"
        ),
        pytest.param(BOM[:2] + b"\n\n", [block(BOM[:2] + b"\n\n")], None, id="no whole BOM"),
        pytest.param(
            "data: a\u2028\u2028\x85\x85b\v\v\n\n".encode(),
            [block("data: a\u2028\u2028\x85\x85b\v\v\n\n".encode())],
            None,
            id="no line ends",
        ),
        pytest.param(
            b"data: a\r\rdata: b\r\n\r\n: c\rdata: d\n\n",
            [
                block(b"data: a\r\r"),
                block(b"data: b\r\n\r\n"),
                line(b": c\r"),
                block(b"data: d\n\n"),
            ],
            [
                block(b"data: a\r\r"),
                block(b"data: b\r\n\r"),
                line(b"\n"),
                line(b": c\r"),
                block(b"data: d\n\n"),
            ],
            id="mixed line ends",
        ),
        pytest.param(
            b"\ndata: a\n\n", [line(b"\n"), block(b"data: a\n\n")], None, id="an empty line first"
        ),
        pytest.param(b"\xff\0\xfe\n\n", [block(b"\xff\0\xfe\n\n")], None, id="garbage"),
    ],
)
def test_a_stream_is_cut_between_blocks_and_keeps_every_byte(
    stream: bytes, whole: list[Piece], cut: list[Piece] | None
) -> None:
    tr_split(stream, whole, cut)


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b": ping\n", id="a comment"),
        pytest.param(b":\r", id="an empty comment ended by CR"),
        pytest.param(b"\n", id="an empty line"),
        pytest.param(b"\r\n", id="an empty line, CRLF"),
        pytest.param(b"data: a\n\n", id="a block"),
        pytest.param(b"data: a\r\n\r", id="a block, all but the last LF"),
        pytest.param(b"\n\n\n", id="three empty lines"),
    ],
)
@pytest.mark.parametrize("first", [b"", b"data: 0\n\n", b"data: 0\r\r"], ids=["start", "LF", "CR"])
def test_what_is_whole_passes_at_once(first: bytes, chunk: bytes) -> None:
    splitter = Splitter(LIMIT)
    splitter.feed(first)
    pieces = splitter.feed(chunk)
    assert b"".join(data for _, data in pieces) == chunk
    assert splitter.between_blocks
    assert splitter.flush() == b""


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: a", id="in a line"),
        pytest.param(b"data: a\n", id="behind a line"),
        pytest.param(b"data: a\r", id="behind CR"),
        pytest.param(b"data: a\r\n", id="behind CRLF"),
        pytest.param(b": comment", id="in a comment"),
        pytest.param(b"data: a\n: comment\n", id="behind a comment in a block"),
        pytest.param(BOM[:1], id="a third of a BOM"),
        pytest.param(BOM[:2], id="two thirds of a BOM"),
    ],
)
def test_what_is_not_whole_is_held_and_flushed_once(stream: bytes) -> None:
    for chunks in ([stream], bytewise(stream)):
        splitter = Splitter(LIMIT)
        assert [splitter.feed(chunk) for chunk in chunks] == [[]] * len(chunks)
        assert splitter.between_blocks
        assert splitter.flush() == stream
        assert splitter.flush() == b""


def test_empty_chunks_bring_no_pieces() -> None:
    splitter = Splitter(LIMIT)
    assert splitter.feed(b"") == []
    assert splitter.feed(b"data: a\r\n\r") == [block(b"data: a\r\n\r")]
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\n") == [line(b"\n")]
    assert splitter.feed(b"") == []


# --- Splitter: the limit ----------------------------------------------------------------------

AT_LIMIT = b"data: 01234567\n\n"  # 16 bytes
OVER_LIMIT = b"data: 012345678\n\n"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_a_block_of_just_the_limit_is_whole_and_one_byte_more_is_not(end: bytes) -> None:
    exact = b"data: 0123".ljust(16 - 2 * len(end), b".") + end * 2
    longer = b"." + exact
    assert split([exact], 16) == ([block(exact)], b"")
    assert split([exact * 3], 16) == ([block(exact)] * 3, b"")
    assert split([longer + exact], 16) == ([last_part(longer), block(exact)], b"")
    assert split([b"\n", exact, longer, exact], 16) == (
        [line(b"\n"), block(exact), last_part(longer), block(exact)],
        b"",
    )


def test_the_limit_holds_byte_by_byte_too() -> None:
    assert split(bytewise(AT_LIMIT), 16) == ([block(AT_LIMIT)], b"")
    assert split(bytewise(OVER_LIMIT), 16) == ([last_part(OVER_LIMIT)], b"")
    assert split(bytewise(b"." + OVER_LIMIT), 16) == (
        [part(b".data: 012345678"), last_part(b"\n\n")],
        b"",
    )


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b"data: 0123456789abcdef", b"ghi\n\n"], id="the end in one chunk"),
        pytest.param([b"data: 0123456789abcdef\n", b"data: b\n\n"], id="a line and the end"),
        pytest.param([b"data: 0123456789abcdef\n", b"\n"], id="the blank line alone"),
        pytest.param([b"data: 0123456789abcdef\r", b"\n\r", b"\n"], id="a cut CRLF"),
        pytest.param([b"data: 0123456789abcdef", b"\r\n", b"\r\n"], id="CRLF by CRLF"),
        pytest.param([b"data: 0123456789abcdef", b"g", b"h", b"i\r\r"], id="the end by CR"),
        pytest.param([b"data: 0123456789abcdef\ndata: b", b"\n", b"\n"], id="two lines"),
        pytest.param([b": 0123456789abcdefghi", b"\n\n"], id="a long comment"),
        pytest.param([b": 0123456789abcdefghi", b"\ndata: a\n\n"], id="a long comment in front"),
        pytest.param(bytewise(b"data: 0123456789abcdef\ndata: b\n\n"), id="byte by byte"),
    ],
)
def test_a_block_over_the_limit_passes_in_parts_until_its_blank_line(chunks: list[bytes]) -> None:
    splitter = Splitter(16)
    pieces: list[Piece] = []
    for chunk in chunks:
        pieces += splitter.feed(chunk)
        assert splitter.between_blocks == (not pieces or pieces[-1][0] is not Kind.PART)
    kinds = [piece[0] for piece in pieces if piece != line(b"\n")]
    assert kinds == [Kind.PART] * (len(kinds) - 1) + [Kind.LAST_PART]
    assert len(kinds) > 1
    assert b"".join(data for _, data in pieces) == b"".join(chunks)

    assert splitter.between_blocks
    assert splitter.feed(b"data: x\n\n") == [block(b"data: x\n\n")]
    assert splitter.feed(b"data: y\r\r") == [block(b"data: y\r\r")]
    assert splitter.flush() == b""


def test_a_part_never_takes_the_line_end_that_may_begin_the_blank_line() -> None:
    splitter = Splitter(16)
    assert splitter.feed(b"data: 0123456789abcdef\r") == [part(b"data: 0123456789abcdef")]
    assert splitter.feed(b"\n") == []
    assert splitter.feed(b"data: b") == [part(b"\r\ndata: b")]
    assert splitter.feed(b"\r") == []
    assert splitter.flush() == b"\r"


def test_a_long_comment_that_comes_whole_is_a_line() -> None:
    comment = b": " + b"c" * 100 + b"\n"
    assert split([comment + b"data: a\n\n"], 16) == ([line(comment), block(b"data: a\n\n")], b"")


@pytest.mark.parametrize("start", [b"data: ", b": ", b"\nid: "], ids=["data", "comment", "id"])
@pytest.mark.parametrize("chunk", [b"x", b"x" * 10, b"x\n", b"data: x\r\n"], ids=ascii)
def test_memory_is_bounded_by_the_limit_and_one_chunk(start: bytes, chunk: bytes) -> None:
    splitter = Splitter(64)
    held = len(start) - sum(len(data) for _, data in splitter.feed(start))
    for _ in range(1000):
        held += len(chunk) - sum(len(data) for _, data in splitter.feed(chunk))
        assert held <= 64 + len(chunk)
    assert len(splitter.flush()) == held


# --- Splitter: the LF that is owed ------------------------------------------------------------


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
@pytest.mark.parametrize("comes", [True, False], ids=["LF comes", "no LF comes"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with the next block"])
@pytest.mark.parametrize(
    "first",
    [b"data: a\r\n\r", b"data: a\r\r", b"id: 1\rdata: a\n\r", b": c\r", b"\r"],
    ids=["CRLF", "CR", "LF CR", "comment", "empty line"],
)
@pytest.mark.parametrize(
    "following", [b"data: b\r\n\r\n", b"data: b\n\n"], ids=["then CRLF", "then LF"]
)
def test_a_cut_crlf_is_one_line_end_whoever_writes_its_lf(
    first: bytes, following: bytes, *, taken: bool, comes: bool, alone: bool
) -> None:
    chunks = [b"\n"] * comes + [following] if alone else [b"\n" * comes + following]
    splitter = Splitter(LIMIT)

    out = b"".join(data for _, data in splitter.feed(first))
    assert out == first
    if taken:
        assert splitter.take_owed_lf() == b"\n"
        assert splitter.take_owed_lf() == b""
        out += b"\n"
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]

    own_lf = [line(b"\n")] if comes and not taken else []
    assert pieces == [*own_lf, block(following)]
    assert splitter.take_owed_lf() == b""
    out += b"".join(data for _, data in pieces)
    assert parse([out]) == parse([first, *chunks])


def test_a_control_block_between_the_halves_of_a_crlf_stays_apart() -> None:
    splitter = Splitter(LIMIT)
    out = b"".join(data for _, data in splitter.feed(b"data: a\r\n\r"))
    out += splitter.take_owed_lf() + b": control\n\n"
    out += b"".join(data for _, data in splitter.feed(b"\n\ndata: b\r\n\r\n"))
    assert out == b"data: a\r\n\r\n: control\n\n\ndata: b\r\n\r\n"


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"data: a\n\n", id="LF"),
        pytest.param(b"data: a\r\n\r\n", id="CRLF"),
        pytest.param(b"data: a\r", id="a CR that is held"),
        pytest.param(b"data: a\r\rdata: b", id="a line that is held behind CR"),
        pytest.param(b": c", id="a comment that is held"),
        pytest.param(BOM, id="BOM"),
    ],
)
def test_no_lf_is_owed_where_no_cr_was_passed_on_last(chunk: bytes) -> None:
    splitter = Splitter(LIMIT)
    splitter.feed(chunk)
    assert splitter.take_owed_lf() == b""


def test_only_one_lf_is_dropped_for_one_taken() -> None:
    splitter = Splitter(LIMIT)
    splitter.feed(b"\r")
    assert splitter.take_owed_lf() == b"\n"
    assert splitter.feed(b"\n\n") == [line(b"\n")]


def test_an_empty_chunk_does_not_settle_the_owed_lf() -> None:
    splitter = Splitter(LIMIT)
    splitter.feed(b"\r")
    assert splitter.take_owed_lf() == b"\n"
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\n") == []


# --- the helpers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param("data: a", True, id="a value"),
        pytest.param("data", True, id="alone"),
        pytest.param("data:", True, id="a colon"),
        pytest.param("id: 1|data", True, id="behind an id"),
        pytest.param("data|id: 1", True, id="in front of an id"),
        pytest.param("id: data", False, id="as a value"),
        pytest.param(":data: a", False, id="in a comment"),
        pytest.param(" data: a", False, id="behind a space"),
        pytest.param("data : a", False, id="in front of a space"),
        pytest.param("datab: a|database", False, id="a longer name"),
        pytest.param("Data: a", False, id="in upper case"),
        pytest.param("event: x|id: 1|retry: 1", False, id="other fields"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
def test_has_data_tells_whether_a_client_dispatches_the_block(
    fields: str, end: str, *, expected: bool
) -> None:
    whole = (fields.replace("|", end) + end * 2).encode()
    assert has_data(whole) is expected
    assert bool(EventParser().feed(whole)) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param("id: a", True, id="a value"),
        pytest.param("id", True, id="alone"),
        pytest.param("id:", True, id="a colon"),
        pytest.param("data: x|id: a", True, id="behind data"),
        pytest.param("id: a\0", True, id="NUL"),
        pytest.param("data: id|data: id: 1", False, id="as a value"),
        pytest.param(":id: a", False, id="in a comment"),
        pytest.param("idx: a|identity", False, id="a longer name"),
        pytest.param("ids: a|id: 1", True, id="behind a longer name"),
        pytest.param("Id: a|ID", False, id="in upper case"),
        pytest.param(" id: a", False, id="behind a space"),
        pytest.param("data: x", False, id="none"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
def test_has_id_tells_whether_the_block_has_an_id_line(
    fields: str, end: str, *, expected: bool
) -> None:
    assert has_id((fields.replace("|", end) + end * 2).encode()) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param("event: x|data: a", b"x", id="in front of data"),
        pytest.param("data: a|event:x", b"x", id="behind data, without a space"),
        pytest.param("event:  x |data: a", b" x ", id="only one space goes"),
        pytest.param("event: x|event: y|data: a", b"y", id="the last one"),
        pytest.param("event: x|event:|data: a", b"", id="an empty one is the last"),
        pytest.param("event: x|event|data: a", b"", id="one without a colon is the last"),
        pytest.param("event|data: a", b"", id="alone"),
        pytest.param("events: x|data: event: x", b"", id="no such field"),
        pytest.param(":event: x|data: a", b"", id="in a comment"),
        pytest.param("Event: x|data: a", b"", id="in upper case"),
        pytest.param("data: a", b"", id="none"),
        pytest.param("event: \u00e9\u2028|data: a", "\u00e9\u2028".encode(), id="not ASCII"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
def test_event_name_tells_the_type_that_a_client_sees(
    fields: str, end: str, expected: bytes
) -> None:
    whole = (fields.replace("|", end) + end * 2).encode()
    (event,) = EventParser().feed(whole)
    assert (event.event if event.event != "message" else "") == expected.decode()
    assert event_name(whole) == expected


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        pytest.param(b"data: a\n\n", b"data: a\nid: 7\n\n", id="LF"),
        pytest.param(b"data: a\r\r", b"data: a\rid: 7\r\r", id="CR"),
        pytest.param(b"data: a\r\n\r\n", b"data: a\r\nid: 7\r\n\r\n", id="CRLF"),
        pytest.param(b"data: a\r\n\r", b"data: a\r\nid: 7\r\n\r", id="CRLF cut in two"),
        pytest.param(b"data: a\r\n\n", b"data: a\r\nid: 7\n\n", id="CRLF LF"),
        pytest.param(b"data: a\n\r\n", b"data: a\nid: 7\n\r\n", id="LF CRLF"),
        pytest.param(b"data: a\n\r", b"data: a\nid: 7\n\r", id="LF CR"),
        pytest.param(b"data: a\r\r\n", b"data: a\rid: 7\r\r\n", id="CR CRLF"),
        pytest.param(
            b"event: x\ndata: a\rdata: b\r\n\r\n",
            b"event: x\ndata: a\rdata: b\r\nid: 7\r\n\r\n",
            id="mixed",
        ),
    ],
)
def test_add_line_puts_a_line_behind_the_blocks_own(whole: bytes, expected: bytes) -> None:
    out = add_line(whole, b"id: 7")
    assert out == expected
    (event,) = EventParser().feed(whole)
    assert EventParser().feed(out) == [Event(event.data, event.event, "7", event.retry)]
    assert parse(bytewise(out)) == ([Event(event.data, event.event, "7", event.retry)], "7", None)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(b"data: a\n", b"\n", id="LF"),
        pytest.param(b"data: a\r", b"\r", id="CR"),
        pytest.param(b"data: a\r\n", b"\r\n", id="CRLF"),
        pytest.param(b"data: a\n\r", b"\r", id="LF CR"),
        pytest.param(b"data: a\r\n\r\n", b"\r\n", id="the last of two"),
        pytest.param(b"\n", b"\n", id="LF alone"),
        pytest.param(b"\r\n", b"\r\n", id="CRLF alone"),
        pytest.param(b"data: a", b"", id="none"),
        pytest.param("data: \u2028".encode(), b"", id="U+2028 is none"),
        pytest.param(b"", b"", id="nothing"),
    ],
)
def test_line_end_tells_how_the_last_line_closes(lines: bytes, expected: bytes) -> None:
    assert line_end(lines) == expected


# --- format_sse_event -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        pytest.param(format_sse_event("a"), b"data: a\n\n", id="data"),
        pytest.param(format_sse_event(""), b"data: \n\n", id="empty data"),
        pytest.param(format_sse_event("a\nb"), b"data: a\ndata: b\n\n", id="LF"),
        pytest.param(format_sse_event("a\r\nb"), b"data: a\ndata: b\n\n", id="CRLF"),
        pytest.param(format_sse_event("a\rb"), b"data: a\ndata: b\n\n", id="CR"),
        pytest.param(
            format_sse_event("\n\r\n\r"), b"data: \ndata: \ndata: \ndata: \n\n", id="line ends only"
        ),
        pytest.param(
            format_sse_event("\n\nid: 1"), b"data: \ndata: \ndata: id: 1\n\n", id="no injection"
        ),
        pytest.param(format_sse_event(" a"), b"data:  a\n\n", id="a leading space"),
        pytest.param(
            format_sse_event("a\u2028b\x85c\0"),
            "data: a\u2028b\x85c\0\n\n".encode(),
            id="U+2028, U+0085 and NUL in data",
        ),
        pytest.param(format_sse_event("a", event="x"), b"event: x\ndata: a\n\n", id="event"),
        pytest.param(format_sse_event("a", event=""), b"data: a\n\n", id="empty event"),
        pytest.param(format_sse_event("a", event="message"), b"data: a\n\n", id="message"),
        pytest.param(
            format_sse_event("a", event="\u2028\0"),
            "event: \u2028\0\ndata: a\n\n".encode(),
            id="U+2028 and NUL in event",
        ),
        pytest.param(format_sse_event("a", id="1"), b"data: a\nid: 1\n\n", id="id"),
        pytest.param(format_sse_event("a", id=""), b"data: a\nid: \n\n", id="empty id"),
        pytest.param(format_sse_event(id="1"), b"id: 1\n\n", id="id alone"),
        pytest.param(format_sse_event(event="x"), b"event: x\n\n", id="event alone"),
        pytest.param(format_sse_event("a", retry=0), b"data: a\nretry: 0\n\n", id="retry 0"),
        pytest.param(
            format_sse_event(retry=10**18 - 1), b"retry: 999999999999999999\n\n", id="longest retry"
        ),
        pytest.param(format_sse_event(comment="c"), b": c\n\n", id="comment"),
        pytest.param(format_sse_event(comment=""), b": \n\n", id="empty comment"),
        pytest.param(
            format_sse_event(comment="a\rb\r\nc\ndata: d"),
            b": a\n: b\n: c\n: data: d\n\n",
            id="lines of a comment",
        ),
        pytest.param(
            format_sse_event("a\nb", event="x", id="1", retry=2, comment="c"),
            b": c\nevent: x\ndata: a\ndata: b\nid: 1\nretry: 2\n\n",
            id="everything",
        ),
    ],
)
def test_an_event_is_written_as_one_block(block: bytes, expected: bytes) -> None:
    assert block == expected


BREAKS_A_LINE = r"text without any of '\r\n'"
BREAKS_AN_ID = r"text without any of '\r\n\x00'"
NOT_A_RETRY = "a whole number of milliseconds, 0 or more"
NOT_UTF_8 = "text that UTF-8 can encode"
Write = Callable[[], bytes]


@pytest.mark.parametrize(
    ("write", "name", "got", "allowed"),
    [
        pytest.param(
            lambda: format_sse_event("a", event="x\ndata: b"),
            "event",
            "x\ndata: b",
            BREAKS_A_LINE,
            id="LF in event",
        ),
        pytest.param(
            lambda: format_sse_event("a", event="\r"),
            "event",
            "\r",
            BREAKS_A_LINE,
            id="CR in event",
        ),
        pytest.param(
            lambda: format_sse_event("a", event="message\n"),
            "event",
            "message\n",
            BREAKS_A_LINE,
            id="LF behind message",
        ),
        pytest.param(
            lambda: format_sse_event("a", id="1\n"), "id", "1\n", BREAKS_AN_ID, id="LF in id"
        ),
        pytest.param(
            lambda: format_sse_event("a", id="1\r2"), "id", "1\r2", BREAKS_AN_ID, id="CR in id"
        ),
        pytest.param(
            lambda: format_sse_event("a", id="\0"), "id", "\0", BREAKS_AN_ID, id="NUL in id"
        ),
        pytest.param(lambda: format_sse_event(retry=-1), "retry", -1, NOT_A_RETRY, id="negative"),
        pytest.param(
            lambda: format_sse_event(retry=10**18), "retry", 10**18, NOT_A_RETRY, id="19 digits"
        ),
        pytest.param(lambda: format_sse_event(retry=True), "retry", True, NOT_A_RETRY, id="a bool"),
        pytest.param(
            lambda: format_sse_event(retry=1.5),  # type: ignore[arg-type]
            "retry",
            1.5,
            NOT_A_RETRY,
            id="a float",
        ),
        pytest.param(
            lambda: format_sse_event(retry="1"),  # type: ignore[arg-type]
            "retry",
            "1",
            NOT_A_RETRY,
            id="a text",
        ),
    ],
)
def test_a_field_that_would_break_the_stream_is_refused_with_what_got_and_allowed(
    write: Write, name: str, got: object, allowed: str
) -> None:
    with pytest.raises(EventFormatError) as caught:
        write()
    error = caught.value
    assert (error.name, error.got, error.allowed) == (name, got, allowed)
    assert str(error) == f"{name} is {got!a}, allowed is {allowed}"
    assert isinstance(error, SSEError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        pytest.param(lambda: format_sse_event("a\ud800"), "data", id="data"),
        pytest.param(lambda: format_sse_event("a", event="\udfff"), "event", id="event"),
        pytest.param(lambda: format_sse_event("a", id="\ud800"), "id", id="id"),
        pytest.param(lambda: format_sse_event("a", comment="\ud800"), "comment", id="comment"),
    ],
)
def test_a_surrogate_is_refused_under_the_name_of_its_field(write: Write, name: str) -> None:
    with pytest.raises(EventFormatError) as caught:
        write()
    assert caught.value.allowed == NOT_UTF_8
    assert isinstance(caught.value.__cause__, UnicodeEncodeError)
    assert caught.value.name == name


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda: format_sse_event(), id="no argument"),  # noqa: PLW0108
        pytest.param(lambda: format_sse_event(None, event=""), id="an empty event"),
        pytest.param(lambda: format_sse_event(event="message"), id="the default event"),
    ],
)
def test_a_block_of_no_line_is_refused(write: Write) -> None:
    with pytest.raises(EventFormatError, match="at least one of data, event, id, retry, comment"):
        write()


def test_an_error_shows_a_long_value_shortened_and_keeps_it_whole() -> None:
    hostile = "x\n" * 50_000
    with pytest.raises(EventFormatError) as caught:
        format_sse_event("a", id=hostile)
    message = str(caught.value)
    assert len(message) < 200
    assert message.isprintable()
    assert "(150002 characters)" in message
    assert caught.value.got == hostile


# --- linear time ------------------------------------------------------------------------------

Feed = Callable[[bytes], object]


def splitter_feed() -> Feed:
    return Splitter(1 << 30).feed


def bounded_splitter_feed() -> Feed:
    return Splitter(1024).feed


def parser_feed() -> Feed:
    return EventParser().feed


def cpu_seconds(new_feed: Callable[[], Feed], stream: bytes, chunk_size: int) -> float:
    chunks = [stream[at : at + chunk_size] for at in range(0, len(stream), chunk_size)]
    feed = new_feed()
    begin = time.process_time()
    for chunk in chunks:
        feed(chunk)
    return time.process_time() - begin


def growth(new_feed: Callable[[], Feed], stream: bytes, chunk_size: int) -> float:
    """Return how much longer four times the stream takes, at the same speed of the machine."""
    once = max(cpu_seconds(new_feed, stream, chunk_size), 0.001)  # below, the clock tells nothing
    return cpu_seconds(new_feed, stream * 4, chunk_size) / once


STREAMS = {
    "one endless line": b"d" * 60_000,
    "one endless comment": b":" * 60_000,
    "many lines of one block": b"data: a\r\n" * 6_000,
    "many comment lines": b": a\n" * 10_000,
    "many empty lines": b"\n" * 10_000,
    "many blocks": b"data: a\r\n\r\n" * 5_000,
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
@pytest.mark.parametrize("new_feed", [splitter_feed, bounded_splitter_feed, parser_feed])
@pytest.mark.parametrize("chunk_size", [16, 1 << 30], ids=["small chunks", "one chunk"])
def test_the_time_grows_no_faster_than_the_stream(
    new_feed: Callable[[], Feed], stream: bytes, chunk_size: int
) -> None:
    # Linear is 4, quadratic 16. What disturbs one look spares another.
    assert any(growth(new_feed, stream, chunk_size) < 8 for _ in range(5))


@pytest.mark.slow
@pytest.mark.parametrize("byte", [b"d", b":", b"\n"], ids=["line", "comment", "empty lines"])
@pytest.mark.parametrize("new_feed", [splitter_feed, bounded_splitter_feed, parser_feed])
def test_ten_megabytes_byte_by_byte_take_seconds(new_feed: Callable[[], Feed], byte: bytes) -> None:
    feed = new_feed()
    begin = time.process_time()
    for _ in range(10_000_000):
        feed(byte)
    assert time.process_time() - begin < 60
