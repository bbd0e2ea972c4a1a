"""The bytes of an app: the same events, numbers and log frames for any chunking."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sse_middleware import EventParser
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.intake import INSIDE_EVENT, NO_EVENT
from sse_middleware.protocol.stream_end import Reason, unpack_end
from sse_middleware.protocol.wire import BOM, Splitter
from tests.support.dialects import Live, RecordedLog, new_dialect, new_intake
from tests.support.event_source import EventStream
from tests.support.samples import sampled
from tests.support.wire import bytewise

CHUNKS = [
    *(b"data: a\n\n", b"data: b\n\ndata: c\n\n", b"data:\n\n", b"data: \xff\r\n\r\n"),
    *(b"data: cu", b"t\n", b"\n", b"data: x\ndata: y\n\n", b"event: e\ndata: z\n\n"),
    *(b": ping\n\n", b": ping\n", b"retry: 5\n\n", b"\n\n", b"", BOM, b"dat", BOM[:1]),
    b"event: x\ndata: complete\n\n",
    *(b"event: e\n\n", b"event\ndata: n\n\n", b"event:\ndata:\n\n"),
    *(b"event: complete\ndata: end\n\n", b"data: [DONE]\n\n"),
    b'data: {"object":"chat.completion.chunk","id":"c","model":"m"}\n\n',
    *(b"data: one\n\ndata: two\nevent: e\n\n", b"data: one\n\n\n\n"),
    *(b"data: cr\rdata: lf\n\n", b"data: cr\r\r", b"data: crlf\r\n\r", b"\r", b"data: tail"),
]
WITH_IDS = [*CHUNKS, b"id: 7\ndata: own\n\n", b"data: one\n\nid: 9\n\n"]
LONG = [*WITH_IDS, b"data: " + b"x" * 1030 + b"\n\n", b"x" * 1100]

some = settings(deadline=None, max_examples=sampled(300))
kinds = st.sampled_from(list(ClientKind))


def chunks_of(tokens: list[bytes]) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.sampled_from(tokens), max_size=25)


@st.composite
def two_chunkings(draw: st.DrawFn, tokens: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Draw the chunks of a stream, and other chunks of the same stream."""
    chunks = draw(chunks_of(tokens))
    stream = b"".join(chunks)
    if draw(st.booleans()):
        return chunks, [stream]
    if draw(st.booleans()):
        return chunks, bytewise(stream)
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    return chunks, [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


def dispatched(data: bytes) -> list[tuple[str, str, str]]:
    """Return what a page receives: the types, the data and the ids of the events of the app."""
    stream = EventStream()
    found = list(stream.feed(data))
    return [(*event,) for event in found if not event.is_control]


# Any chunking


@some
@given(
    kinds,
    chunks_of(LONG),
    st.lists(st.sampled_from("sjpb"), min_size=1),
    st.sampled_from([{}, {"trace_in_data": True}, {"app_ids": True}]),
    st.sampled_from(list(Reason)),
)
def test_chunks_that_are_joined_give_the_same_bytes_as_single_ones(
    client_kind: ClientKind,
    chunks: list[bytes],
    steps: list[str],
    options: dict[str, Any],
    reason: Reason,
) -> None:
    """Chunks are fed one by one, or joined, or without the shortcut for usual events."""
    form = CommentForm.BLOCK_UNTIL_ID
    single = Live(client_kind, comment=form, max_event_bytes=1024, **options)
    other = Live(client_kind, comment=form, max_event_bytes=1024, **options)
    queue: list[bytes] = []
    for index, chunk in enumerate(chunks):
        step = steps[index % len(steps)]
        single.feed(chunk)
        queue.append(chunk)
        if step == "j":
            continue
        other.feed_joined(queue, parses=step == "p")
        queue = []
        if step == "b":
            single.heartbeat()
            other.heartbeat()
    other.feed_joined(queue)
    assert single.end(reason) == other.end(reason)
    assert single.out == other.out
    assert single.record == other.record
    assert single.log is not None
    assert other.log is not None
    assert vars(single.log) == vars(other.log)


@some
@given(kinds, two_chunkings(WITH_IDS), st.booleans(), st.sampled_from(list(Reason)))
@example(ClientKind.PLAIN, ([b"data: a\r\n\r", b"\n"], [b"data: a\r\n\r\n"]), False, Reason.ERROR)  # noqa: FBT003
@example(
    ClientKind.PLAIN,
    ([b"data: a\r\n\r", b"data: b\n\n"], [b"data: a\r\n\rdata: b", b"\n\n"]),
    False,  # noqa: FBT003
    Reason.ERROR,
)
def test_any_chunking_gives_the_same_events_numbers_and_log(
    client_kind: ClientKind,
    chunkings: tuple[list[bytes], list[bytes]],
    app_ids: bool,  # noqa: FBT001
    reason: Reason,
) -> None:
    lives = [Live(client_kind, app_ids=app_ids) for _ in chunkings]
    for live, chunks in zip(lives, chunkings, strict=True):
        for chunk in chunks:
            live.feed(chunk)
        assume(not live.intake.is_raw)
    (one, end), (other, other_end) = [(live, live.end(reason)[2]) for live in lives]
    has_app_ids = one.intake.app_owns_ids  # ours are not valid then, also those before
    assert dispatched(one.out) == dispatched(other.out) or has_app_ids
    assert [event[:2] for event in dispatched(one.out)] == [
        event[:2] for event in dispatched(other.out)
    ]
    assert one.record == other.record
    assert end._replace(tail=b"") == other_end._replace(tail=b"")
    assert one.log is not None
    assert other.log is not None
    if not one.log.has_app_ids:
        assert one.log.frames.keys() == other.log.frames.keys()
        assert one.log.after(0) + end.tail == other.log.after(0) + other_end.tail
    assert one.log.has_app_ids is other.log.has_app_ids


# No byte is changed

any_chunks = st.lists(st.sampled_from(WITH_IDS) | st.binary(max_size=4), max_size=25)


@some
@given(any_chunks, st.lists(st.booleans(), min_size=1))
def test_a_plain_client_receives_exactly_the_bytes_of_the_app(
    chunks: list[bytes], parses: list[bool]
) -> None:
    live = Live(ClientKind.PLAIN)
    for index, chunk in enumerate(chunks):
        live.feed(chunk, parses=parses[index % len(parses)])
    live.end(Reason.FINISHED)
    assert live.out == b"".join(chunks)


@some
@given(st.sampled_from([ClientKind.PLAIN, ClientKind.OFF, ClientKind.OPENAI]), chunks_of(LONG))
def test_long_events_do_not_change_the_bytes_of_a_plain_client(
    client_kind: ClientKind, chunks: list[bytes]
) -> None:
    live = Live(client_kind, max_event_bytes=1024)
    for chunk in chunks:
        live.feed(chunk)
    live.end(Reason.FINISHED)
    assert live.out == b"".join(chunks)


@some
@given(kinds, any_chunks, st.lists(st.booleans(), min_size=1), st.sampled_from(list(Reason)))
def test_the_log_has_exactly_the_bytes_of_the_app(
    client_kind: ClientKind, chunks: list[bytes], parses: list[bool], reason: Reason
) -> None:
    live = Live(client_kind, app_ids=True)
    for index, chunk in enumerate(chunks):
        live.feed(chunk, parses=parses[index % len(parses)])
    assume(not live.intake.is_raw)
    _, _, in_log = live.end(reason)
    assert live.log is not None
    assert live.log.after(0) + in_log.tail == b"".join(chunks)
    assert list(live.log.frames) == list(range(1, live.record.chunks + 1))
    packed = in_log.pack()
    assert unpack_end(packed, reason).tail == in_log.tail if packed else not in_log.tail


CRLF = [
    *(b"data: a\r\n\r\n", b"event: e\r\ndata: b\r\n\r\n", b": ping\r\n\r\n", b": ping\r\n"),
    *(
        b"data: lf\n\n",
        b"data: mixed\n\r\n",
        b"retry: 5\r\n\r\n",
        b"\r\n",
        b"data: x\r\ndata: y\r\n\r\n",
    ),
]


@some
@given(two_chunkings(CRLF), st.sampled_from(list(Reason)))
@example(([b"data: a\r\n\r", b"", b"\n"], [b"data: a\r\n\r\n"]), Reason.FINISHED)
def test_an_event_in_the_log_ends_with_its_last_line_end_for_any_chunking(
    chunkings: tuple[list[bytes], list[bytes]], reason: Reason
) -> None:
    """A client that resumes after an event has all of its bytes, which must not come again."""
    one, other = Live(ClientKind.PLAIN), Live(ClientKind.PLAIN)
    for live, chunks in zip((one, other), chunkings, strict=True):
        for chunk in chunks:
            live.feed(chunk)
        assume(not live.intake.is_raw)
    ends = [live.end(reason)[2] for live in (one, other)]
    assert one.log is not None
    assert other.log is not None
    assert one.log.frames == other.log.frames
    assert ends[0].tail == ends[1].tail


def test_an_event_that_ends_in_a_cr_alone_is_kept_at_once() -> None:
    live = Live(ClientKind.PLAIN)
    live.feed(b"data: a\r\r")
    assert live.log is not None
    assert live.log.frames == {1: b"data: a\r\r"}


# A log that is read later


def read(
    live: Live, after: int, sizes: list[int], *, app_ids: bool = False, beats: bool = False
) -> bytes:
    """Return what an `EventSource` receives that reads the log in batches of these sizes."""
    assert live.log is not None
    dialect = new_dialect(ClientKind.EVENTSOURCE, app_ids=app_ids)
    out = dialect.open(100.0, 0.0, resumed=True)
    at, last = 0, max(live.log.frames, default=0)
    while after < last:
        first, after = after + 1, min(last, after + sizes[at % len(sizes)])
        frames = b"".join(live.log.frames[number] for number in range(first, after + 1))
        out += dialect.frames(frames, first, after, 101.0)
        at += 1
        if beats:
            out += dialect.heartbeat(101.0)
    return out


@some
@given(
    st.lists(st.sampled_from(CHUNKS) | st.binary(max_size=3), max_size=25),
    st.integers(0, 12),
    st.lists(st.integers(1, 5), min_size=1),
    st.booleans(),
    st.booleans(),
)
@example([b"data: a\n\n", BOM + b"data: b\n\n", b"data: c\n\n"], 1, [5], False, False)  # noqa: FBT003
@example([b"data: a\r\n\r", b"\n", b"data: b\r\n\r", b"\n"] * 2, 0, [1], True, True)  # noqa: FBT003
def test_a_log_gives_an_eventsource_the_events_and_ids_of_the_live_one(
    chunks: list[bytes],
    after: int,
    sizes: list[int],
    live_beats: bool,  # noqa: FBT001
    beats: bool,  # noqa: FBT001
) -> None:
    live = Live()
    for chunk in chunks:
        live.feed(chunk)
        if live_beats:
            live.heartbeat()
    assume(not live.intake.is_raw)
    live.end(Reason.GONE)
    assert live.log is not None
    if live.log.has_app_ids:
        return
    after = min(after, live.record.chunks)
    expected = dispatched(live.out)
    assert len(expected) == live.record.chunks
    assert dispatched(read(live, after, sizes, beats=beats)) == expected[after:]


@some
@given(chunks_of(WITH_IDS), st.integers(0, 12), st.lists(st.integers(1, 5), min_size=1))
def test_a_log_with_ids_of_the_app_gives_them_too(
    chunks: list[bytes], after: int, sizes: list[int]
) -> None:
    live = Live(app_ids=True)
    for chunk in chunks:
        live.feed(chunk)
    assume(not live.intake.is_raw)
    live.end(Reason.GONE)
    after = min(after, live.record.chunks)
    expected = [event[:2] for event in dispatched(live.out)][after:]
    out = read(live, after, sizes, app_ids=True)
    assert [event[:2] for event in dispatched(out)] == expected
    if not after:
        assert [event.id for event in EventParser().feed(out)][1:] == [
            event.id for event in EventParser().feed(live.out)
        ][1:]


# Counts, and what is kept


def is_usual(block: bytes) -> bool:
    *names, data = block.split(b"\n")
    return data[:5] == b"data:" and [name[:6] for name in names] in ([], [b"event:"])


@some
@given(st.lists(st.sampled_from(LONG), min_size=1, max_size=8).map(b"".join))
def test_only_usual_events_are_counted_without_being_parsed(chunk: bytes) -> None:
    count = Splitter(1 << 20).count_usual(chunk)
    *blocks, rest = chunk.split(b"\n\n")
    usual = rest == b"" and b"\r" not in chunk and all(map(is_usual, blocks))
    assert count == (len(blocks) if usual else 0)
    if count:
        assert len(EventParser().feed(chunk)) == count


def test_events_count_as_of_the_time_that_they_are_given() -> None:
    live = Live()
    live.feed(b"data: 1\n\n", 10.0)
    live.feed(b"data: 2\n\ndata: 3\n\n", 10.001)
    live.feed(b"data: 4\n\n", 12.0)
    gaps = live.record.gaps
    assert (gaps[0], sum(gaps)) == (2, 3)
    assert live.record.gap_seconds == 2.0


def test_an_event_over_the_limit_is_counted_and_not_kept() -> None:
    live = Live(max_event_bytes=1024)
    live.feed(b": c\n\ndata: " + b"x" * 2000)
    live.feed(b"y\n\ndata: b\n\n")
    assert live.log is not None
    assert live.log.skipped == [1]
    assert live.log.frames == {2: b"data: b\n\n"}


def test_parts_tell_whether_they_are_an_event() -> None:
    intake = new_intake(ClientKind.PLAIN, max_event_bytes=1024)
    long = b"data: " + b"x" * 2000
    assert intake.feed(b"data: a\n\n: c\n\nid: 1\n\n" + long, 0.0) == [
        (1, b"data: a\n\n"),
        (NO_EVENT, b": c\n\n"),
        (NO_EVENT, b"id: 1\n\n"),
        (INSIDE_EVENT, long),
    ]
    assert intake.feed(b"\n\ndata: b\n\n", 0.0) == [(NO_EVENT, b"\n\n"), (3, b"data: b\n\n")]


def test_nothing_is_kept_once_the_app_sets_ids() -> None:
    live = Live()
    live.feed(b"data: a\n\n")
    live.feed(b"id: 1\ndata: b\n\n")
    live.feed(b"data: c\n\n")
    assert live.log is not None
    assert (live.log.frames, live.log.has_app_ids) == ({1: b"data: a\n\n"}, True)
    assert live.intake.log is None


def test_bytes_between_events_are_kept_up_to_a_limit() -> None:
    live = Live()
    for _ in range(10_000):
        live.feed(b": ping of an app\n\n")
    live.feed(b"data: a\n\n")
    assert live.log is not None
    assert 60_000 < len(live.log.frames[1]) < 1 << 17
    assert live.log.frames[1].endswith(b": ping of an app\n\ndata: a\n\n")


def test_a_stream_that_is_not_kept_keeps_no_bytes() -> None:
    live = Live(is_kept=False)
    live.feed(b": ping\n\ndata: a\n\n: ping\n\n")
    assert live.end(Reason.FINISHED)[2].tail == b""


@pytest.mark.parametrize("reason", list(Reason))
def test_the_end_of_the_log_has_the_bytes_that_live_clients_have_already(reason: Reason) -> None:
    live = Live()
    live.feed(b"data: a\n\n: ping\n\ndata: ta")
    end, in_log = live.intake.end(reason, 10.0)
    assert (end.tail, in_log.tail) == (b"data: ta", b": ping\n\ndata: ta")
    assert end._replace(tail=b"") == in_log._replace(tail=b"")
    assert (end.reason, end.chunks, end.duration) == (reason, 1, 10.0)


def test_the_recorded_log_of_these_tests_refuses_a_number_twice() -> None:
    log = RecordedLog()
    log.append(1, b"a")
    with pytest.raises(AssertionError):
        log.append(1, b"b")
