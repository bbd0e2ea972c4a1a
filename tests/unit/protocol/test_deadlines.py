"""When a heartbeat or the end of a connection is due, without a loop: time is an argument."""

import math

import pytest

from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.deadlines import ALIGNMENT_SECONDS, Deadlines, Due

NEVER = -math.inf
EVENTSOURCE, PLAIN = ClientKind.EVENTSOURCE, ClientKind.PLAIN


def started(
    client_kind: ClientKind, interval: float | None, *, at: float = 100.0, cap_at: float = math.inf
) -> Deadlines:
    deadlines = Deadlines(interval, client_kind, at)
    deadlines.cap_at = cap_at
    return deadlines


@pytest.mark.parametrize("client_kind", list(ClientKind))
def test_time_makes_due_a_heartbeat_and_then_the_cap(client_kind: ClientKind) -> None:
    deadlines = started(client_kind, 4, cap_at=110)
    assert deadlines.deadline() == 104
    assert [deadlines.due(now, NEVER) for now in (103.9, 104, 109.9, 110)] == [
        Due.NOTHING,
        Due.HEARTBEAT,
        Due.HEARTBEAT,
        Due.CAP,
    ]


@pytest.mark.parametrize("client_kind", list(ClientKind))
def test_nothing_is_due_without_an_interval_and_a_cap(client_kind: ClientKind) -> None:
    deadlines = started(client_kind, None)
    assert deadlines.deadline() == deadlines.busy_deadline() == math.inf
    assert deadlines.due(1e9, NEVER) is Due.NOTHING


def test_the_cap_comes_before_a_heartbeat_of_the_same_time() -> None:
    deadlines = started(EVENTSOURCE, 4, cap_at=104)
    assert deadlines.deadline() == 104
    assert deadlines.due(104, NEVER) is Due.CAP


def test_heartbeats_keep_their_rhythm_and_are_never_made_up_for() -> None:
    deadlines = started(EVENTSOURCE, 4)
    deadlines.plan_heartbeat(104.5)
    assert deadlines.deadline() == 108
    deadlines.plan_heartbeat(131)
    assert deadlines.deadline() == 135


@pytest.mark.parametrize("client_kind", [EVENTSOURCE, PLAIN])
@pytest.mark.parametrize("interval", [1, 5, 7.3, 15])
def test_heartbeats_of_streams_that_opened_about_together_come_together(
    client_kind: ClientKind, interval: float
) -> None:
    beats = set()
    for opened_at in (100.0, 100.01, 100.024, 100.03):
        deadlines = started(client_kind, interval, at=opened_at)
        first = deadlines.deadline()
        assert opened_at + interval - ALIGNMENT_SECONDS < first <= opened_at + interval
        deadlines.plan_heartbeat(first)
        assert deadlines.deadline() == pytest.approx(first + interval, abs=1e-9)
        beats.add(first)
    assert len(beats) <= 2


@pytest.mark.parametrize("interval", [0.07, 0.99])
def test_a_short_interval_is_kept_to_the_point(interval: float) -> None:
    assert started(EVENTSOURCE, interval, at=100.01).deadline() == 100.01 + interval


def test_a_plain_heartbeat_is_due_at_most_one_interval_after_an_event() -> None:
    deadlines = started(PLAIN, 5)
    assert deadlines.due(105.0, 103.33) is Due.NOTHING
    assert 108.33 - ALIGNMENT_SECONDS < deadlines.deadline() <= 108.33


def test_events_put_a_plain_heartbeat_off_and_leave_an_eventsources_alone() -> None:
    plain, named = started(PLAIN, 4), started(EVENTSOURCE, 4)
    assert (plain.due(104, 103.0), named.due(104, 103.0)) == (Due.NOTHING, Due.HEARTBEAT)
    assert (plain.deadline(), named.deadline()) == (107, 104)
    assert plain.due(107, 103.0) is Due.HEARTBEAT


def test_other_bytes_of_the_app_count_as_activity() -> None:
    deadlines = started(PLAIN, 4)
    deadlines.active_at = 103.0
    assert deadlines.due(104, NEVER) is Due.NOTHING
    assert deadlines.deadline() == 107


def test_the_later_of_an_event_and_other_bytes_counts() -> None:
    deadlines = started(PLAIN, 4)
    deadlines.active_at = 101.0
    assert deadlines.due(104, 102.0) is Due.NOTHING
    assert deadlines.deadline() == 106


def test_an_app_that_keeps_sending_is_checked_for_what_events_do_not_put_off() -> None:
    assert started(PLAIN, 4).busy_deadline() == math.inf
    assert started(PLAIN, 4, cap_at=110).busy_deadline() == 110
    assert started(EVENTSOURCE, 4, cap_at=110).busy_deadline() == 104


def test_nothing_is_due_after_the_end() -> None:
    deadlines = started(EVENTSOURCE, 4, cap_at=110)
    deadlines.stop()
    assert deadlines.deadline() == deadlines.busy_deadline() == math.inf
    assert deadlines.due(1e9, NEVER) is Due.NOTHING


def test_heartbeats_are_counted_by_the_age_of_the_stream() -> None:
    deadlines = Deadlines(4, EVENTSOURCE, 0)
    assert [deadlines.count(uptime) for uptime in (0, 3.95, 4, 20.05)] == [0, 1, 1, 5]
    assert Deadlines(None, EVENTSOURCE, 0).count(20) == 0
