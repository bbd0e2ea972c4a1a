"""Queries about one block, the line that is added to it, and the encoder of events."""

from collections.abc import Callable

import pytest

from sse_middleware.errors import EventFormatError, SSEError
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import (
    add_line,
    event_name,
    format_sse_event,
    has_data,
    has_id,
    line_end,
)
from tests.support.wire import bytewise, parse

# Queries and changes


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param("data: a", True, id="a value"),
        pytest.param("data", True, id="alone"),
        pytest.param("data:", True, id="a colon"),
        pytest.param("id: 1|data", True, id="after an id"),
        pytest.param("data|id: 1", True, id="in front of an id"),
        pytest.param("id: data", False, id="as a value"),
        pytest.param(":data: a", False, id="in a comment"),
        pytest.param(" data: a", False, id="after a space"),
        pytest.param("data : a", False, id="in front of a space"),
        pytest.param("datab: a|database", False, id="a longer name"),
        pytest.param("Data: a", False, id="in upper case"),
        pytest.param("event: x|id: 1|retry: 1", False, id="other fields"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
def test_has_data_is_true_if_a_client_dispatches_the_block(
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
        pytest.param("data: x|id: a", True, id="after data"),
        pytest.param("id: a\0", True, id="NUL"),
        pytest.param("data: id|data: id: 1", False, id="as a value"),
        pytest.param(":id: a", False, id="in a comment"),
        pytest.param("idx: a|identity", False, id="a longer name"),
        pytest.param("ids: a|id: 1", True, id="after a longer name"),
        pytest.param("Id: a|ID", False, id="in upper case"),
        pytest.param(" id: a", False, id="after a space"),
        pytest.param("data: x", False, id="none"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
def test_has_id_is_true_if_the_block_has_an_id_line(
    fields: str, end: str, *, expected: bool
) -> None:
    assert has_id((fields.replace("|", end) + end * 2).encode()) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param("event: x|data: a", b"x", id="in front of data"),
        pytest.param("data: a|event:x", b"x", id="after data, without a space"),
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
def test_event_name_returns_the_type_that_a_client_sees(
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
def test_add_line_appends_a_line_to_those_of_the_block(whole: bytes, expected: bytes) -> None:
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
def test_line_end_returns_the_end_of_the_last_line(lines: bytes, expected: bytes) -> None:
    assert line_end(lines) == expected


# format_sse_event


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
            id="LF after message",
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
def test_the_error_for_a_bad_field_has_its_name_its_value_and_the_allowed_ones(
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
def test_a_surrogate_is_rejected_under_the_name_of_its_field(write: Write, name: str) -> None:
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
def test_a_block_of_no_line_is_rejected(write: Write) -> None:
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
