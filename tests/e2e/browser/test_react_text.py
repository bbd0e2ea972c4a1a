"""What the callbacks of the React hook receive, in a real browser."""

from typing import TYPE_CHECKING, Any

from tests.e2e.browser.site import Site
from tests.e2e.browser.test_react_effects import load

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<script type="importmap">
{ "imports": { "react": "/react.js", "react-dom/client": "/react.js" } }
</script>
<div id="root"></div>
<script type="module">
import { StrictMode, createElement, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useSSEStream } from "/use-sse-stream.js";

function Search() {
  const [answer, setAnswer] = useState("");
  const [sources, setSources] = useState([]);
  const [error, setError] = useState(null);
  const [heartbeatData, setHeartbeatData] = useState(null);
  const { start, stop, isConnected, traceId } = useSSEStream({
    query: "What is machine learning?",
    onContent: (content) => setAnswer(prev => prev + content),
    onComplete: (data) => setSources(data.sources),
    onError: (error) => setError(error),
    onHeartbeat: (data) => setHeartbeatData(data),
    silenceThreshold: 15,
    maxReconnectAttempts: 3
  });
  useEffect(() => start(), [start]);
  window.search = { answer, sources, error, heartbeatData, isConnected, traceId };
  return createElement("p", null, answer);
}

window.contents = [];
window.errors = [];
function Texts({ url }) {
  const stream = useSSEStream({
    url,
    onContent: (text, { event, data }) => contents.push([text, event, data]),
    onComplete: (complete) => (window.complete = complete),
    onError: ({ code, message, data }) => errors.push([code, message, data]),
  });
  window.texts = stream;
  useEffect(() => stream.start(), [stream.start]);
}

const root = createRoot(document.querySelector("#root"));
const show = (element) => root.render(createElement(StrictMode, null, element));
window.mountSearch = () => show(createElement(Search));
window.mountTexts = (url) => show(createElement(Texts, { url }));
window.ready = true;
</script>
"""


def test_the_hook_appends_text_and_reports_the_fields_of_the_end(page: "Page", site: Site) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    load(page, site, "19", PAGE)
    site.proxy.cut(rb"machine")
    page.evaluate("mountSearch()")
    page.wait_for_function(
        "search.answer.endsWith('learning? ') && search.heartbeatData?.trace_id === search.traceId"
    )
    page.evaluate("fetch('/release/search', { method: 'POST' })")
    page.wait_for_function("search.sources.length > 0 && !search.isConnected")
    search = page.evaluate("search")
    assert search["answer"] == "What is machine learning? "
    assert search["sources"] == ["a", "b"]
    assert search["error"] is None
    assert search["heartbeatData"]["trace_id"] == search["traceId"]
    streams = [url.partition("/stream/")[2] for url in requests if "/stream/" in url]
    assert streams == ["search?query=What+is+machine+learning%3F"] * 2


def texts(page: "Page", site: Site, *events: str) -> list[list[Any]]:
    """Return the calls of `onContent` for the events of a server."""
    load(page, site, "19", PAGE)
    body = "".join(f"{event}\n\n" for event in events)
    page.route(
        "**/texts", lambda it: it.fulfill(body=body, headers={"content-type": "text/event-stream"})
    )
    page.evaluate("(url) => mountTexts(url)", site.page().replace("/page", "/texts"))
    page.wait_for_function("window.complete")
    calls: list[list[Any]] = page.evaluate("contents")
    return calls


def test_the_text_of_an_event_is_found_in_its_data(page: "Page", site: Site) -> None:
    data = {
        "plain": "plain",
        '"quoted"': "quoted",
        '{"content": "a"}': "a",
        '{"id": 1, "delta": {"text": "b"}}': "b",
        '{"type": "chunk", "data": {"token": "c"}}': "c",
        '{"content": ""}': "",
        '{"word": "to"}': '{"word": "to"}',
        "4": "4",
        "null": "null",
        "[1]": "[1]",
        "[" * 99 + "]" * 99: "[" * 99 + "]" * 99,
    }
    calls = texts(page, site, *(f"data: {text}" for text in data))
    assert [text for text, _, _ in calls] == list(data.values())
    assert calls[6] == ['{"word": "to"}', "message", {"word": "to"}]


def test_a_complete_of_the_app_is_content_only_if_other_events_follow(
    page: "Page", site: Site
) -> None:
    complete = "event: complete\ndata: "
    calls = texts(
        page,
        site,
        "data: a",
        complete + '{"text": "b"}',
        "data: c",
        complete + '{"reason": "x", "n": 1}',
    )
    assert [text for text, _, _ in calls] == ["a", "b", "c"]
    end = page.evaluate("complete")
    assert (end["reason"], end["incomplete"], end["n"]) == ("finished", False, 1)
    assert end["data"] == {"reason": "x", "n": 1}


def test_an_error_of_the_app_is_no_text(page: "Page", site: Site) -> None:
    error = "event: error\ndata: "
    data = ("no tokens", '{"message": "a"}', '{"error": {"message": "b"}}', '{"code": 7}')
    calls = texts(page, site, "data: a", *(error + text for text in data))
    assert [text for text, _, _ in calls] == ["a"]
    errors = page.evaluate("errors")
    assert [message for _, message, _ in errors] == ["no tokens", "a", "b", '{"code": 7}']
    assert errors[-1] == ["app_error", '{"code": 7}', {"code": 7}]
    page.wait_for_function("texts.state === 'disconnected'")
    assert page.evaluate("[texts.error.code, complete.reason]") == ["app_error", "finished"]
