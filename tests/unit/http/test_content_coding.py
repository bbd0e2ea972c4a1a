"""The choice of a content coding, and the coded form of a body that is flushed again and again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_middleware.http.content_coding import ENCODERS, choose_coding
from tests.support.codings import CODINGS, decoded


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", ""),
        (b"gzip", "gzip"),
        (b"gzip, deflate, br, zstd", "zstd"),  # what browsers send
        (b"br;q=0.1, gzip;q=1.0", "br"),  # the server's order decides
        (b"GZIP", "gzip"),
        (b"gzip;q=0", ""),
        (b"gzip;q=0.000, *", "zstd"),
        (b"*", "zstd"),
        (b"*;q=0", ""),
        (b"*;q=0, gzip ; q=0.5", "gzip"),
        (b"identity", ""),
        (b"identity;q=0, *;q=0", ""),
        (b"gzip;q=high", ""),
        (b"gzip;q=nan", ""),
        (b"gzip;q=-1", ""),
        (b"gzip;level=9", "gzip"),
        (b"gzipped, x-gzip, brotli", ""),
        (b"\xff, ;, =;q=, br", "br"),
        (b"," * 10_000 + b"gzip", "gzip"),
    ],
)
def test_the_first_coding_that_the_client_accepts_is_chosen(header: bytes, expected: str) -> None:
    assert choose_coding(header, ("zstd", "br", "gzip")) == expected


@given(st.binary(max_size=60))
def test_any_header_is_understood_or_ignored(header: bytes) -> None:
    assert choose_coding(header, ("br", "gzip")) in ("br", "gzip", "")


@pytest.mark.parametrize("coding", CODINGS)
def test_each_flush_contains_all_bytes_before_it(coding: str) -> None:
    source = random.Random(7)
    parts = [source.randbytes(source.choice((1, 5, 90, 20_000))) for _ in range(50)]
    encoder = ENCODERS[coding]()
    coded = [encoder.flush(part) for part in parts]
    assert decoded(coding, *coded) == parts
    encoder = ENCODERS[coding]()
    whole = b"".join([*map(encoder.flush, parts), encoder.finish()])
    assert b"".join(decoded(coding, whole)) == b"".join(parts)


@pytest.mark.parametrize("coding", CODINGS)
def test_events_with_equal_fields_are_small(coding: str) -> None:
    encoder = ENCODERS[coding]()
    event = 'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":"%d"}}]}\n\n'
    events = [(event % number).encode() for number in range(100)]
    assert sum(len(encoder.flush(one)) for one in events) < sum(map(len, events)) / 4
