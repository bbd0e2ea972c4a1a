"""A page in a real browser that follows a stream by `SSEClient`, and records its callbacks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<title>client</title>
<script>
// Timers and listeners that the client does not remove are counted here.
const alive = { timers: new Set(), listeners: 0 };
for (const [add, remove] of [["setTimeout", "clearTimeout"]]) {
  const [real, clear] = [window[add], window[remove]];
  window[add] = (call, ...rest) => {
    const timer = real(() => { alive.timers.delete(timer); call(); }, ...rest);
    alive.timers.add(timer);
    return timer;
  };
  window[remove] = (timer) => { alive.timers.delete(timer); clear(timer); };
}
for (const target of [window, document]) {
  const [add, remove] = [target.addEventListener, target.removeEventListener];
  const known = new Map();
  target.addEventListener = (name, call, ...rest) => {
    if (!known.has(name)) known.set(name, new Set());
    if (!known.get(name).has(call)) alive.listeners++;
    known.get(name).add(call);
    add.call(target, name, call, ...rest);
  };
  target.removeEventListener = (name, call, ...rest) => {
    if (known.get(name)?.delete(call)) alive.listeners--;
    remove.call(target, name, call, ...rest);
  };
}
</script>
<script type="module">
import { SSEClient } from "/sse-client.js";

window.clients = [];
window.follow = ({ form, asURL, ...options }, starts = true) => {
  if (asURL) options.url = new URL(options.url);
  if (form) {
    options.body = new FormData();
    for (const name in form) options.body.append(name, new Blob([form[name]]), name);
  }
  const record = { contents: [], states: [], details: [], starts: [], resets: [], completes: [],
                 errors: [], heartbeats: 0 };
  const client = new SSEClient({
    ...options,
    onContent: (data, { event }) => record.contents.push([event, data]),
    onStateChange: (state, detail) => { record.states.push(state); record.details.push(detail); },
    onStart: (start) => {
      record.starts.push(start);
      const query = new URL(options.url).searchParams;
      if (query.has("held")) fetch(`/release/${query.get("key")}`, { method: "POST" });
    },
    onReset: ({ reason }) => { record.resets.push(reason); record.contents.length = 0; },
    onComplete: (complete) => record.completes.push(complete),
    onError: ({ code, message, status, traceId }) =>
      record.errors.push({ code, message, status, traceId }),
    onHeartbeat: () => record.heartbeats++,
  });
  if (starts) client.start();
  return window.clients.push({ client, record }) - 1;
};
window.ready = true;
</script>
"""


class Followed:
    """An `SSEClient` in `page` on `url`.

    Args:
        page: a page that has loaded `PAGE`.
        url: of the stream.
        starts: whether it starts at once.
        **options: of the client.
    """

    def __init__(self, page: "Page", url: str, *, starts: bool = True, **options: object) -> None:
        self._page = page
        page.wait_for_function("window.ready")
        self._index: int = page.evaluate(
            "([options, starts]) => follow(options, starts)", [{"url": url, **options}, starts]
        )

    @property
    def record(self) -> dict[str, Any]:
        """The record of its callbacks."""
        record: dict[str, Any] = self._page.evaluate("(at) => clients[at].record", self._index)
        return record

    @property
    def numbers(self) -> list[int]:
        """The data of the app's events, since the last reset."""
        return [data for event, data in self.record["contents"] if event == "message"]

    @property
    def states(self) -> list[str]:
        """The states that it has had; each attempt counts."""
        states: list[str] = self.record["states"]
        return states

    def get(self, name: str) -> Any:
        """Return a property of the client."""
        return self._page.evaluate("([at, name]) => clients[at].client[name]", [self._index, name])

    def call(self, name: str, *arguments: object) -> None:
        """Call a method of the client."""
        self._page.evaluate(
            "([at, name, rest]) => clients[at].client[name](...rest)",
            [self._index, name, arguments],
        )

    def wait(self, condition: str) -> None:
        """Wait until a condition of `record` and `client` holds."""
        try:
            self._page.wait_for_function(
                f"(at) => {{ const {{ record, client }} = clients[at]; return {condition}; }}",
                arg=self._index,
                polling=20,
            )
        except Exception as exc:
            exc.add_note(f"record {self.record}")
            raise

    def wait_for_content(self, count: int) -> None:
        self.wait(f"record.contents.length >= {count}")

    def wait_for_end(self) -> None:
        self.wait("client.state === 'disconnected'")


def left_behind(page: "Page") -> tuple[int, int]:
    """Return the number of timers and listeners of the page's scripts."""
    timers, listeners = page.evaluate("[alive.timers.size, alive.listeners]")
    return timers, listeners
