"""Properties of the wire format for every input: any bytes, any chunking, any text in any field."""

import re
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_middleware.errors import EventFormatError
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.intake import INSIDE_EVENT, NO_EVENT
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.stream_end import Reason
from sse_middleware.protocol.wire import (
    BOM,
    Kind,
    Splitter,
    event_name,
    format_sse_event,
    has_data,
    has_id,
)
from tests.support.dialects import SECRET, Live, new_dialect
from tests.support.samples import sampled

LIMIT = 1 << 20
some = settings(deadline=None, max_examples=sampled(300))

# --- streams, cut anywhere --------------------------------------------------------------------

TOKENS = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b" ", b": ", b"\0"),
    *(b"data", b"data:", b"data: x", b"id", b"id: ", b"id: 7", b"event", b"event: e"),
    *(b"retry", b"retry: ", b"1", b"20", b"9" * 19, b"x" * 20, b"dat", b"i"),
    *(BOM, BOM[:1], BOM[1:], b"\xff", b"\xe2\x80\xa8", b"\xc2\x85", b"\xf0\x9f", b"\xed\xa0\x80"),
]
streams = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), max_size=30).map(b"".join)


@st.composite
def chunkings(draw: st.DrawFn) -> list[bytes]:
    """Draw the chunks of a stream, empty ones among them."""
    stream = draw(streams)
    if draw(st.booleans()):
        return [stream[at : at + 1] for at in range(len(stream))]
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    return [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


Dispatched = tuple[list[Event], str, int | None]


def parse(chunks: list[bytes]) -> Dispatched:
    parser = EventParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events, parser.last_event_id, parser.retry


def reference(stream: bytes) -> Dispatched:
    """Interpret a whole stream literally as WHATWG HTML 9.2.6 specifies."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _unterminated = re.split("\r\n|\n|\r", text)
    events = []
    data_buffer = event_type_buffer = id_buffer = last_event_id = ""
    retry = block_id = block_retry = None
    for line in lines:
        if line == "":
            last_event_id = id_buffer
            if data_buffer != "":
                data = data_buffer.removesuffix("\n")
                events.append(Event(data, event_type_buffer or "message", block_id, block_retry))
            data_buffer = event_type_buffer = ""
            block_id = block_retry = None
            continue
        if line.startswith(":"):
            continue
        field, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if field == "event":
            event_type_buffer = value
        elif field == "data":
            data_buffer += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = block_id = value
        elif field == "retry" and re.fullmatch("[0-9]{1,18}", value):
            retry = block_retry = int(value)
    return events, last_event_id, retry


@some
@given(chunkings())
@example([b"data: a\r", b"\n\r", b"\n"])
@example([BOM[:1], BOM[1:2], BOM[2:] + BOM + b"data: a\n\n"])
@example([b"event: a\nevent\ndata: x\n\n"])
def test_any_chunking_of_any_bytes_dispatches_the_specified_events(
    chunks: list[bytes],
) -> None:
    stream = b"".join(chunks)
    assert parse(chunks) == parse([stream]) == reference(stream)


@some
@given(chunkings(), st.integers(0, 60) | st.just(LIMIT))
@example([b"data: 0123456789", b"x\n\n", b"data: a\n\n"], 8)
@example([b"\n", b"x"], 8)
def test_pieces_and_tail_are_the_stream_and_their_kinds_its_blocks(
    chunks: list[bytes], limit: int
) -> None:
    splitter = Splitter(limit)
    pieces = []
    for chunk in chunks:
        pieces += splitter.feed(chunk)
        assert splitter.between_blocks == (not pieces or pieces[-1][0] is not Kind.PART)
    tail = splitter.flush()
    assert b"".join(data for _, data in pieces) + tail == b"".join(chunks)
    assert all(data for _, data in pieces)

    # One after the other, they are also what a client reads, however it groups them.
    out = [data for _, data in pieces]
    assert parse([*out, tail]) == reference(b"".join(chunks))

    for index, (kind, data) in enumerate(pieces):
        if kind is Kind.BLOCK:
            assert len(data) <= limit
        if kind in (Kind.BLOCK, Kind.LAST_PART):
            assert re.search(rb"(?:\r\n?+|\n)(?:\r\n?+|\n)\Z", data)
        if kind is Kind.LINE:
            assert re.fullmatch(rb"(?::[^\r\n]*)?(?:\r\n|\r|\n)", data)
        if kind is Kind.BOM:
            assert (index, data) == (0, BOM)
    for piece, following in pairwise(pieces):
        if piece[0] is Kind.PART:
            assert following[0] in (Kind.PART, Kind.LAST_PART)
        if following[0] is Kind.LAST_PART and piece[0] is not Kind.PART:
            assert len(following[1]) > limit


@some
@given(chunkings())
def test_each_block_of_a_stream_dispatches_the_same_event_by_itself(
    chunks: list[bytes],
) -> None:
    splitter = Splitter(LIMIT)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    alone = [
        event
        for piece in pieces
        if piece[0] is Kind.BLOCK
        for event in EventParser().feed(b"\n" + piece[1])
    ]
    assert alone == reference(b"".join(chunks))[0]


@some
@given(streams)
@example(b"event: a\nevent\ndata: x\n\n")
def test_the_queries_about_a_block_agree_with_a_client(stream: bytes) -> None:
    for kind, block in Splitter(LIMIT).feed(stream):
        if kind is not Kind.BLOCK:
            continue
        # The line end in front lets no byte order mark count.
        events, _, _ = parse([b"\n" + block])
        assert has_data(block) is bool(events)
        fields = [line.partition(b":")[0] for line in re.split(rb"\r\n|\n|\r", block)]
        assert has_id(block) is (b"id" in fields)
        for event in events:
            assert (event_name(block).decode("utf-8", "replace") or "message") == event.event


@some
@given(
    chunkings(),
    st.sampled_from([ClientKind.EVENTSOURCE, ClientKind.PLAIN]),
    st.sampled_from(list(CommentForm)),
    st.lists(st.booleans(), min_size=1),
)
@example([b"data: a\r\n\r", b"\n\ndata: b\r\r"], ClientKind.PLAIN, CommentForm.BLOCK, [True])
@example([BOM[:1], BOM[1:] + b"data: a\n\n"], ClientKind.PLAIN, CommentForm.BLOCK, [True])
def test_heartbeats_between_blocks_never_change_the_dispatches(
    chunks: list[bytes], client_kind: ClientKind, comment: CommentForm, when: list[bool]
) -> None:
    live = Live(client_kind, comment=comment, app_ids=True, max_event_bytes=1024)
    for index, chunk in enumerate(chunks):
        if when[index % len(when)]:
            live.heartbeat()
        live.feed(chunk)
    out = live.out + live.intake.end(Reason.FINISHED, 0.0)[0].tail
    events, _, retry = parse([out])
    expected, _, expected_retry = reference(b"".join(chunks))
    assert [event for event in events if '"stream_id":"s"' not in event.data] == expected
    assert client_kind is ClientKind.EVENTSOURCE or retry == expected_retry


@some
@given(chunkings(), st.integers(0, 60) | st.just(LIMIT), st.booleans())
@example([b"data: a\r\n\r", b"\ndata: b\n\r\n"], LIMIT, True)  # noqa: FBT003
def test_added_ids_never_change_data_or_type_and_number_every_recorded_event(
    chunks: list[bytes],
    limit: int,
    beats: bool,  # noqa: FBT001
) -> None:
    splitter = Splitter(limit)
    dialect = new_dialect(ClientKind.EVENTSOURCE)
    out = b""
    number = 0
    for chunk in chunks:
        for kind, data in splitter.feed(chunk):
            is_event = kind is Kind.BLOCK and has_data(data)
            number += is_event
            given_number = INSIDE_EVENT if kind is Kind.PART else number if is_event else NO_EVENT
            out += dialect.part(given_number, data, 0.0)
        if beats and out:
            out += dialect.heartbeat(0.0)
    out += splitter.flush()

    events, _, retry = parse([out])
    expected, _, expected_retry = reference(b"".join(chunks))
    events = [event for event in events if '"stream_id":"s"' not in event.data]
    assert retry == expected_retry
    assert [(event.data, event.event) for event in events] == [
        (event.data, event.event) for event in expected
    ]
    numbers = [f"{SECRET}-{seq}" for seq in range(1, number + 1)]
    assert [event.id for event in events if (event.id or "").startswith(SECRET)] == numbers
    if limit == LIMIT:
        assert [event.id for event in events] == numbers


# --- the encoder ------------------------------------------------------------------------------

characters = st.sampled_from("\r\n\0: \ufeff\u2028\x85ade") | st.characters()
any_text = (
    st.text(characters | st.sampled_from("\ud800\udfff"), max_size=12)
    | st.sampled_from(["", "message", "a\n\nid: 9", "x\r\rdata: y"])
    | st.text(characters, max_size=12)
)
encodable = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(": \0\ufeff\x85"))
one_line = encodable.map(lambda text: re.sub("[\r\n]", "", text))

encodable_events = st.builds(
    Event,
    data=encodable.map(lambda text: text.replace("\r", "\n")),
    event=one_line.map(lambda text: text or "message"),
    id=st.none() | one_line.map(lambda text: text.replace("\0", "")),
    retry=st.none() | st.integers(0, 10**18 - 1),
)


@some
@given(st.lists(encodable_events, max_size=4), st.integers(1, 8))
def test_an_encoded_event_is_parsed_as_the_same_event(written: list[Event], size: int) -> None:
    out = b"".join(format_sse_event(e.data, event=e.event, id=e.id, retry=e.retry) for e in written)
    read, _, _ = parse([out[at : at + size] for at in range(0, len(out), size)])
    assert read == written


def has_surrogate(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is not None


@settings(some, max_examples=sampled(600))
@given(
    data=st.none() | any_text,
    event=st.none() | any_text,
    id=st.none() | any_text,
    retry=st.none() | st.integers(-1, 3000) | st.integers(10**18 - 2, 10**18 + 2) | st.booleans(),
    comment=st.none() | any_text,
)
def test_the_encoder_rejects_or_writes_one_block_of_exactly_the_given_fields(
    data: str | None,
    event: str | None,
    id: str | None,  # noqa: A002
    retry: int | None,
    comment: str | None,
) -> None:
    bad_text = any(has_surrogate(text or "") for text in (data, event, id, comment))
    bad_event = re.search("[\r\n]", event or "") is not None
    bad_id = re.search("[\r\n\0]", id or "") is not None
    bad_retry = isinstance(retry, bool) or (retry is not None and not 0 <= retry < 10**18)
    nothing = event in (None, "", "message") and {data, id, retry, comment} == {None}
    refused = bad_text or bad_event or bad_id or bad_retry or nothing
    try:
        out = format_sse_event(data, event=event, id=id, retry=retry, comment=comment)
    except EventFormatError:
        assert refused
        return
    assert not refused

    assert b"\r" not in out
    assert out.index(b"\n\n") == len(out) - 2
    parser = EventParser()
    parser.feed(b"id: before\n\n")
    lines = None if data is None else data.replace("\r\n", "\n").replace("\r", "\n")
    dispatched = [] if lines is None else [Event(lines, event or "message", id, retry)]
    assert parser.feed(out) == dispatched
    assert parser.last_event_id == ("before" if id is None else id)
    assert parser.retry == retry
    assert parser.feed(b"data: next\n\n") == [Event("next")]
    assert has_data(out) is (data is not None)
    assert has_id(out) is (id is not None)
    assert event_name(out).decode() == (event if event not in (None, "message") else "")
    comments = [line for line in out.split(b"\n") if line.startswith(b":")]
    expected = re.split("\r\n|\r|\n", comment) if comment is not None else []
    assert [line.decode() for line in comments] == [f": {line}" for line in expected]
