"""A page in a real browser that opens a native `EventSource` and records its events."""

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<title>page</title>
<script>
const NAMES = ["message", "start", "heartbeat", "complete", "error", "reset"];
const sources = [];

function follow(url, closesAt, withCredentials) {
  const source = new EventSource(url, { withCredentials });
  const record = { source, events: [], opened: 0, failed: 0 };
  for (const name of NAMES) {
    source.addEventListener(name, (event) => {
      if (event.data === undefined) return record.failed++;
      record.events.push([event.type, event.data, event.lastEventId]);
      if (closesAt.includes(event.type)) source.close();
    });
  }
  source.addEventListener("open", () => record.opened++);
  return sources.push(record) - 1;
}

function received(index, name) {
  return sources[index].events.filter((event) => event[0] === name).length;
}
</script>
"""

SERVICE_WORKER = """
const skips = new URL(location).searchParams.has("skips");
self.addEventListener("fetch", (event) => {
  if (skips && event.request.headers.get("accept") === "text/event-stream") return;
  event.respondWith(fetch(event.request));
});
"""
"""It responds to all requests, or with `?skips` leaves those of an `EventSource` to the browser."""

CONTROLS = ("start", "heartbeat", "complete", "error", "reset")
CLOSED = 2
"""`EventSource.CLOSED`"""

_CURSOR = re.compile(r"([A-Za-z0-9_-]{22})-([0-9]+)(?:\.(end|again|cut))?")


class Received(NamedTuple):
    """An event as a page receives it."""

    type: str
    data: str
    last_event_id: str

    @property
    def json(self) -> dict[str, Any]:
        """The data as JSON."""
        data: dict[str, Any] = json.loads(self.data)
        return data

    @property
    def place(self) -> tuple[str, int, str]:
        """The secret, the number and the ending in its id."""
        found = _CURSOR.fullmatch(self.last_event_id)
        assert found is not None, f"{self.last_event_id!r} is no event id of ours"
        return found[1], int(found[2]), found[3] or ""


def visit(page: "Page", address: str) -> None:
    """Load `PAGE` from an address."""
    response = page.goto(address)
    assert response is not None
    assert response.ok, response.status_text


class Follower:
    """An `EventSource` in `page` on `url`.

    Args:
        page: a page that has loaded `PAGE`.
        url: of the stream.
        closes_at: the events at which the page closes it; otherwise the browser reconnects.
        credentials: whether it sends cookies to other origins.
    """

    def __init__(
        self,
        page: "Page",
        url: str,
        *,
        closes_at: tuple[str, ...] = ("complete",),
        credentials: bool = False,
    ) -> None:
        self._page = page
        self._index: int = page.evaluate(
            "([url, closesAt, credentials]) => follow(url, closesAt, credentials)",
            [url, list(closes_at), credentials],
        )

    def events(self, *names: str) -> list[Received]:
        """Return the events that it has received so far, of the given names or all."""
        received = self._page.evaluate("(index) => sources[index].events", self._index)
        events = [Received(*event) for event in received]
        return [event for event in events if event.type in names] if names else events

    def numbers(self) -> list[int]:
        """Return the data of the app's events so far."""
        return [int(event.data) for event in self.events("message")]

    @property
    def cursor(self) -> str:
        """The last event id that it has received."""
        return self.events()[-1].last_event_id

    @property
    def opened(self) -> int:
        """The number of its connections."""
        opened: int = self._page.evaluate("(index) => sources[index].opened", self._index)
        return opened

    @property
    def state(self) -> int:
        """Its `readyState`."""
        state: int = self._page.evaluate("(index) => sources[index].source.readyState", self._index)
        return state

    def wait_for(self, name: str, count: int = 1) -> None:
        """Wait until it has received `count` events of a name."""
        self._wait("([index, name, count]) => received(index, name) >= count", name, count)

    def wait_for_openings(self, count: int) -> None:
        """Wait until it has had `count` connections."""
        self._wait("([index, count]) => sources[index].opened >= count", count)

    def wait_until_closed(self) -> None:
        """Wait until the browser, or the page, has closed it for good."""
        self._wait("([index]) => sources[index].source.readyState === EventSource.CLOSED")

    def close(self) -> None:
        """Close it as a page does."""
        self._page.evaluate("(index) => sources[index].source.close()", self._index)

    def _wait(self, condition: str, *arguments: object) -> None:
        try:
            self._page.wait_for_function(condition, arg=[self._index, *arguments], polling=20)
        except Exception as exc:
            exc.add_note(f"received last, in state {self.state}: {self.events()[-9:]}")
            raise
