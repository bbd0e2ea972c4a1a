"""The parser of event streams, case by case, after WHATWG HTML 9.2.5 and 9.2.6."""

import pytest

from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import BOM
from tests.support.wire import bytewise, parse

NEXT_LINE = "\x85"


LINE_SEPARATOR = "\u2028"


ARABIC_FIVE = "\u0665"


def tr(
    stream: bytes, events: list[Event], *, last_event_id: str = "", retry: int | None = None
) -> None:
    """Parse `stream` with every chunking; the result must be the same."""
    expected = (events, last_event_id, retry)
    assert parse([stream]) == expected
    assert parse(bytewise(stream)) == expected
    for at in range(len(stream) + 1):
        assert parse([stream[:at], b"", stream[at:]]) == expected, f"cut at {at}"
    rest = b"data: unfinished"
    assert parse([stream + rest]) == expected
    assert parse(bytewise(stream + rest)) == expected


# Examples of the specification


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
def test_the_examples_of_the_specification_are_parsed_as_specified(
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


# Lines


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
        pytest.param(b"\n" + BOM + b"data: a\n\n", [], id="after an empty line"),
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


# Fields


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
        pytest.param(b"event:  x\ndata: a\n\n", [Event("a", " x")], id="event after two spaces"),
        pytest.param(b"data: a\nevent: x\n\n", [Event("a", "x")], id="event after data"),
        pytest.param(b"Data: a\nDATA: a\nEvent: x\n\n", [], id="field names have a case"),
        pytest.param(b" data: a\ndata : a\ndat: a\ndatab: a\n\n", [], id="near misses"),
        pytest.param(b"foo: a\nfoo\ndata: a\n\n", [Event("a")], id="unknown fields"),
        pytest.param(b"\0\n\xff: a\ndata: a\n\n", [Event("a")], id="unknown fields of garbage"),
    ],
)
def test_fields_are_parsed_as_specified(stream: bytes, events: list[Event]) -> None:
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
def test_the_last_event_id_changes_as_specified(
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
