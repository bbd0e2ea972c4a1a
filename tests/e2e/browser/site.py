"""What a test knows of a server, and what it makes sure of."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2 as httpx

from tests.e2e.browser.eventsource_page import Follower, Heard
from tests.e2e.browser.thread_proxy import ThreadProxy
from tests.support.servers import Server

APP = "tests.e2e.browser.app:app"
UVICORN = "uvicorn-httptools"
SERVERS = (UVICORN, "hypercorn", "granian")
COMMON = {
    "SSE_RETRY_MS": "100",
    "SSE_HEARTBEAT_INTERVAL": "0.25",
    "SSE_LINGER_SECONDS": "5",
    "SSE_CLIENT_PATH": "/sse-client.js",
}
PATIENCE_SECONDS = 15


@dataclass(frozen=True)
class Site:
    """A server behind the proxy, asked for under a key of its own in each test."""

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
        """Return the address of the page that follows streams by our client."""
        return f"http://127.0.0.1:{self.proxy.port}/client"

    def other_client(self, host: str) -> str:
        """Return that page's address on another port."""
        return f"http://{host}:{self.server.port}/client"

    def url(self, path: str, **query: object) -> str:
        address = f"http://127.0.0.1:{self.proxy.port}{path}"
        return f"{address}?{urlencode({'key': self.key, **query})}"

    def told(self) -> dict[str, Any]:
        """Return what the server has seen of this test."""
        told: dict[str, Any] = httpx.get(f"{self.server.url}/told/{self.key}", timeout=20).json()
        return told

    def runs(self) -> list[str]:
        """Return the last event ids that the app's runs were given."""
        runs: list[str] = self.told()["runs"]
        return runs


def assert_whole(events: list[Heard], wanted: int) -> None:
    """Make sure that each event of one stream was heard once, in order, with an id of ours."""
    of_app = [event for event in events if event.type == "message"]
    assert [int(event.data) for event in of_app] == list(range(wanted)), events
    places = [event.place for event in of_app]
    secret = places[0][0]
    assert places == [(secret, number, "") for number in range(1, wanted + 1)], places


def assert_resumed(follower: Follower) -> None:
    """Make sure that all went on behind the first start.

    There is a start for each connection, but where one is cut at once the browser may drop it.
    """
    first, *others = follower.events("start", "reset")
    assert not first.told["resumed"]
    assert others
    assert all(event.told["resumed"] for event in others), others


def reasons(follower: Follower) -> list[str]:
    return [event.told["reason"] for event in follower.events("complete")]


def assert_gapless(numbers: list[int]) -> None:
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
