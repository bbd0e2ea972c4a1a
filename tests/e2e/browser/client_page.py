"""A page in a real browser that follows a stream by our client, and keeps all that it is told."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<title>client</title>
<script>
// What the client leaves behind would be seen here.
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
  const heard = new Map();
  target.addEventListener = (name, call, ...rest) => {
    if (!heard.has(name)) heard.set(name, new Set());
    if (!heard.get(name).has(call)) alive.listeners++;
    heard.get(name).add(call);
    add.call(target, name, call, ...rest);
  };
  target.removeEventListener = (name, call, ...rest) => {
    if (heard.get(name)?.delete(call)) alive.listeners--;
    remove.call(target, name, call, ...rest);
  };
}
</script>
<script type="module">
import { SSEClient } from "/sse-client.js";

window.clients = [];
window.follow = (options, starts = true) => {
  const told = { contents: [], states: [], details: [], starts: [], resets: [], completes: [],
                 errors: [], heartbeats: 0 };
  const client = new SSEClient({
    ...options,
    onContent: (data, { event }) => told.contents.push([event, data]),
    onStateChange: (state, detail) => { told.states.push(state); told.details.push(detail); },
    onStart: (start) => told.starts.push(start),
    onReset: ({ reason }) => { told.resets.push(reason); told.contents.length = 0; },
    onComplete: (complete) => told.completes.push(complete),
    onError: ({ code, message, status, traceId }) =>
      told.errors.push({ code, message, status, traceId }),
    onHeartbeat: () => told.heartbeats++,
  });
  if (starts) client.start();
  return window.clients.push({ client, told }) - 1;
};
window.ready = true;
</script>
"""


class Followed:
    """An `SSEClient` in `page` on `url`.

    Args:
        page: one that was served `PAGE`.
        url: what it asks for.
        starts: whether it begins at once.
        **options: those of the client.
    """

    def __init__(self, page: "Page", url: str, *, starts: bool = True, **options: object) -> None:
        self._page = page
        page.wait_for_function("window.ready")
        self._index: int = page.evaluate(
            "([options, starts]) => follow(options, starts)", [{"url": url, **options}, starts]
        )

    @property
    def told(self) -> dict[str, Any]:
        """All that it has told."""
        told: dict[str, Any] = self._page.evaluate("(at) => clients[at].told", self._index)
        return told

    @property
    def numbers(self) -> list[int]:
        """The data of the app's events, since the last reset."""
        return [data for event, data in self.told["contents"] if event == "message"]

    @property
    def states(self) -> list[str]:
        """The states that it has gone through; each attempt tells its own."""
        states: list[str] = self.told["states"]
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
        """Wait until a condition of `told` and `client` holds."""
        try:
            self._page.wait_for_function(
                f"(at) => {{ const {{ told, client }} = clients[at]; return {condition}; }}",
                arg=self._index,
                polling=20,
            )
        except Exception as exc:
            exc.add_note(f"told {self.told}")
            raise

    def wait_for_content(self, count: int) -> None:
        self.wait(f"told.contents.length >= {count}")

    def wait_for_end(self) -> None:
        self.wait("client.state === 'disconnected'")


def left_behind(page: "Page") -> tuple[int, int]:
    """Tell how many timers and listeners the page's scripts have left."""
    timers, listeners = page.evaluate("[alive.timers.size, alive.listeners]")
    return timers, listeners
