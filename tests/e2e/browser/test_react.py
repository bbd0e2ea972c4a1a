"""The React hook in React 18 and 19, in strict mode, in a real browser."""

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.browser.app import TICK_SECONDS
from tests.e2e.browser.eventsource_page import visit
from tests.e2e.browser.react_module import PACKAGES, react_module
from tests.e2e.browser.site import Site
from tests.support import needs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<title>react</title>
<script type="importmap">
{ "imports": { "react": "/react.js", "react-dom/client": "/react.js" } }
</script>
<div id="root"></div>
<script type="module">
import { StrictMode, createElement, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useSSEStream } from "/use-sse-stream.js";

window.record = { contents: [], completes: [], renders: 0, mounts: 0, states: new Set() };

function Answer({ options, starts }) {
  const [name, setName] = useState("first");
  const stream = useSSEStream({
    ...options,
    onContent: (text, { data }) => record.contents.push([name, data]),
    onReset: () => (record.contents.length = 0),
    onComplete: (complete) => record.completes.push(complete.reason),
  });
  const { start, stop } = stream;
  useEffect(() => {
    record.mounts++;
    if (starts) start();
    return () => stop();
  }, [start, stop]);
  record.renders++;
  record.states.add(stream.state);
  window.stream = stream;
  window.rename = setName;
  return createElement("button", { onClick: start, id: "start" }, stream.state);
}

let root;
window.mount = (options, starts) => {
  root = createRoot(document.querySelector("#root"));
  root.render(createElement(StrictMode, null, createElement(Answer, { options, starts })));
};
window.unmount = () => root.unmount();
window.ready = true;
</script>
"""


@pytest.fixture(params=["18", "19"])
def react(request: pytest.FixtureRequest, page: "Page", site: Site) -> "Page":
    """Return a page with the hook in a component of React."""
    needs.node()
    if not (PACKAGES / "react-dom-18").is_dir():
        needs.missing("React is not installed: npm install --prefix tests/e2e/clients")
    module = react_module(request.param)
    page.route("**/react.js", lambda it: it.fulfill(body=module, content_type="text/javascript"))
    page.route("**/react-page", lambda it: it.fulfill(body=PAGE, content_type="text/html"))
    visit(page, site.page().replace("/page", "/react-page"))
    page.wait_for_function("window.ready")
    return page


def mount(
    page: "Page", site: Site, *, starts: bool = False, pause: float = TICK_SECONDS, **options: Any
) -> None:
    url = site.url(options.pop("path", "/job"), n=options.pop("n", 20), pause=pause)
    page.evaluate(
        "([options, starts]) => mount(options, starts)", [{"url": url, **options}, starts]
    )
    page.wait_for_selector("#start")


def test_a_component_that_mounts_twice_has_each_word_once(react: "Page", site: Site) -> None:
    mount(react, site, starts=True, pause=0.2)
    # Not before: the cut could meet the connection of the first mount.
    react.wait_for_function("record.contents.length > 2")
    site.proxy.cut(rb"data: \d+\n")
    react.wait_for_function("record.completes.length === 1")
    assert react.evaluate("record.mounts") == 2, "strict mode mounts twice"
    assert react.evaluate("record.contents.map(([, data]) => data)") == list(range(20))
    assert react.evaluate("record.completes") == ["finished"]
    assert react.evaluate("stream.state") == "disconnected"
    seen = set(react.evaluate("[...record.states]"))
    assert seen == {"disconnected", "connecting", "connected", "reconnecting"}
    assert len(site.runs()) <= 2


def test_a_component_calls_the_callbacks_of_its_newest_render(react: "Page", site: Site) -> None:
    mount(react, site, n=60)
    assert react.evaluate("stream.state") == "disconnected", "nothing is opened unasked"
    react.click("#start")  # which passes the event of the click
    react.wait_for_function("record.contents.length > 3")
    react.evaluate("rename('second')")
    react.wait_for_function("record.contents.at(-1)[0] === 'second'")
    assert react.evaluate("stream.isConnected")
    assert react.evaluate("stream.traceId")
    assert react.evaluate("stream.lastMessageTime") > 1e12
    react.wait_for_function("stream.heartbeat !== undefined")
    react.evaluate("stream.stop()")
    react.wait_for_function("stream.state === 'disconnected'")
    wait_until(lambda: site.record()["left"] == 1, "the app does not stop")
    react.click("#start")
    react.wait_for_function("stream.state === 'disconnected' && record.completes.length === 1")
    assert react.evaluate("record.contents.map(([, data]) => data)") == list(range(60))


def test_a_component_resumes_after_the_client_gave_up(react: "Page", site: Site) -> None:
    mount(react, site, n=60, maxReconnectAttempts=0)
    site.proxy.cut(rb"data: 20\n")
    react.click("#start")
    react.wait_for_function("stream.error?.code === 'gave_up'")
    react.click("#start")
    react.wait_for_function("record.completes.length === 1")
    assert react.evaluate("record.contents.map(([, data]) => data)") == list(range(60))
    assert site.runs() == [""]


def test_a_component_that_unmounts_stops_its_stream(react: "Page", site: Site) -> None:
    mount(react, site, n=10_000)
    react.click("#start")
    react.wait_for_function("record.contents.length > 3")
    react.evaluate("unmount()")
    wait_until(lambda: site.record()["left"] == 1, "the app does not stop")
    held = react.evaluate("record.contents.length")
    react.wait_for_timeout(150)
    assert react.evaluate("record.contents.length") == held


def test_an_error_is_in_the_state_and_start_retries(react: "Page", site: Site) -> None:
    mount(react, site, path="/nothing")
    react.click("#start")
    react.wait_for_function("stream.error !== undefined")
    assert react.evaluate("[stream.error.code, stream.error.status]") == ["http", 404]
    url = site.url("/job", n=3)
    react.evaluate("(url) => stream.start({ url })", url)
    react.wait_for_function("record.completes.length === 1")
    assert react.evaluate("stream.error") is None
    assert not react.evaluate("stream.isReconnecting")
    assert react.evaluate("stream.reconnectAttempts") == 0
