"""Control events: what a client dispatches for each of them."""

import dataclasses
import json
from typing import Any

import pytest

from sse_middleware import Event, EventParser
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol import control_events
from sse_middleware.protocol.stream_end import Reason, StreamEnd
from sse_middleware.protocol.stream_terms import NO_TERMS, StreamTerms

RECORD = StreamRecord("s", "t", "/", "eventsource", chunks=3, tokens=2, heartbeats=1)
TERMS = dataclasses.replace(
    NO_TERMS, max_seconds=60.0, heartbeat_interval=0.25, event_prefix="sse-", retry_ms=9
)
SECRET = "x" * 22


def parsed(data: bytes) -> tuple[Event, dict[str, Any]]:
    (event,) = EventParser().feed(data)
    return event, json.loads(event.data)


def start_or_reset(
    terms: StreamTerms, event_id: str | None, *, reset: str = ""
) -> tuple[Event, dict[str, Any]]:
    return parsed(
        control_events.start_or_reset(
            RECORD, terms, reset=reset, resumed=True, event_id=event_id, retry_ms=5
        )
    )


@pytest.mark.parametrize("reset", ["", "gone"])
def test_a_start_announces_the_terms_and_a_reset_its_reason_too(reset: str) -> None:
    event, data = start_or_reset(TERMS, f"{SECRET}-0", reset=reset)
    name = "sse-reset" if reset else "sse-start"
    assert (event.event, event.id, event.retry) == (name, f"{SECRET}-0", 5)
    assert data == {
        **({"reason": reset} if reset else {}),
        "stream_id": "s",
        "trace_id": "t",
        "max_duration": 60.0,
        "heartbeat_interval": 0.25,
        "silence_threshold": None,
        "resumed": True,
    }


@pytest.mark.parametrize("event_id", ["7 é", "", None])
def test_a_start_can_keep_an_id_of_the_app_or_have_none(event_id: str | None) -> None:
    assert start_or_reset(NO_TERMS, event_id)[0].id == event_id


@pytest.mark.parametrize("retry_ms", [None, 0, 1500])
def test_a_heartbeat_has_no_id_and_a_retry_only_if_the_connection_ends(
    retry_ms: int | None,
) -> None:
    event, data = parsed(
        control_events.heartbeat(
            RECORD,
            TERMS,
            unix_time=1_800_000_000.0625,
            uptime=1.5,
            remaining=58.5,
            retry_ms=retry_ms,
        )
    )
    assert (event.event, event.id, event.retry) == ("sse-heartbeat", None, retry_ms)
    assert data == {
        "stream_id": "s",
        "timestamp": "2027-01-15T08:00:00.062+00:00",
        "uptime_seconds": 1.5,
        "total_chunks": 3,
        "total_tokens": 2,
        "heartbeat_count": 1,
        "remaining_seconds": 58.5,
        "max_duration": 60.0,
        "trace_id": "t",
    }


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("as_block", [False, True])
def test_a_heartbeat_comment_is_ignored_by_clients(line_end: bytes, *, as_block: bool) -> None:
    comment = control_events.heartbeat_comment(line_end, as_block=as_block)
    assert comment == b": heartbeat" + line_end * (2 if as_block else 1)
    assert EventParser().feed(comment) == []


def test_a_complete_has_the_totals_and_the_id_of_the_end() -> None:
    event, data = parsed(
        control_events.complete(
            RECORD,
            TERMS,
            StreamEnd(Reason.FINISHED, "t", 2.5, 3, 2),
            f"{SECRET}-3.end",
            None,
        )
    )
    assert (event.event, event.id, event.retry) == ("sse-complete", f"{SECRET}-3.end", None)
    assert data == {
        "reason": "finished",
        "duration": 2.5,
        "total_chunks": 3,
        "total_tokens": 2,
        "trace_id": "t",
        "stream_id": "s",
    }


def test_an_error_is_generic() -> None:
    event, data = parsed(control_events.error(RECORD, TERMS, StreamEnd(Reason.ERROR, "t"), None))
    assert (event.event, event.id, event.retry) == ("sse-error", None, None)
    assert data.keys() == {"error", "trace_id", "stream_id"}
    assert data["error"].keys() == {"type", "code", "message"}
    assert data["error"]["code"] == "internal_error"


def test_a_client_reconnects_after_its_producer_is_lost() -> None:
    event, data = parsed(control_events.producer_lost(RECORD, TERMS, 7))
    assert (event.event, event.id, event.retry) == ("sse-error", None, 7)
    assert data["error"]["code"] == "producer_lost"
