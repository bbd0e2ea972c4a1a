"""A client that no longer reads blocks its app, until it resumes on another connection."""

import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support.raw_http import EVENTSOURCE, open_raw
from tests.support.servers import SERVERS, Server, serving
from tests.support.waiting import HANG_SECONDS

APP = "tests.e2e.servers.app:app"
EVENTS, SIZE = 100, 100_000
"""More than the buffers between an app and its client hold."""


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    environ = {
        "SSE_REPLAY_MAX_BYTES": str(2 * EVENTS * SIZE),  # granian reads all events at once
        "SSE_SEND_TIMEOUT": "off",
    }
    with serving(request.param, APP, tmp_path_factory.mktemp("server"), environ) as running:
        yield running


def wait_until_no_event_is_yielded(server: Server) -> None:
    yielded, before = 0, -1
    while yielded != before:
        time.sleep(0.5)
        before = yielded
        yielded = httpx.get(f"{server.url}/state", timeout=HANG_SECONDS).json()["yielded"]


def test_a_client_that_reconnects_receives_the_events_that_its_old_connection_blocks(
    server: Server,
) -> None:
    path = f"/count?n={EVENTS}&pause=0.01&size={SIZE}"
    with open_raw(server.port, path) as frozen:
        parser, head = EventParser(), b""
        while b"\r\n\r\n" not in head:
            head += frozen.recv(1)
        start: list[Event] = []
        while not start:
            start = parser.feed(frozen.recv(4096).split(b"\r\n", 1)[-1])
        wait_until_no_event_is_yielded(server)
        headers = {**EVENTSOURCE, "last-event-id": start[0].id or ""}
        parser, events = EventParser(), list[Event]()
        deadline = time.monotonic() + HANG_SECONDS
        url = f"{server.url}{path}"
        with httpx.stream("GET", url, headers=headers, timeout=HANG_SECONDS) as response:
            for chunk in response.iter_raw():
                events += parser.feed(chunk)
                assert time.monotonic() < deadline, "the app is blocked"
    numbers = [int(event.data) for event in events if event.event == "message"]
    assert numbers == list(range(EVENTS))
    assert events[-1].event == "complete"
