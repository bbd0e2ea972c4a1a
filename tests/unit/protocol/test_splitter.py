"""The splitter cuts a stream between blocks, and its pieces together are the stream."""

from collections.abc import Iterable

import pytest

from sse_middleware.protocol.wire import BOM, Kind, Piece, Splitter
from tests.support.wire import block, bytewise, line, parse

LIMIT = 1 << 20


def split(chunks: Iterable[bytes], limit: int = LIMIT) -> tuple[list[Piece], bytes]:
    splitter = Splitter(limit)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    return pieces, splitter.flush()


def tr_split(
    stream: bytes, whole: list[Piece], cut: list[Piece] | None = None, *, limit: int = LIMIT
) -> None:
    """Split `stream` whole, byte by byte (which gives `cut`), and with an unfinished rest."""
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


def part(data: bytes) -> Piece:
    return (Kind.PART, data)


def last_part(data: bytes) -> Piece:
    return (Kind.LAST_PART, data)


# Pieces


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
def test_a_complete_block_passes_at_once(first: bytes, chunk: bytes) -> None:
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
        pytest.param(b"data: a\n", id="after a line"),
        pytest.param(b"data: a\r", id="after CR"),
        pytest.param(b"data: a\r\n", id="after CRLF"),
        pytest.param(b": comment", id="in a comment"),
        pytest.param(b"data: a\n: comment\n", id="after a comment in a block"),
        pytest.param(BOM[:1], id="a third of a BOM"),
        pytest.param(BOM[:2], id="two thirds of a BOM"),
    ],
)
def test_an_incomplete_block_is_held_and_flushed_once(stream: bytes) -> None:
    for chunks in ([stream], bytewise(stream)):
        splitter = Splitter(LIMIT)
        assert [splitter.feed(chunk) for chunk in chunks] == [[]] * len(chunks)
        assert splitter.between_blocks
        assert splitter.flush() == stream
        assert splitter.flush() == b""


def test_empty_chunks_yield_no_pieces() -> None:
    splitter = Splitter(LIMIT)
    assert splitter.feed(b"") == []
    assert splitter.feed(b"data: a\r\n\r") == [block(b"data: a\r\n\r")]
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\n") == [line(b"\n")]
    assert splitter.feed(b"") == []


# The limit


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


# A CRLF cut in two


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
def test_the_second_half_of_a_crlf_is_a_piece_of_its_own(
    first: bytes, following: bytes, *, comes: bool, alone: bool
) -> None:
    chunks = [b"\n"] * comes + [following] if alone else [b"\n" * comes + following]
    splitter = Splitter(LIMIT)
    out = b"".join(data for _, data in splitter.feed(first))
    assert out == first
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    assert pieces == [*([line(b"\n")] if comes else []), block(following)]
    out += b"".join(data for _, data in pieces)
    assert parse([out]) == parse([first, *chunks])


def test_a_splitter_that_begins_later_in_a_stream_knows_no_byte_order_mark() -> None:
    stream = BOM + b"data: a\n\n"
    assert Splitter(LIMIT, at_start=False).feed(stream) == [block(stream)]
    assert Splitter(LIMIT, at_start=False).count_usual(b"data: a\n\n") == 1
