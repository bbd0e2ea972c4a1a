"""Streams through real servers and sockets."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support.servers import SERVERS, Server, serving

APP = "tests.e2e.servers.app:app"
EVENTSOURCE = {"accept": "text/event-stream", "cache-control": "no-cache"}


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    environ = {
        "SSE_STREAM_MAX_SECONDS": "2",
        "SSE_CAP_ACTION": "complete",
        "SSE_HEARTBEAT_INTERVAL": "0.25",
        "SSE_LINGER_SECONDS": "0",
        "SSE_REPLAY_TTL": "0",
    }
    with serving(request.param, APP, tmp_path_factory.mktemp("server"), environ) as running:
        yield running


def read(url: str, headers: dict[str, str] | None = None) -> tuple[httpx.Response, list[Event]]:
    with httpx.Client(timeout=20) as client:
        response = client.get(url, headers=headers)
    return response, EventParser().feed(response.content)


def state(server: Server) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{server.url}/state", timeout=20).json()
    return told


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def open_raw(server: Server, path: str, *, eventsource: bool = True) -> socket.socket:
    """Open a stream by hand, to read nothing or to cut the connection."""
    connection = socket.create_connection(("127.0.0.1", server.port), 10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    headers = EVENTSOURCE if eventsource else {}
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def test_an_eventsource_gets_its_whole_stream(server: Server) -> None:
    response, events = read(f"{server.url}/count?n=4&pause=0.2", EVENTSOURCE)
    names = [event.event for event in events]
    assert (names[0], names[-1]) == ("start", "complete")
    assert [event.data for event in events if event.event == "message"] == ["0", "1", "2", "3"]
    assert 2 <= names.count("heartbeat") <= 3
    assert json.loads(events[-1].data)["reason"] == "finished"
    assert response.headers["x-stream-id"] == json.loads(events[0].data)["stream_id"]
    assert response.headers["cache-control"] == "no-cache, no-transform"


def test_a_plain_client_gets_the_apps_events_only(server: Server) -> None:
    response, events = read(f"{server.url}/count?n=3&pause=0.4")
    assert [event.data for event in events] == ["0", "1", "2"]
    assert b": heartbeat\n\n" in response.content
    assert response.headers["x-trace-id"]


def test_events_arrive_when_they_are_sent(server: Server) -> None:
    path = f"{server.url}/wait-for-each"
    with httpx.Client(timeout=20) as client, client.stream("GET", path) as response:
        events = (line for line in response.iter_lines() if line.startswith("data"))
        for number in range(3):
            began = time.monotonic()
            client.get(f"{server.url}/ask")
            assert next(events) == f"data: {number}"  # and the next one is not sent yet
            assert time.monotonic() - began < 1
        assert not list(events)


def test_an_exception_of_the_app_is_told_without_its_text(server: Server) -> None:
    response, events = read(f"{server.url}/count?n=1&boom=1", EVENTSOURCE)
    assert [event.event for event in events] == ["start", "message", "error"]
    assert b"swordfish" not in response.content


def test_a_plain_stream_that_fails_ends_uncleanly(server: Server) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        read(f"{server.url}/count?n=1&boom=1")


def test_the_cap_ends_a_silent_stream_with_complete(server: Server) -> None:
    began = time.monotonic()
    _, events = read(f"{server.url}/count?n=2&pause=30", EVENTSOURCE)
    assert 1.9 < time.monotonic() - began < 5  # with the making of a client, which is slow
    end = json.loads(events[-1].data)
    assert end["reason"] == "duration_cap"
    assert 2 <= end["duration"] < 2.5


def test_the_cap_ends_a_flooding_stream_with_complete(server: Server) -> None:
    began = time.monotonic()
    parser, last = EventParser(), Event("")
    with httpx.stream("GET", f"{server.url}/flood", headers=EVENTSOURCE, timeout=20) as response:
        for chunk in response.iter_raw():
            last = ([last, *parser.feed(chunk)])[-1]
    assert 1.9 < time.monotonic() - began < 5
    assert json.loads(last.data)["reason"] == "duration_cap"


def test_a_set_cap_ends_a_plain_stream_uncleanly(server: Server) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        read(f"{server.url}/count?n=2&pause=30")


def test_the_cap_holds_for_a_client_that_reads_nothing(server: Server) -> None:
    before = state(server)["requests"]
    frozen = [open_raw(server, "/flood", eventsource=bool(i % 2)) for i in range(6)]
    try:
        time.sleep(1)
        assert state(server)["requests"] == before + 6
        eventually(lambda: state(server)["requests"] == before)
    finally:
        for connection in frozen:
            connection.close()


@pytest.mark.parametrize("eventsource", [True, False])
def test_an_app_hears_that_its_client_has_left(server: Server, *, eventsource: bool) -> None:
    before = state(server)["left"].get("finally", 0)
    connection = open_raw(server, "/count?n=1000&pause=0.05", eventsource=eventsource)
    assert connection.recv(1000)
    connection.close()
    began = time.monotonic()
    eventually(lambda: state(server)["left"].get("finally", 0) == before + 1)
    assert time.monotonic() - began < 1.5


def test_two_thousand_opens_half_of_them_cut_leave_nothing_behind(server: Server) -> None:
    def open_and_close(number: int) -> None:
        connection = open_raw(server, "/count?n=3&pause=0.002", eventsource=bool(number % 3))
        received = b""
        with connection:
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += connection.recv(50 if number % 2 else 65536)
                if number % 2 and b"data:" in received:
                    return  # in the middle of an event

    def open_and_close_many(times: int) -> dict[str, Any]:
        for number in range(times):
            open_and_close(number)
        # Past the cap, since asyncio keeps a cancelled timer until its time, and past the 5 s for
        # which hypercorn keeps the tasks of a connection.
        time.sleep(6 if server.log.stem == "hypercorn" else 3)
        return state(server)

    before = open_and_close_many(300)
    after = open_and_close_many(2000)
    assert after["tasks"] <= before["tasks"]
    assert after["objects"] - before["objects"] < 1000
    assert after["resident_mib"] - before["resident_mib"] < 8
