"""The bytes of one client: the first and the last ones, ids, heartbeats, and halves of a CRLF."""

import itertools
import json
from typing import Any

import pytest

from sse_middleware import Event, EventParser
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.intake import INSIDE_EVENT, NO_EVENT
from sse_middleware.protocol.stream_end import Reason, StreamEnd
from sse_middleware.protocol.wire import BOM
from tests.support.dialects import EPOCH, SECRET, Live, new_dialect
from tests.support.wire import bytewise, parse

EVENTSOURCE, PLAIN, OPENAI, OFF = (
    ClientKind.EVENTSOURCE,
    ClientKind.PLAIN,
    ClientKind.OPENAI,
    ClientKind.OFF,
)
OTHERS = [PLAIN, OPENAI, OFF]
CHUNK = b'data: {"object":"chat.completion.chunk","id":"c","model":"m"}\n\n'


def events(data: bytes) -> list[Event]:
    return EventParser().feed(data)


def fields(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(event.data)
    return found


# The first bytes


def test_an_eventsource_receives_a_start_with_the_id_before_the_first_event() -> None:
    (start,) = events(new_dialect(EVENTSOURCE).open(100.0, EPOCH))
    assert (start.event, start.id) == ("start", f"{SECRET}-0")
    assert fields(start)["resumed"] is False


@pytest.mark.parametrize("client_kind", OTHERS)
def test_other_clients_receive_no_first_bytes(client_kind: ClientKind) -> None:
    assert new_dialect(client_kind).open(100.0, EPOCH) == b""


@pytest.mark.parametrize("event_id", ["7", f"{SECRET}-4", None])
def test_a_client_that_resumes_keeps_its_id(event_id: str | None) -> None:
    dialect = new_dialect(EVENTSOURCE)
    (start,) = events(dialect.open(100.0, EPOCH, resumed=True, event_id=event_id))
    assert (start.event, start.id) == ("start", event_id)
    assert fields(start)["resumed"] is True


def test_a_client_that_cannot_resume_receives_the_reason() -> None:
    (reset,) = events(new_dialect(EVENTSOURCE).open(100.0, EPOCH, reset="gone"))
    assert (reset.event, reset.id) == ("reset", f"{SECRET}-0")
    assert fields(reset)["reason"] == "gone"


def test_a_client_that_has_missed_events_receives_a_reset_with_their_last_id() -> None:
    (reset,) = events(new_dialect(EVENTSOURCE).reset_truncated(7))
    assert (reset.event, reset.id) == ("reset", f"{SECRET}-7")
    assert fields(reset)["reason"] == "truncated"
    assert new_dialect(PLAIN).reset_truncated(7) == b""


# The cap


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_the_cap_of_a_connection_that_rotates_is_spread_over_a_tenth(jitter: float) -> None:
    dialect = new_dialect(EVENTSOURCE, stream_max_seconds=10, cap_action="rotate")
    dialect.open(100.0, EPOCH, jitter=jitter)
    assert dialect.deadlines.cap_at == pytest.approx(110 - jitter)
    assert dialect.remaining_seconds(105.0) == pytest.approx(5 - jitter)
    assert dialect.remaining_seconds(200.0) == 0


def test_the_producer_ends_a_stream_that_does_not_rotate() -> None:
    dialect = new_dialect(EVENTSOURCE, stream_max_seconds=10, cap_action="complete")
    dialect.open(103.0, EPOCH)
    assert dialect.deadlines.cap_at == float("inf")
    assert dialect.remaining_seconds(105.0) == 5  # the age of the stream counts


@pytest.mark.parametrize("client_kind", [EVENTSOURCE, PLAIN])
def test_a_credential_that_expires_ends_the_connection_earlier(client_kind: ClientKind) -> None:
    dialect = new_dialect(client_kind, stream_max_seconds=60)
    dialect.open(100.0, EPOCH, ends_in=4)
    assert dialect.deadlines.cap_at == 104
    dialect.open(100.0, EPOCH, ends_in=400)
    assert dialect.deadlines.cap_at != 500


def test_a_plain_stream_has_a_cap_only_if_it_is_set() -> None:
    assert new_dialect(PLAIN).terms.max_seconds is None
    assert new_dialect(PLAIN, stream_max_seconds=60.0).terms.max_seconds == 60
    assert new_dialect(EVENTSOURCE).terms.max_seconds == 60


# Ids


@pytest.mark.parametrize("number", [1, 42, 999, 1000, 1001, 123456])
@pytest.mark.parametrize("count", [1, 3])
def test_usual_events_have_their_numbers_as_ids(number: int, count: int) -> None:
    last = number + count - 1
    out = new_dialect(EVENTSOURCE).number(b"event: e\ndata: x\n\n" * count, last, count)
    assert [event.id for event in events(out)] == [
        f"{SECRET}-{seq}" for seq in range(number, last + 1)
    ]
    assert out == b"".join(
        b"event: e\ndata: x\nid: %s-%d\n\n" % (SECRET.encode(), seq)
        for seq in range(number, last + 1)
    )


@pytest.mark.parametrize("client_kind", OTHERS)
def test_other_clients_receive_the_same_object(client_kind: ClientKind) -> None:
    dialect, data = new_dialect(client_kind), b"data: x\n\n"
    assert dialect.number(data, 1, 1) is data
    assert dialect.part(1, data, 100.0) is data
    assert dialect.frames(data, 1, 1, 100.0) is data


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_id_has_the_line_end_of_its_event(end: bytes) -> None:
    out = new_dialect(EVENTSOURCE).part(7, b"data: x" + end * 2, 100.0)
    assert out == b"data: x" + end + b"id: %s-7" % SECRET.encode() + end * 2


def test_bytes_that_are_no_event_have_no_id() -> None:
    dialect = new_dialect(EVENTSOURCE)
    for number, data in ((NO_EVENT, b": c\n\n"), (NO_EVENT, b"\n"), (INSIDE_EVENT, b"data: x")):
        assert dialect.part(number, data, 100.0) == data


def test_a_stream_whose_app_sets_ids_has_none_of_ours_from_then_on() -> None:
    live = Live()
    live.feed(b"data: 1\n\n")
    live.feed(b"id: own\ndata: 2\n\n")
    live.feed(b"data: 3\n\n")
    assert [event.id for event in events(live.out)][1:] == [f"{SECRET}-1", "own", None]
    data, clean, _ = live.end(Reason.FINISHED)
    assert ([event.id for event in events(data)], clean) == ([None], True)


def test_ids_of_an_app_that_the_middleware_uses_stay_and_the_end_has_one_of_ours() -> None:
    live = Live(app_ids=True)
    live.feed(b"id: own\ndata: 1\n\n")
    live.feed(b"data: 2\n\n")
    assert [event.id for event in events(live.out)][1:] == ["own", None]
    data, _, _ = live.end(Reason.FINISHED)
    assert [event.id for event in events(data)] == [f"{SECRET}-2.end"]


# Heartbeats


def test_a_heartbeat_of_an_eventsource_is_an_event_with_the_time_of_day() -> None:
    live = Live(stream_max_seconds=60)
    live.feed(b"data: 1\n\n")
    (beat,) = events(live.heartbeat(105.25))
    assert (beat.event, beat.id, beat.retry) == ("heartbeat", None, None)
    found = fields(beat)
    assert found["timestamp"] == "2026-01-01T12:00:05.250+00:00"
    assert (found["uptime_seconds"], found["total_chunks"]) == (5.25, 1)


def test_heartbeats_are_counted_over_all_connections_of_the_stream() -> None:
    live = Live(heartbeat_interval=4)
    counts = [fields(events(live.heartbeat(now))[0])["heartbeat_count"] for now in (104, 108, 140)]
    assert counts == [1, 2, 10]


@pytest.mark.parametrize("client_kind", OTHERS)
def test_a_heartbeat_of_other_clients_is_a_comment(client_kind: ClientKind) -> None:
    live = Live(client_kind)
    assert live.heartbeat() == b": heartbeat\n\n"
    assert live.record.heartbeats == 1


@pytest.mark.parametrize(
    ("comment", "before", "after"),
    [
        (CommentForm.BLOCK, b"\n\n", b"\n\n"),
        (CommentForm.BLOCK_UNTIL_ID, b"\n\n", b"\n"),
        (CommentForm.LINE, b"\n", b"\n"),
    ],
)
def test_a_comment_has_the_form_that_decoders_accept(
    comment: CommentForm, before: bytes, after: bytes
) -> None:
    live = Live(PLAIN, comment=comment)
    assert live.heartbeat() == b": heartbeat" + before
    live.feed(b"id: 7\ndata: x\n\n")
    assert live.heartbeat() == b": heartbeat" + after


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_comment_has_the_line_end_of_the_app(end: bytes) -> None:
    live = Live(PLAIN)
    live.feed(b"data: x" + end * 2 + b"data: y")
    assert live.heartbeat().removeprefix(b"\n") == b": heartbeat" + end * 2


@pytest.mark.parametrize("client_kind", list(ClientKind))
def test_there_is_no_heartbeat_inside_an_event(client_kind: ClientKind) -> None:
    live = Live(client_kind, max_event_bytes=1024)
    live.feed(b"data: " + b"x" * 2000)
    assert live.dialect.is_inside_event
    assert live.heartbeat() == b""
    assert live.record.heartbeats == 0
    live.feed(b"y\n\n")
    assert not live.dialect.is_inside_event
    assert live.heartbeat() != b""


@pytest.mark.parametrize("client_kind", list(ClientKind))
def test_bytes_that_are_held_back_are_no_activity(client_kind: ClientKind) -> None:
    live = Live(client_kind)
    assert live.feed(b"data: x", 103.0) == b""
    assert live.dialect.deadlines.active_at == 0
    live.feed(b"\n\n: ping\n\n", 104.0)
    assert live.dialect.deadlines.active_at == 104
    assert live.record.chunks == 1


@pytest.mark.parametrize("client_kind", OTHERS)
def test_a_byte_order_mark_stays_unless_it_would_not_be_the_first(client_kind: ClientKind) -> None:
    stream = BOM + b"data: x\n\n"
    live = Live(client_kind)
    live.feed(stream)
    assert live.out == stream
    later = Live(client_kind)
    later.heartbeat()
    later.feed(stream)
    assert later.out == b": heartbeat\n\ndata: x\n\n"


def test_a_byte_order_mark_after_a_start_is_dropped() -> None:
    live = Live()
    live.feed(BOM + b"data: x\n\n")
    assert BOM not in live.out
    assert [event.data for event in events(live.out)][1:] == ["x"]


# A CRLF cut in two

FIRST = [b"data: a\r\n\r", b"data: a\r\r", b"event: e\rdata: a\n\r", b": c\r", b"\r"]


@pytest.mark.parametrize("client_kind", [EVENTSOURCE, PLAIN])
@pytest.mark.parametrize("beats", [True, False], ids=["heartbeat", "no heartbeat"])
@pytest.mark.parametrize("comes", [True, False], ids=["LF comes", "no LF comes"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with the next block"])
@pytest.mark.parametrize("first", FIRST, ids=["CRLF", "CR", "LF CR", "comment", "empty line"])
@pytest.mark.parametrize("following", [b"data: b\r\n\r\n", b"data: b\n\n"], ids=["CRLF", "LF"])
def test_a_crlf_cut_in_two_is_one_line_end_also_around_a_heartbeat(
    client_kind: ClientKind,
    first: bytes,
    following: bytes,
    *,
    beats: bool,
    comes: bool,
    alone: bool,
) -> None:
    chunks = [b"\n"] * comes + [following] if alone else [b"\n" * comes + following]
    live = Live(client_kind)
    live.feed(first)
    if beats:
        assert live.heartbeat().startswith(b"\n")
    before = len(live.out)
    for chunk in chunks:
        live.feed(chunk)
    assert live.out[before : before + 1] == (b"\n" if comes and not beats else b"d")
    got = [event for event in events(live.out) if event.event not in ("start", "heartbeat")]
    assert [(event.event, event.data) for event in got] == [
        (event.event, event.data) for event in parse([first, *chunks])[0]
    ]


@pytest.mark.parametrize("first", FIRST)
def test_only_one_lf_is_written_and_only_one_dropped(first: bytes) -> None:
    live = Live(PLAIN)
    live.feed(first)
    assert live.heartbeat().startswith(b"\n: heartbeat")
    assert live.heartbeat().startswith(b": heartbeat")
    assert live.feed(b"") == b""
    assert live.feed(b"\n\n") == b"\n"
    assert live.feed(b"\n") == b"\n"


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"data: a\n\n", id="LF"),
        pytest.param(b"data: a\r\n\r\n", id="CRLF"),
        pytest.param(b"data: a\r", id="a CR that is held"),
        pytest.param(b": c", id="a comment that is held"),
        pytest.param(BOM, id="BOM"),
    ],
)
def test_no_lf_is_written_unless_a_cr_was_written_last(chunk: bytes) -> None:
    live = Live(PLAIN)
    live.feed(chunk)
    assert live.heartbeat().startswith(b": heartbeat")


