"""The end of a stream as the log keeps it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_middleware import StoreError
from sse_middleware.protocol.stream_end import Reason, StreamEnd, unpack_end

END = StreamEnd(
    Reason.ERROR,
    trace_id="a-1",
    duration=1.5,
    chunks=3,
    tokens=4,
    tail=b"\xff\r\n",
    is_inside_event=True,
    first_chunk={"id": "c"},
)
NUMBERS = st.integers(0, 1 << 62)


@given(
    st.builds(
        StreamEnd,
        st.sampled_from(Reason),
        trace_id=st.text("abc-._", max_size=9),
        duration=st.floats(0, 1e9),
        chunks=NUMBERS,
        tokens=NUMBERS,
        tail=st.binary(min_size=1, max_size=9),
        is_inside_event=st.booleans(),
        has_own_end=st.booleans(),
        first_chunk=st.none() | st.dictionaries(st.text(), st.text() | st.integers()),
    )
)
def test_an_end_is_the_same_after_it_was_kept(end: StreamEnd) -> None:
    assert unpack_end(end.pack(), Reason.GONE) == end


def test_a_log_without_an_end_has_the_reason_of_its_state() -> None:
    assert unpack_end(b"", Reason.LOST) == StreamEnd(Reason.LOST)
    assert unpack_end(b"", Reason.FINISHED).has_own_end


def changed(**fields: Any) -> bytes:
    """Return an end with other values; `None` removes a field."""
    packed = {**json.loads(END.pack()), **fields}
    return json.dumps({name: value for name, value in packed.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"{",
        b"[]",
        b"null",
        b"[" * 500_000,
        changed(reason="a later one"),
        changed(reason=None),
        changed(added=1),
        changed(tail=None),
        changed(tail=1),
        changed(tail="\u1234"),
        changed(trace_id=1),
        changed(trace_id='a"b'),
        changed(trace_id="a\nb"),
        changed(trace_id="\xe9"),
        changed(duration="1"),
        changed(duration=True),
        changed(duration=-1),
        changed(duration=float("nan")),
        changed(duration=float("inf")),
        changed(chunks=1.5),
        changed(tokens="1"),
        changed(is_inside_event=0),
        changed(has_own_end="no"),
        changed(first_chunk=[1]),
    ],
    ids=lambda data: data[:60],
)
def test_an_end_of_another_version_is_an_error_of_the_store(data: bytes) -> None:
    with pytest.raises(StoreError, match="was written by another"):
        unpack_end(data, Reason.FINISHED)
