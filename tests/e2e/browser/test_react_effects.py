"""The React hook when React runs the effects of a component again, in a real browser.

React does so in strict mode, for an `<Activity>` that is shown again, and after a Fast Refresh. The
state of the component is kept, and with it the text that it has received.
"""

from typing import TYPE_CHECKING, Any

import pytest

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
<script>
// React's side of a Fast Refresh, as its runtime uses it.
window.refresh = {};
window.__REACT_DEVTOOLS_GLOBAL_HOOK__ = {
  supportsFiber: true,
  inject: (renderer) => { refresh.renderer = renderer; return 1; },
  onCommitFiberRoot: (id, root) => (refresh.root = root),
  onCommitFiberUnmount() {},
  onPostCommitFiberRoot() {},
};
</script>
<div id="root"></div>
<script type="module">
import { Activity, Fragment, StrictMode, createElement, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useSSEStream } from "/use-sse-stream.js";

window.record = { mounts: 0, resets: 0, edits: 0, ends: 0 };

function Answer({ options, stops }) {
  const [words, setWords] = useState([]);
  const { start, stop } = useSSEStream({
    ...options,
    onContent: (text) => setWords((words) => [...words, Number(text)]),
    onReset: () => { record.resets++; setWords([]); },
    onComplete: () => record.ends++,
  });
  useEffect(() => {
    record.mounts++;
    start();
    if (stops) return stop;
  }, [start, stop]);
  record.words = words;
  return createElement("p", { id: "answer" }, words.join(" "));
}

function AnswerEdited(props) {
  record.edits++;
  return Answer(props);
}

const root = createRoot(document.querySelector("#root"));
window.show = (props, wrapper, mode) => {
  const types = { strict: [StrictMode], activity: [Activity, { mode }] };
  const [type, more] = types[wrapper] ?? [Fragment];
  root.render(createElement(type, more, createElement(Answer, props)));
};
window.edit = () => {
  const family = { current: AnswerEdited };
  refresh.renderer.setRefreshHandler((type) => (type === Answer ? family : undefined));
  const update = { staleFamilies: new Set(), updatedFamilies: new Set([family]) };
  refresh.renderer.scheduleRefresh(refresh.root, update);
};
window.ready = true;
</script>
"""
WHOLE = list(range(40))


def load(page: "Page", site: Site, version: str, html: str = PAGE) -> None:
    needs.node()
    if not (PACKAGES / "react-dom-18").is_dir():
        needs.missing("React is not installed: npm install --prefix tests/e2e/clients")
    module = react_module(version)
    page.route("**/react.js", lambda it: it.fulfill(body=module, content_type="text/javascript"))
    page.route("**/react-page", lambda it: it.fulfill(body=html, content_type="text/html"))
    visit(page, site.page().replace("/page", "/react-page"))
    page.wait_for_function("window.ready")


class Component:
    """A component that starts a stream in an effect.

    Args:
        page: a page that has loaded `PAGE`.
        site: the server.
        wrapper: `strict`, `activity` or none.
        stops: whether the cleanup of its effect stops the stream.
        **options: of the hook.
    """

    def __init__(
        self, page: "Page", site: Site, wrapper: str = "", *, stops: bool = False, **options: Any
    ) -> None:
        self._page, self._wrapper = page, wrapper
        url = site.url("/job", n=len(WHOLE), pause=0.05)
        self._props = {"options": {"url": url, **options}, "stops": stops}
        self.show()

    def show(self, mode: str = "visible") -> None:
        arguments = [self._props, self._wrapper, mode]
        self._page.evaluate("(all) => show(...all)", arguments)

    def get(self, name: str) -> Any:
        return self._page.evaluate("(name) => record[name]", name)

    def wait(self, condition: str) -> None:
        self._page.wait_for_function(condition, polling=10)

    def assert_whole(self) -> None:
        """Check that the text is whole, each word once."""
        self.wait("record.ends > 0")
        assert self.get("words") == WHOLE
        assert self.get("ends") == 1


VERSIONS = pytest.mark.parametrize("version", ["18", "19"])
STOPS = pytest.mark.parametrize("stops", [False, True], ids=["leaves", "stops"])


@VERSIONS
@STOPS
def test_strict_mode_does_not_double_the_text(
    page: "Page", site: Site, version: str, *, stops: bool
) -> None:
    load(page, site, version)
    component = Component(page, site, "strict", stops=stops)
    component.assert_whole()
    assert component.get("mounts") == 2
    assert stops or site.record()["asked"] == [["GET", 200]], "the app runs once"


@VERSIONS
@STOPS
def test_fast_refresh_does_not_double_the_text(
    page: "Page", site: Site, version: str, *, stops: bool
) -> None:
    load(page, site, version)
    component = Component(page, site, stops=stops)
    component.wait("record.words.length > 3")
    page.evaluate("edit()")
    component.wait("record.edits > 0 && record.mounts === 2")
    component.assert_whole()
    assert component.get("resets") == int(stops)
    assert site.runs() == ["", ""] if stops else [""]


@STOPS
def test_an_activity_that_is_shown_again_starts_again(
    page: "Page", site: Site, *, stops: bool
) -> None:
    load(page, site, "19")
    component = Component(page, site, "activity", stops=stops)
    component.wait("record.words.length > 3")
    component.show("hidden")
    wait_until(lambda: site.record()["left"] == 1, "the app does not stop")
    component.show()
    component.assert_whole()
    assert component.get("resets") == 1
    assert site.runs() == ["", ""]


def test_an_activity_that_keeps_its_event_id_resumes(page: "Page", site: Site) -> None:
    load(page, site, "19")
    component = Component(page, site, "activity", keep="answer")
    component.wait("record.words.length > 3")
    component.show("hidden")
    page.wait_for_timeout(300)
    component.show()
    component.assert_whole()
    assert (component.get("mounts"), component.get("resets")) == (2, 0)
    assert site.runs() == [""]