@pytest.mark.parametrize("reason", [Reason.DURATION_CAP, Reason.ERROR, Reason.LOST])
@pytest.mark.parametrize("client_kind", [EVENTSOURCE, OPENAI])
def test_the_end_completes_a_crlf(client_kind: ClientKind, reason: Reason) -> None:
    live = Live(client_kind)
    live.feed(b"data: a\r\n\r")
    data, clean, _ = live.end(reason)
    assert (data[:1], clean) == (b"\n", True)
    assert len(events(live.out)) >= 2


# The end


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("client_kind", list(ClientKind))
def test_each_client_kind_receives_the_end_in_its_own_form(
    client_kind: ClientKind, reason: Reason
) -> None:
    live = Live(client_kind)
    live.feed(CHUNK if client_kind is OPENAI else b"data: a\n\n")
    live.feed(b"data: tail")
    data, clean, _ = live.end(reason)
    names = [event.event for event in events(data)]
    finished = reason is Reason.FINISHED
    assert live.dialect.outcome is reason
    if client_kind is ClientKind.JSON:  # its response is made of the events, or of the reason
        assert (data, clean) == (b"", True)
    elif reason is Reason.INCOMPLETE:
        assert (data, clean) == (b"", False)
    elif client_kind is EVENTSOURCE and reason in (Reason.ERROR, Reason.LOST):
        assert (names, clean) == (["error"], True)
    elif client_kind is EVENTSOURCE and reason in (Reason.GONE, Reason.UNAVAILABLE):
        assert (data, clean) == (b"", True)
    elif client_kind is EVENTSOURCE:
        assert (names, clean) == (["complete"], True)
    elif finished:
        assert (data, clean) == (b"data: tail", True)
    elif client_kind is OPENAI:
        assert events(data)[-1].data == "[DONE]"
        failed = reason in (Reason.ERROR, Reason.SHUTDOWN, Reason.LOST)
        assert ("error" in fields(events(data)[0])) is failed
        assert clean
    else:
        assert (data, clean) == (b"", False)


