"""A client whose network has died holds its app back until it follows on another connection."""

import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.e2e.servers.test_servers import APP, EVENTSOURCE, open_raw
from tests.support.servers import SERVERS, Server, serving

EVENTS, SIZE = 100, 100_000
"""More than the buffers take that lie between an app and its client."""


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    environ = {"SSE_REPLAY_MAX_BYTES": str(2 * EVENTS * SIZE)}  # granian takes them all at once
    with serving(request.param, APP, tmp_path_factory.mktemp("server"), environ) as running:
        yield running


def test_who_comes_back_from_a_dead_network_gets_what_its_old_connection_holds_back(
    server: Server,
) -> None:
    path = f"/count?n={EVENTS}&pause=0.01&size={SIZE}"
    with open_raw(server, path) as frozen:
        parser, head = EventParser(), b""
        while b"\r\n\r\n" not in head:
            head += frozen.recv(1)
        start: list[Event] = []
        while not start:
            start = parser.feed(frozen.recv(4096).split(b"\r\n", 1)[-1])
        time.sleep(1)  # until the app is blocked
        began = time.monotonic()
        response = httpx.get(
            f"{server.url}{path}",
            headers={**EVENTSOURCE, "last-event-id": start[0].id or ""},
            timeout=20,
        )
        took = time.monotonic() - began
    events = EventParser().feed(response.content)
    numbers = [int(event.data) for event in events if event.event == "message"]
    assert numbers == list(range(EVENTS))
    assert events[-1].event == "complete"
    assert took < 10
