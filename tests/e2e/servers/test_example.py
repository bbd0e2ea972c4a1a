"""The example as a visitor uses it: by its command, by HTTP, and in Chromium."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support import needs
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import running_process, until_logged
from tests.support.waiting import HANG_SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

QUESTION = "What is an event loop?"


ENVIRON = {
    "SSE_HEARTBEAT_INTERVAL": "0.5",
    "SSE_STREAM_MAX_SECONDS": "600",
    "SSE_RETRY_MS": "200",
}


@contextmanager
def example(directory: Path, **environ: str) -> Iterator[str]:
    """Run the example by its command, and give its address."""
    command = [sys.executable, "-m", "example_app", "--port", "0"]
    with running_process(command, directory / "example.log", ENVIRON | environ) as (_, log):
        yield until_logged(log, r"http://\S+?:\d+")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with example(tmp_path_factory.mktemp("example")) as address:
        yield address


def events_of(response: httpx.Response) -> list[Event]:
    assert response.headers["content-type"].startswith("text/event-stream")
    return EventParser().feed(response.content)


def test_stream_search_as_an_eventsource(url: str) -> None:
    response = httpx.get(
        f"{url}/stream/search",
        params={"query": QUESTION},
        headers=EVENTSOURCE,
        timeout=HANG_SECONDS,
    )
    names = [event.event for event in events_of(response)]
    assert names[0] == "start"
    assert names[-1] == "complete"
    assert names.count("complete") == 1
    assert set(names) == {"start", "heartbeat", "content_chunk", "complete"}
    beats = [json.loads(event.data) for event in events_of(response) if event.event == "heartbeat"]
    assert beats[-1]["total_chunks"] > 0
    # The app counts a token before it sends the chunk.
    assert beats[-1]["total_tokens"] - beats[-1]["total_chunks"] in (0, 1)


def test_stream_search_as_a_plain_client(url: str) -> None:
    response = httpx.get(f"{url}/stream/search", params={"query": QUESTION}, timeout=HANG_SECONDS)
    assert {event.event for event in events_of(response)} == {"content_chunk", "complete"}
    assert b"\nid:" not in response.content
    assert response.headers["x-trace-id"]


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json, text/event-stream"])
def test_post_search_as_a_plain_client(url: str, accept: str) -> None:
    response = httpx.post(
        f"{url}/search", json={"query": QUESTION}, headers={"accept": accept}, timeout=HANG_SECONDS
    )
    names = [event.event for event in events_of(response)]
    assert sorted(set(names), key=names.index) == ["token", "citation", "done"]


def test_post_search_as_a_client_that_wants_named_events(url: str) -> None:
    accept = {"accept": "text/event-stream;events=named"}
    response = httpx.post(
        f"{url}/search", json={"query": QUESTION}, headers=accept, timeout=HANG_SECONDS
    )
    names = [event.event for event in events_of(response) if event.event != "heartbeat"]
    assert names[0] == "start"
    assert names[-2:] == ["done", "complete"]


def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        log = tmp_path / "second.log"
        with running_process([sys.executable, "-m", "example_app", "--port", str(port)], log) as (
            process,
            _,
        ):
            assert process.wait(HANG_SECONDS) == 1
    assert log.read_text().count("\n") == 1
    assert str(port) in log.read_text()


# In Chromium


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    chromium, playwright = needs.chromium(), needs.module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        launched = driver.chromium.launch(executable_path=chromium, args=quiet)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: "Browser", url: str) -> Iterator["Page"]:
    complaints: list[str] = []
    opened = browser.new_page()
    opened.set_default_timeout(HANG_SECONDS * 1000)

    def complain(message: "ConsoleMessage") -> None:
        expected = re.search("INCOMPLETE_CHUNKED|status of 401", message.text)  # by a test below
        if message.type in {"error", "warning"} and expected is None:
            complaints.append(message.text)

    opened.on("console", complain)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(url)
    yield opened
    opened.close()
    assert complaints == []


def ask(page: "Page", question: str) -> None:
    page.fill("#query", question)
    page.press("#query", "Enter")


def test_the_page_streams_a_cited_answer_with_its_trace_id(page: "Page") -> None:
    ask(page, QUESTION)
    page.wait_for_selector("#sources a")
    assert "event loop" in page.inner_text("#answer").lower()
    assert re.fullmatch(r"[0-9a-f]{32}", page.inner_text("#trace-id").strip())
    assert re.fullmatch(r"[0-9a-f]{32}", page.inner_text("#stream-id").strip())
    assert "content_chunk" in (page.text_content("#debug") or "")
    assert "disconnected" in page.inner_text("#state").lower()


def test_the_page_shows_heartbeats_and_the_remaining_time(page: "Page") -> None:
    page.fill("#delay", "400")
    ask(page, QUESTION)
    page.wait_for_function("() => document.querySelector('#heartbeats').textContent >= 3")
    shown = page.inner_text("#remaining")
    assert re.search(r"\d", shown)
    page.wait_for_function(
        "shown => document.querySelector('#remaining').textContent != shown", arg=shown
    )
    page.click("#stop")
    page.wait_for_selector("#state[data-state=disconnected]")


def test_the_page_shows_that_the_cap_has_ended_an_answer(page: "Page", tmp_path: Path) -> None:
    with example(tmp_path, SSE_STREAM_MAX_SECONDS="1", SSE_CAP_ACTION="complete") as url:
        page.goto(url)
        see_a_capped_answer(page)


def see_a_capped_answer(page: "Page") -> None:
    page.fill("#delay", "2000")
    ask(page, QUESTION)
    page.wait_for_selector("#notice:visible")
    page.wait_for_selector("#state[data-state=disconnected]")
    assert "duration_cap" in (page.text_content("#debug") or "")


HAS_WORDS = "document.querySelector('#answer').textContent.split(' ').length > count"


def wait_for_words(page: "Page", count: int) -> None:
    page.wait_for_function(f"count => {HAS_WORDS}", arg=count)


def cut_after_words(page: "Page", count: int) -> None:
    """Click in the page itself, since the answer can end before a click from outside arrives."""
    click = "(document.querySelector('#cut').click(), true)"
    page.wait_for_function(f"count => {HAS_WORDS} && {click}", arg=count)


def test_no_word_is_lost_if_the_page_cuts_its_connections(page: "Page", url: str) -> None:
    page.fill("#delay", "40")
    ask(page, QUESTION)
    for cuts in (1, 2):
        cut_after_words(page, 8 * cuts)
        page.wait_for_selector(f"#connections:text-is('{cuts + 1}')")
    page.wait_for_selector("#answer[data-state=complete]")
    response = httpx.get(f"{url}/stream/search?delay_ms=0", params={"query": QUESTION})
    chunks = [json.loads(event.data).get("content", "") for event in events_of(response)]
    assert page.text_content("#answer") == re.sub(r"\[(\d+)\]", r"\1", "".join(chunks))
    assert page.inner_text("#connections") == "3"
    assert "event: start" in (page.text_content("#debug") or "")
    assert "event: reset" not in (page.text_content("#debug") or "")


def test_a_reloaded_page_shows_the_whole_answer(page: "Page") -> None:
    page.fill("#delay", "40")
    ask(page, QUESTION)
    wait_for_words(page, 10)
    begun = page.text_content("#answer") or ""
    stream = page.inner_text("#stream-id")
    page.reload()
    page.wait_for_selector("#answer[data-state=complete]")
    assert (page.text_content("#answer") or "").startswith(begun)
    assert page.inner_text("#stream-id") == stream
    assert page.input_value("#query") == QUESTION


def test_a_stopped_answer_can_be_requested_again(page: "Page") -> None:
    page.fill("#delay", "80")
    ask(page, QUESTION)
    wait_for_words(page, 5)
    page.focus("#stop")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer[data-state=stopped]")
    assert page.inner_text("#outcome") == "Stopped"
    assert page.evaluate("document.activeElement.id") == "start", "the focus is not lost"
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer[data-state=complete]")


def test_a_refused_request_is_reported_and_can_be_repeated(page: "Page") -> None:
    page.route("**/stream/search**", lambda route: route.fulfill(status=401, body="no"))
    ask(page, QUESTION)
    page.wait_for_selector("#retry:visible")
    assert "401" in page.inner_text("#notice")
    assert (page.inner_text("#outcome"), page.inner_text("#retry")) == ("Failed", "Ask again")
    page.unroute("**/stream/search**")
    page.fill("#delay", "0")
    page.click("#retry")
    page.wait_for_selector("#answer[data-state=complete]")
    assert page.inner_text("#outcome") == "Done"
    assert page.is_hidden("#notice")


def test_a_citation_mark_in_the_answer_opens_its_source(page: "Page") -> None:
    page.fill("#delay", "0")
    ask(page, QUESTION)
    page.wait_for_selector("#answer[data-state=complete]")
    mark = page.locator("#answer .cite").last
    number = mark.inner_text()
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = false")
    mark.click()
    assert page.get_attribute(f"#source-{number}", "open") is not None
    assert page.is_visible(f"#source-{number} a")


def test_the_trace_id_is_copied(page: "Page") -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#delay", "0")
    ask(page, QUESTION)
    page.wait_for_selector("#answer[data-state=complete]")
    page.click("#copy")
    page.wait_for_selector("#copy:text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#trace-id")


def test_a_screen_reader_announces_whole_sentences_once(page: "Page") -> None:
    page.fill("#delay", "20")
    ask(page, QUESTION)
    page.wait_for_selector("#answer[data-state=complete]")
    sentences = page.locator("#spoken p").all_text_contents()
    assert sentences[-1] == "The answer is complete."
    assert all(re.search(r"[.!?:]\W*$|^connected|^asking", text) for text in sentences)
    assert len(sentences) == len(set(sentences))
    assert page.get_attribute("#answer", "aria-live") is None


def test_the_page_fits_a_narrow_screen(page: "Page") -> None:
    page.fill("#delay", "0")
    ask(page, QUESTION)
    page.wait_for_selector("#answer[data-state=complete]")
    for width in (320, 360, 768):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_answer_is_visible_on_a_phone_while_the_connection_is_cut(page: "Page") -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.fill("#delay", "100")
    ask(page, QUESTION)
    cut_after_words(page, 8)
    page.wait_for_selector("#state[data-state=reconnecting]")
    visible = "id => { const at = document.querySelector(id).getBoundingClientRect();"
    visible += " return at.top >= 0 && at.bottom <= innerHeight; }"
    assert page.evaluate(visible, "#cut")
    top = page.evaluate("document.querySelector('#answer').getBoundingClientRect().top")
    assert 0 < top < 844 / 2
    shown = page.inner_text("#state-detail")
    page.wait_for_function(
        "shown => document.querySelector('#state-detail').textContent != shown", arg=shown
    )
    page.wait_for_selector("#answer[data-state=complete]")


def test_frames_are_shown_on_request(page: "Page") -> None:
    page.fill("#delay", "0")
    ask(page, QUESTION)
    page.wait_for_selector("#answer[data-state=complete]")
    assert page.is_hidden("#debug")
    page.focus("#frames")
    page.keyboard.press("Enter")
    assert "content_chunk" in page.inner_text("#debug")


def test_the_page_can_be_used_by_keyboard_alone(page: "Page") -> None:
    page.focus("#query")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("Space")
    page.wait_for_selector("#sources a")