def test_a_complete_has_the_totals_of_the_stream() -> None:
    live = Live()
    live.record.tokens = 5
    live.feed(b"data: a\n\n")
    (complete,) = events(live.end(Reason.DURATION_CAP, 160.0)[0])
    assert fields(complete) == {
        "reason": "duration_cap",
        "duration": 60.0,
        "total_chunks": 1,
        "total_tokens": 5,
        "stream_id": "s",
        "trace_id": "t",
    }


def test_the_reasons_are_the_words_of_the_contract() -> None:
    internal = {"lost", "gone", "unavailable", "incomplete"}
    assert {reason.value for reason in Reason} - internal == {
        "finished",
        "duration_cap",
        "cancelled",
        "shutdown",
        "evicted",
        "error",
    }


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        (Reason.FINISHED, "end"),
        (Reason.CANCELLED, "end"),
        (Reason.EVICTED, "end"),
        (Reason.DURATION_CAP, "cut"),
        (Reason.SHUTDOWN, "cut"),
        (Reason.ERROR, "cut"),
    ],
)
def test_the_id_of_the_end_tells_the_response_to_a_client_that_reconnects(
    reason: Reason, ending: str
) -> None:
    live = Live()
    live.feed(b"data: a\n\n")
    (end,) = events(live.end(reason)[0])
    assert end.id == f"{SECRET}-1.{ending}"


