"""A resume endpoint for pages of other origins, with preflights and cookies."""

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.browser.eventsource_page import Follower, visit
from tests.e2e.browser.site import Site, reasons
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

ACROSS = pytest.mark.parametrize("cors", ["inside", "outside"])
FETCH = """async ([url, method, id]) => {
    const headers = id ? {"X-Stream-ID": id} : {};
    try {
        const response = await fetch(url, {method, headers, credentials: "include"});
        const text = await response.text();
        return [response.status, response.headers.get("x-stream-id"), text];
    } catch (error) {
        return [0, null, error.name];
    }
}"""
BLOCKED = [0, None, "TypeError"]


def fetch(page: "Page", url: str, method: str = "GET", public_id: str = "") -> list[Any]:
    got: list[Any] = page.evaluate(FETCH, [url, method, public_id])
    return got


def be(page: "Page", visitor: str) -> None:
    page.evaluate("(name) => { document.cookie = 'visitor=' + name }", visitor)


@ACROSS
def test_a_page_of_another_origin_reads_and_stops_its_stream_by_public_id(
    site: Site, page: "Page", cors: str
) -> None:
    visit(page, site.other_page())
    be(page, "ada")
    first = Follower(page, site.url(f"/{cors}/job", n=1000), credentials=True)
    first.wait_for("message", 3)
    public_id = first.events("start")[0].json["stream_id"]
    live = site.url(f"/{cors}/chats/any/live")
    assert fetch(page, live, "HEAD", public_id) == [200, public_id, ""]
    be(page, "eve")
    for method in ("GET", "HEAD", "DELETE"):
        assert fetch(page, live, method, public_id) == [204, None, ""]
    be(page, "ada")
    assert fetch(page, live, "DELETE", public_id) == [204, None, ""]
    first.wait_until_closed()
    assert reasons(first) == ["cancelled"]
    wait_until(lambda: site.record()["left"] >= 1, "the app does not stop")
    preflights = [status for method, status in site.record()["asked"] if method == "OPTIONS"]
    assert preflights
    assert set(preflights) == {200}


@ACROSS
def test_a_page_that_cors_does_not_allow_reaches_no_stream(
    site: Site, page: "Page", cors: str
) -> None:
    visit(page, site.other_page("stranger.localhost"))
    live = site.url(f"/{cors}/chats/any/live")
    for method in ("GET", "HEAD", "DELETE"):
        assert fetch(page, live, method, "0" * 32) == BLOCKED
    assert {method for method, _ in site.record()["asked"]} == {"OPTIONS"}


def test_without_cors_the_endpoint_serves_the_recorded_origin_only(
    site: Site, page: "Page"
) -> None:
    visit(page, site.other_page())
    be(page, "ada")
    first = Follower(page, site.url(f"/named/allowing/{site.key}", n=1000), credentials=True)
    first.wait_for("message", 3)
    public_id = first.events("start")[0].json["stream_id"]
    live = site.url(f"/named/chats/{site.key}/live")
    assert fetch(page, live, "HEAD")[0] == 200
    assert fetch(page, live, "HEAD", public_id) == BLOCKED  # needs a preflight
    other = page.context.new_page()
    visit(other, site.other_page("friend.localhost"))
    be(other, "ada")
    assert fetch(other, live, "HEAD") == BLOCKED
    other.close()
    assert fetch(page, live, "POST") == [204, None, ""]
    first.wait_until_closed()
    assert reasons(first) == ["cancelled"]
    assert ["OPTIONS", 204] in site.record()["asked"]
