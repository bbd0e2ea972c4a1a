"""Streams through real servers and sockets."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support.raw_http import EVENTSOURCE, open_raw
from tests.support.servers import SERVERS, Server, serving
from tests.support.waiting import HANG_SECONDS, wait_until

APP = "tests.e2e.servers.app:app"
CAP_SECONDS = 1
HEARTBEAT_SECONDS = 0.25
KEEP_ALIVE = {"hypercorn": ("--keep-alive", "1")}
"""hypercorn keeps the tasks of a connection for this time, 5 s unless it is set."""
LEAK_MIB = 0.004
"""The size of a leak for each stream that is noticed."""


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    environ = {
        "SSE_STREAM_MAX_SECONDS": str(CAP_SECONDS),
        "SSE_CAP_ACTION": "complete",
        "SSE_HEARTBEAT_INTERVAL": str(HEARTBEAT_SECONDS),
        "SSE_LINGER_SECONDS": "0",
        "SSE_REPLAY_TTL": "0",
    }
    directory, more = tmp_path_factory.mktemp("server"), KEEP_ALIVE.get(request.param, ())
    with serving(request.param, APP, directory, environ, *more) as running:
        yield running


def read(url: str, headers: dict[str, str] | None = None) -> tuple[httpx.Response, list[Event]]:
    with httpx.Client(timeout=HANG_SECONDS) as client:
        response = client.get(url, headers=headers)
    return response, EventParser().feed(response.content)


def state(server: Server) -> dict[str, Any]:
    response = httpx.get(f"{server.url}/state", timeout=HANG_SECONDS)
    found: dict[str, Any] = response.json()
    return found


def test_an_eventsource_receives_its_whole_stream(server: Server) -> None:
    response, events = read(f"{server.url}/uncapped?n=4&pause=0.2", EVENTSOURCE)
    names = [event.event for event in events]
    assert (names[0], names[-1]) == ("start", "complete")
    assert [event.data for event in events if event.event == "message"] == ["0", "1", "2", "3"]
    end = json.loads(events[-1].data)
    assert end["reason"] == "finished"
    assert 1 <= names.count("heartbeat") <= end["duration"] / HEARTBEAT_SECONDS
    assert response.headers["x-stream-id"] == json.loads(events[0].data)["stream_id"]
    assert response.headers["cache-control"] == "no-cache, no-transform, private"


def test_a_plain_client_receives_only_the_events_of_the_app(server: Server) -> None:
    response, events = read(f"{server.url}/uncapped?n=3&pause=0.4")
    assert [event.data for event in events] == ["0", "1", "2"]
    assert b": heartbeat\n\n" in response.content
    assert response.headers["x-trace-id"]


def test_an_event_arrives_before_the_next_one_is_sent(server: Server) -> None:
    path = f"{server.url}/wait-for-each"
    with httpx.Client(timeout=HANG_SECONDS) as client, client.stream("GET", path) as response:
        events = (line for line in response.iter_lines() if line.startswith("data"))
        for number in range(3):
            client.get(f"{server.url}/ask")
            assert next(events) == f"data: {number}"
        assert not list(events)


def test_an_exception_of_the_app_becomes_an_error_event_without_its_text(server: Server) -> None:
    response, events = read(f"{server.url}/count?n=1&boom=1", EVENTSOURCE)
    assert [event.event for event in events] == ["start", "message", "error"]
    assert b"swordfish" not in response.content


def test_a_plain_stream_that_fails_ends_uncleanly(server: Server) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        read(f"{server.url}/count?n=1&boom=1")


def test_the_cap_ends_a_silent_stream_with_complete(server: Server) -> None:
    began = time.monotonic()
    _, events = read(f"{server.url}/count?n=2&pause=30", EVENTSOURCE)
    assert time.monotonic() - began > CAP_SECONDS - 0.1
    assert_capped(events[-1])


def test_the_cap_ends_a_flooding_stream_with_complete(server: Server) -> None:
    began = time.monotonic()
    parser, last = EventParser(), Event("")
    url = f"{server.url}/flood"
    with httpx.stream("GET", url, headers=EVENTSOURCE, timeout=HANG_SECONDS) as response:
        for chunk in response.iter_raw():
            last = ([last, *parser.feed(chunk)])[-1]
    assert time.monotonic() - began > CAP_SECONDS - 0.1
    assert_capped(last)


def assert_capped(last: Event) -> None:
    end = json.loads(last.data)
    assert end["reason"] == "duration_cap"
    assert CAP_SECONDS <= end["duration"] < 10 * CAP_SECONDS


def test_a_set_cap_ends_a_plain_stream_uncleanly(server: Server) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        read(f"{server.url}/count?n=2&pause=30")


def test_the_cap_applies_to_a_client_that_reads_nothing(server: Server) -> None:
    before = state(server)["begun"]
    frozen = [open_raw(server.port, "/flood", eventsource=bool(i % 2)) for i in range(6)]
    try:
        wait_until(lambda: state(server)["begun"] == before + 6, "the streams have not begun")
        wait_until(lambda: state(server)["in_flight"] == 0, "the streams do not end")
    finally:
        for connection in frozen:
            connection.close()


@pytest.mark.parametrize("eventsource", [True, False])
def test_an_app_stops_after_its_client_has_left(server: Server, *, eventsource: bool) -> None:
    before = state(server)["left"].get("finally", 0)
    path = "/uncapped?n=100000&pause=0.05"  # of more than an hour
    connection = open_raw(server.port, path, eventsource=eventsource)
    assert connection.recv(1000)
    connection.close()
    wait_until(
        lambda: state(server)["left"].get("finally", 0) == before + 1, "the app does not stop"
    )


@pytest.mark.timeout(600)
def test_streams_of_which_half_are_cut_leave_nothing_in_the_process(server: Server) -> None:
    def open_and_close(number: int) -> None:
        path = "/count?n=3&pause=0.002"
        connection = open_raw(server.port, path, eventsource=bool(number % 3))
        received = b""
        with connection:
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += connection.recv(50 if number % 2 else 65536)
                if number % 2 and b"data:" in received:
                    return  # in the middle of an event

    def resident_mib_after(opens: int) -> float:
        for number in range(opens):
            open_and_close(number)
        wait_until(lambda: state(server)["in_flight"] == 0, "a request does not end")
        return float(state(server)["resident_mib"])

    def leaves_nothing() -> bool:
        time.sleep(pause)
        after = state(server)
        few_tasks = bool(after["tasks"] <= before["tasks"])
        return few_tasks and bool(after["objects"] - before["objects"] < opens * rounds / 2)

    # Each request for the state leaves tasks of its own in hypercorn.
    pause = 1.5 if server.log.stem == "hypercorn" else 0.2
    opens, rounds = 60, 5
    resident_mib_after(100)
    # asyncio keeps a cancelled timer until its time. A beginning that is too early only hides some.
    time.sleep(2 * CAP_SECONDS)
    before = state(server)
    sizes = [before["resident_mib"], *(resident_mib_after(opens) for _ in range(rounds))]
    growths = [after - before for before, after in itertools.pairwise(sizes)]
    # A burst of connections may raise the peak; a leak makes the process grow each time.
    assert min(growths) < opens * LEAK_MIB, sizes
    wait_until(leaves_nothing, lambda: f"before: {before}, after: {state(server)}")