def test_a_lost_producer_leaves_the_client_its_id() -> None:
    live = Live()
    (end,) = events(live.end(Reason.LOST)[0])
    assert (end.event, end.id) == ("error", None)
    assert end.retry == live.dialect.retry_ms


@pytest.mark.parametrize(
    "client_kind", [kind for kind in ClientKind if kind is not ClientKind.JSON]
)
@pytest.mark.parametrize("reason", list(Reason))
def test_no_end_follows_a_part_of_an_event(client_kind: ClientKind, reason: Reason) -> None:
    live = Live(client_kind, max_event_bytes=1024)
    live.feed(b"data: " + b"x" * 2000 + b"\n")
    data, clean, in_log = live.end(reason)
    assert data == (b"" if reason is Reason.INCOMPLETE else b"\n")
    assert clean is (reason is Reason.FINISHED)
    assert in_log.is_inside_event


@pytest.mark.parametrize("name", [b"complete", b"error"])
@pytest.mark.parametrize("reason", [Reason.FINISHED, Reason.DURATION_CAP, Reason.ERROR])
def test_the_middleware_adds_no_end_to_that_of_the_app(name: bytes, reason: Reason) -> None:
    live = Live()
    live.feed(b"event: %s\ndata: own\n\n" % name)
    live.feed(b"data: tail")
    data, clean, _ = live.end(reason)
    assert (data, clean) == (b"data: tail" if reason is Reason.FINISHED else b"", True)


