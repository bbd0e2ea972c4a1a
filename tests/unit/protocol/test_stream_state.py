"""The state machine of a stream, without a loop: time is an argument."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from sse_middleware import Event, EventParser, Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.deadlines import ALIGNMENT_SECONDS, Due, Reason
from sse_middleware.protocol.stream_state import End, StreamState
from sse_middleware.protocol.stream_terms import StreamTerms

EPOCH = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() - 100


def opened(
    client_kind: ClientKind = ClientKind.EVENTSOURCE, *, marked: bool = False, **options: Any
) -> tuple[StreamState, bytes]:
    state = new_state(client_kind, marked=marked, **options)
    return state, state.open(100.0, EPOCH)


def new_state(client_kind: ClientKind, *, marked: bool = False, **settings: Any) -> StreamState:
    options = Options.from_environ({}, **settings)
    return StreamState(
        options,
        StreamTerms.from_options(options, client_kind),
        client_kind=client_kind,
        record=StreamRecord("s", "t", "/route", client_kind),
        secret="x" * 22,
        marked=marked,
        comment=CommentForm.BLOCK,
    )


def last_event(data: bytes) -> Event:
    return EventParser().feed(data)[-1]


def test_time_makes_due_a_heartbeat_and_then_the_cap() -> None:
    state, _ = opened(heartbeat_interval=4, stream_max_seconds=10)
    assert state.deadline() == 104
    assert [state.due(now) for now in (103.9, 104, 109.9, 110)] == [
        Due.NOTHING,
        Due.HEARTBEAT,
        Due.HEARTBEAT,
        Due.CAP,
    ]


def test_heartbeats_keep_their_rhythm_and_are_never_made_up_for() -> None:
    state, _ = opened(heartbeat_interval=4, stream_max_seconds=None)
    state.plan_heartbeat(104.5)
    assert state.deadline() == 108
    state.plan_heartbeat(131)
    assert state.deadline() == 135


@pytest.mark.parametrize("client_kind", [ClientKind.EVENTSOURCE, ClientKind.PLAIN])
@pytest.mark.parametrize("interval", [1, 5, 7.3, 15])
def test_heartbeats_of_streams_that_opened_about_together_come_together(
    client_kind: ClientKind, interval: float
) -> None:
    beats = set()
    for opened_at in (100.0, 100.01, 100.024, 100.03):
        state = new_state(client_kind, heartbeat_interval=interval, stream_max_seconds=None)
        state.open(opened_at, EPOCH)
        first = state.deadline()
        assert opened_at + interval - ALIGNMENT_SECONDS < first <= opened_at + interval
        state.plan_heartbeat(first)
        assert state.deadline() == pytest.approx(first + interval, abs=1e-9)
        beats.add(first)
    assert len(beats) <= 2


def test_a_plain_heartbeat_is_due_at_most_one_interval_after_an_event() -> None:
    state = new_state(ClientKind.PLAIN, heartbeat_interval=5)
    state.open(100.0, EPOCH)
    state.feed(b"data: 1\n\n", 103.33)
    assert state.due(105.0) is Due.NOTHING
    assert 108.33 - ALIGNMENT_SECONDS < state.deadline() <= 108.33


def test_a_short_interval_is_kept_to_the_point() -> None:
    state = new_state(ClientKind.EVENTSOURCE, heartbeat_interval=0.07)
    state.open(100.0, EPOCH)
    assert state.deadline() == 100.07


def test_a_heartbeat_contains_the_time_of_day() -> None:
    state, _ = opened()
    data = json.loads(last_event(state.heartbeat(105.25)).data)
    assert data["timestamp"] == "2026-01-01T12:00:05.250+00:00"


def test_events_put_a_plain_heartbeat_off_and_leave_an_eventsources_alone() -> None:
    plain, _ = opened(ClientKind.PLAIN, heartbeat_interval=4)
    named, _ = opened(heartbeat_interval=4)
    for state in (plain, named):
        state.feed(b"data: x\n\n", 103)
    assert (plain.due(104), named.due(104)) == (Due.NOTHING, Due.HEARTBEAT)
    assert (plain.deadline(), named.deadline()) == (107, 104)
    assert plain.due(107) is Due.HEARTBEAT


def test_a_foreign_ping_counts_as_activity() -> None:
    state, _ = opened(ClientKind.PLAIN, heartbeat_interval=4)
    state.feed(b": ping\n\n", 103)
    assert state.due(104) is Due.NOTHING
    assert state.deadline() == 107
    assert state.record.chunks == 0


def test_bytes_that_are_held_back_are_no_activity() -> None:
    state, _ = opened(ClientKind.PLAIN, heartbeat_interval=4)
    assert state.feed(b"data: x", 103) == b""
    assert state.due(104) is Due.HEARTBEAT


@pytest.mark.parametrize("client_kind", list(ClientKind))
@pytest.mark.parametrize("first", ["finish", "reach_cap", "fail", "cancel"])
@pytest.mark.parametrize("second", ["finish", "reach_cap", "fail", "cancel"])
def test_a_stream_ends_once_with_one_reason(
    client_kind: ClientKind, first: str, second: str
) -> None:
    state, _ = opened(client_kind)
    getattr(state, first)(110.0)
    reason = state.reason
    assert reason is not None
    assert getattr(state, second)(111.0) == End(b"", clean=False)
    assert state.reason is reason


@pytest.mark.parametrize(
    ("client_kind", "way", "name", "clean"),
    [
        (ClientKind.EVENTSOURCE, "finish", "complete", True),
        (ClientKind.EVENTSOURCE, "reach_cap", "complete", True),
        (ClientKind.EVENTSOURCE, "fail", "error", True),
        (ClientKind.PLAIN, "finish", None, True),
        (ClientKind.PLAIN, "reach_cap", None, False),
        (ClientKind.PLAIN, "fail", None, False),
        (ClientKind.OFF, "finish", None, True),
        (ClientKind.OFF, "fail", None, False),
        (ClientKind.OPENAI, "finish", None, True),
        (ClientKind.OPENAI, "reach_cap", "message", True),
        (ClientKind.OPENAI, "fail", "message", True),
    ],
)
def test_each_client_kind_receives_the_end_in_its_own_form(
    client_kind: ClientKind, way: str, name: str | None, *, clean: bool
) -> None:
    state, _ = opened(client_kind)
    state.feed(b"data: a\n\n", 101)
    end = getattr(state, way)(110.0)
    assert end.clean is clean
    assert {event.event for event in EventParser().feed(end.data)} == ({name} if name else set())


def test_the_reasons_are_the_words_of_the_contract() -> None:
    state, _ = opened()
    data = json.loads(last_event(state.reach_cap(160.0).data).data)
    assert data == {
        "reason": "duration_cap",
        "duration": 60.0,
        "total_chunks": 0,
        "total_tokens": 0,
        "stream_id": "s",
        "trace_id": "t",
    }
    of_readers = {"lost", "gone", "unavailable"}
    assert {reason.value for reason in Reason} - of_readers == {
        "finished",
        "duration_cap",
        "cancelled",
        "shutdown",
        "evicted",
        "error",
    }


def test_an_ended_stream_makes_no_heartbeat_due_but_can_still_reach_its_cap() -> None:
    state, _ = opened(heartbeat_interval=4, stream_max_seconds=10)
    state.finish(102.0)
    assert state.deadline() == 110


def test_a_plain_stream_has_a_cap_only_if_it_is_set() -> None:
    assert opened(ClientKind.PLAIN)[0].terms.max_seconds is None
    assert opened(ClientKind.PLAIN, stream_max_seconds=60.0)[0].terms.max_seconds == 60
    assert opened(ClientKind.EVENTSOURCE)[0].terms.max_seconds == 60
