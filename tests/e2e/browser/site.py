"""The server of a test, and checks of the events that a page has received."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2 as httpx

from tests.e2e.browser.eventsource_page import Follower, Received
from tests.e2e.browser.thread_proxy import ThreadProxy
from tests.support.servers import Server
from tests.support.waiting import HANG_SECONDS

APP = "tests.e2e.browser.app:app"
UVICORN = "uvicorn-httptools"
SERVERS = (UVICORN, "hypercorn", "granian")
COMMON = {
    "SSE_RETRY_MS": "100",
    "SSE_HEARTBEAT_INTERVAL": "0.25",
    "SSE_LINGER_SECONDS": "60",
    "SSE_CLIENT_PATH": "/sse-client.js",
}


@dataclass(frozen=True)
class Site:
    """A server with a proxy in front of it, and the key of a test."""

    server: Server
    proxy: ThreadProxy
    key: str

    def page(self, host: str = "127.0.0.1") -> str:
        """Return the page's address, of the same origin as the streams."""
        return f"http://{host}:{self.proxy.port}/page"

    def other_page(self, host: str = "127.0.0.1") -> str:
        """Return the page's address on another port."""
        return f"http://{host}:{self.server.port}/page"

    def client(self) -> str:
        """Return the address of the page that follows streams by `SSEClient`."""
        return f"http://127.0.0.1:{self.proxy.port}/client"

    def other_client(self, host: str) -> str:
        """Return that page's address on another port."""
        return f"http://{host}:{self.server.port}/client"

    def url(self, path: str, **query: object) -> str:
        address = f"http://127.0.0.1:{self.proxy.port}{path}"
        return f"{address}?{urlencode({'key': self.key, **query})}"

    def record(self) -> dict[str, Any]:
        """Return the record of the server for this test."""
        record: dict[str, Any] = httpx.get(
            f"{self.server.url}/record/{self.key}", timeout=HANG_SECONDS
        ).json()
        return record

    def runs(self) -> list[str]:
        """Return the last event ids of the app's runs."""
        runs: list[str] = self.record()["runs"]
        return runs


def assert_whole(events: list[Received], wanted: int) -> None:
    """Check that each event of one stream was received once, in order, with an id of ours."""
    of_app = [event for event in events if event.type == "message"]
    assert [int(event.data) for event in of_app] == list(range(wanted)), events
    places = [event.place for event in of_app]
    secret = places[0][0]
    assert places == [(secret, number, "") for number in range(1, wanted + 1)], places


def assert_resumed(follower: Follower) -> None:
    """Check that all connections after the first one have resumed.

    Each connection has a start, but the browser may drop it if the connection is cut at once.
    """
    first, *others = follower.events("start", "reset")
    assert not first.json["resumed"]
    assert others
    assert all(event.json["resumed"] for event in others), others


def reasons(follower: Follower) -> list[str]:
    return [event.json["reason"] for event in follower.events("complete")]


def assert_gapless(numbers: list[int]) -> None:
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