@pytest.mark.parametrize("client_kind", [OPENAI, PLAIN])
@pytest.mark.parametrize("reason", [Reason.DURATION_CAP, Reason.ERROR])
def test_the_middleware_adds_no_end_after_done(client_kind: ClientKind, reason: Reason) -> None:
    live = Live(client_kind)
    live.feed(CHUNK)
    live.feed(b"data: [DONE]\n\n")
    assert live.end(reason)[:2] == (b"", True)


def test_a_plain_client_of_chat_completion_chunks_receives_the_end_of_openais_dialect() -> None:
    live = Live(PLAIN)
    live.feed(CHUNK)
    data, clean, _ = live.end(Reason.DURATION_CAP)
    first, last = events(data)
    assert (fields(first)["id"], fields(first)["model"], last.data) == ("c", "m", "[DONE]")
    assert clean


@pytest.mark.parametrize("jitter", [0.0, 0.25, 1.0])
def test_a_shutdown_spreads_the_retries(jitter: float) -> None:
    dialect = new_dialect(EVENTSOURCE, retry_ms=2000, linger_seconds=30)
    data, _ = dialect.end(StreamEnd(Reason.SHUTDOWN), jitter)
    (complete,) = events(data)
    assert complete.retry == 1000 + 1000 * jitter
    assert complete.id == f"{SECRET}-0.cut"


def test_a_drain_shortens_the_retry_and_never_lengthens_it() -> None:
    dialect = new_dialect(EVENTSOURCE, retry_ms=2000, drain_seconds=1)
    dialect.prepare_to_drain()
    assert dialect.retry_ms == 1000
    shorter = new_dialect(EVENTSOURCE, retry_ms=500, drain_seconds=1)
    shorter.prepare_to_drain()
    assert shorter.retry_ms == 500


def test_a_connection_whose_client_resumes_ends_with_a_heartbeat_and_a_retry() -> None:
    data, clean = new_dialect(EVENTSOURCE, retry_ms=2000).rotate(105.0, 0.5)
    (beat,) = events(data)
    assert (beat.event, beat.id, beat.retry, clean) == ("heartbeat", None, 1500, True)
    assert new_dialect(PLAIN).rotate(105.0, 0.5) == (b"", False)


# The log


def test_a_log_is_numbered_from_any_event_on() -> None:
    data = b"".join(b"data: %d\n\n" % number for number in range(1, 6))
    out = new_dialect(EVENTSOURCE).frames(data[2 * 9 :], 3, 5, 100.0)
    assert [(event.data, event.id) for event in events(out)] == [
        (str(number), f"{SECRET}-{number}") for number in (3, 4, 5)
    ]


def test_bytes_between_events_keep_their_place_in_a_log() -> None:
    data = b": ping\n\ndata: a\r\n\r\nretry: 5\n\n: c\ndata: b\ndata: c\n\n"
    out = new_dialect(EVENTSOURCE).frames(data, 8, 9, 100.0)
    our = [b"id: %s-%d" % (SECRET.encode(), number) for number in (8, 9)]
    assert out == (
        b": ping\n\ndata: a\r\n%s\r\n\r\nretry: 5\n\n: c\ndata: b\ndata: c\n%s\n\n" % tuple(our)
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_crlf_cut_between_two_batches_of_a_log_is_one_line_end(size: int) -> None:
    live = Live()
    for chunk in itertools.chain(bytewise(b"data: x\r\n\r\n" * 4)):
        live.feed(chunk)
    assert live.log is not None
    dialect = new_dialect(EVENTSOURCE)
    out = b""
    for first in range(1, 5, size):
        last = min(4, first + size - 1)
        frames = b"".join(live.log.frames[number] for number in range(first, last + 1))
        out += dialect.frames(frames, first, last, 100.0) + dialect.heartbeat(100.0)
    got = [event for event in events(out) if event.event == "message"]
    assert [(event.data, event.id) for event in got] == [
        ("x", f"{SECRET}-{number}") for number in range(1, 5)
    ]
    assert b"\n\n\n" not in out


def test_a_byte_order_mark_in_a_log_is_one_only_at_its_beginning() -> None:
    live = Live()
    for chunk in (BOM + b"data: a\n\n", BOM + b"data: no event\n\n", b"data: b\n\n"):
        live.feed(chunk)
    assert live.log is not None
    for after in (0, 1):
        out = new_dialect(EVENTSOURCE).frames(live.log.after(after), after + 1, 2, 100.0)
        found = [(event.data, event.id) for event in events(b"\n" + out)]
        assert found == [("a", f"{SECRET}-1"), ("b", f"{SECRET}-2")][after:]
