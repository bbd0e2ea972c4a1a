"""When `SSEClient` reconnects, in a real browser: wakes, outages, clocks and forms."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser.client_page import Followed
from tests.e2e.browser.conftest import Start, site_of
from tests.e2e.browser.eventsource_page import visit
from tests.e2e.browser.site import UVICORN, Site
from tests.e2e.browser.test_client import assert_finished, job
from tests.e2e.browser.thread_proxy import STALLED

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page, Route


@pytest.fixture
def slow(servers: Start) -> Iterator[Site]:
    """A server whose clients reconnect after an hour, unless an event of the page wakes them."""
    yield from site_of(*servers(UVICORN, {"SSE_RETRY_MS": "3600000"}))


# Wakes


@pytest.fixture
def devtools(page: "Page") -> "CDPSession":
    return page.context.new_cdp_session(page)


def set_offline(devtools: "CDPSession", *, offline: bool) -> None:
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    devtools.send("Network.emulateNetworkConditions", {"offline": offline, **conditions})


def test_a_page_that_was_offline_reconnects_without_a_pause(
    slow: Site, page: "Page", devtools: "CDPSession"
) -> None:
    visit(page, slow.client())
    devtools.send("Network.enable")
    followed = Followed(page, job(slow, n=50))
    followed.wait_for_content(5)
    set_offline(devtools, offline=True)
    slow.proxy.cut(rb"\ndata: \d")
    followed.wait("client.state === 'reconnecting'")
    page.wait_for_timeout(300)
    set_offline(devtools, offline=False)
    followed.wait("record.starts.length === 2")
    assert_finished(followed, 50)
    assert slow.runs() == [""]


def test_a_page_that_becomes_visible_reconnects_without_a_pause(slow: Site, page: "Page") -> None:
    visit(page, slow.client())
    slow.proxy.cut(rb"data: 5\n")
    followed = Followed(page, job(slow, n=30))
    followed.wait("client.state === 'reconnecting'")
    other = page.context.new_page()  # in a tab in front
    other.bring_to_front()
    page.evaluate(SEEN, "hidden")
    page.wait_for_timeout(200)
    assert followed.get("state") == "reconnecting"
    page.evaluate(SEEN, "visible")
    other.close()
    assert_finished(followed, 30)
    assert slow.runs() == [""]


SEEN = """(state) => {
    Object.defineProperty(document, "hidden", { value: state === "hidden", configurable: true });
    document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
}"""
"""Playwright keeps all pages visible, so that the browser's own event has to be played."""


def test_a_page_that_was_frozen_receives_the_whole_answer(
    site: Site, page: "Page", devtools: "CDPSession"
) -> None:
    visit(page, site.client())
    followed = Followed(page, job(site, n=60))
    followed.wait_for_content(5)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    time.sleep(1)
    site.proxy.cut(rb"\ndata: \d")
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    assert_finished(followed, 60)
    site.proxy.discard_cuts()
    assert site.runs() == [""]


# Outages


@pytest.mark.parametrize("away", ["offline", "hidden"])
def test_attempts_do_not_count_while_the_page_is_away(
    site: Site, page: "Page", devtools: "CDPSession", away: str
) -> None:
    visit(page, site.client())
    devtools.send("Network.enable")
    followed = Followed(page, job(site, n=60), maxReconnectAttempts=1, reconnectDelay=1)
    followed.wait_for_content(5)
    if away == "hidden":
        page.evaluate(SEEN, "hidden")
        page.route("**/job?*", lambda route: route.abort())
    set_offline(devtools, offline=away == "offline")
    site.proxy.cut(rb"\ndata: \d")
    followed.wait("record.states.filter((state) => state === 'reconnecting').length > 4")
    assert followed.get("reconnectAttempts") == 0
    page.unroute_all()
    set_offline(devtools, offline=False)
    page.evaluate(SEEN, "visible")
    assert_finished(followed, 60)
    assert site.runs() == [""]


def test_a_proxy_that_answers_500_for_a_dead_server_is_asked_again(
    site: Site, page: "Page"
) -> None:
    def fail(route: "Route") -> None:
        statuses.append(500)
        route.fulfill(status=500, body="Internal Server Error")

    statuses: list[int] = []
    visit(page, site.client())
    followed = Followed(page, job(site, n=60, pause=0.05), reconnectDelay=1)
    followed.wait_for_content(1)
    page.route("**/job?*", fail, times=2)
    site.proxy.cut(rb"\ndata: \d")
    assert_finished(followed, 60)
    assert statuses == [500, 500]
    assert site.runs() == [""]


def test_a_clock_that_is_set_back_does_not_stall_the_client(site: Site, page: "Page") -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n", how=STALLED)
    followed = Followed(page, job(site), silenceThreshold=0.7)
    followed.wait_for_content(1)
    page.evaluate("{ const now = Date.now; Date.now = () => now() - 3_600_000; }")
    assert_finished(followed, 20)
    assert site.runs() == [""]


# Requests


@pytest.mark.parametrize(("size", "by"), [(100_000, "POST"), (2_000_000, "GET")])
def test_an_upload_is_resumed_and_runs_once(site: Site, page: "Page", size: int, by: str) -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n", rb"data: 12\n")
    form = {"question": "?", "a.pdf": "x" * size}
    followed = Followed(page, job(site), method="POST", form=form)
    assert_finished(followed, 20)
    record = site.record()
    assert record["asked"] == [["POST", 200], [by, 200], [by, 200]]
    assert record["runs"] == [""]


def test_a_reloaded_page_resumes_the_same_url_object(site: Site, page: "Page") -> None:
    visit(page, site.client())
    url = job(site, n=40)
    before = Followed(page, url, keep="answer", asURL=True)
    before.wait_for_content(5)
    page.reload()
    after = Followed(page, url, keep="answer", asURL=True)
    assert_finished(after, 40)
    assert site.runs() == [""]


def test_an_event_id_is_in_no_address_of_the_own_origin(site: Site, page: "Page") -> None:
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n")
    followed = Followed(page, job(site))
    assert_finished(followed, 20)
    assert [start["resumed"] for start in followed.record["starts"]] == [False, True]
    streams = [address for address in addresses if "/job" in address]
    assert streams == [job(site)] * 2
