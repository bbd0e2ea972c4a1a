"""The permissions to follow, to cancel and to find a stream by name, as a page sees them."""

from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser.eventsource_page import Follower, visit
from tests.e2e.browser.site import (
    Site,
    assert_resumed,
    assert_whole,
    reasons,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Other origins


ACROSS = pytest.mark.parametrize("cors", ["inside", "outside"])
VISITOR = "document.cookie = 'visitor=' + {!r}"


@ACROSS
@pytest.mark.parametrize("credentials", [False, True])
def test_a_page_of_another_origin_resumes(
    site: Site, page: "Page", cors: str, *, credentials: bool
) -> None:
    visit(page, site.other_page())
    page.evaluate(VISITOR.format("ada"))
    site.proxy.cut(rb"data: 5", rb"data: 12")
    follower = Follower(page, site.url(f"/{cors}/job"), credentials=credentials)
    follower.wait_until_closed()
    assert_whole(follower.events(), 20)
    assert_resumed(follower)
    assert reasons(follower) == ["finished"]
    assert site.runs() == [""]


@ACROSS
def test_a_page_of_another_origin_is_stopped_after_the_end(
    site: Site, page: "Page", cors: str
) -> None:
    visit(page, site.other_page())
    follower = Follower(page, site.url(f"/{cors}/job"), closes_at=())
    follower.wait_until_closed()
    assert_whole(follower.events(), 20)
    assert site.record()["asked"] == [["GET", 200], ["GET", 204]]


@ACROSS
def test_a_client_without_the_cookie_that_opened_a_stream_cannot_follow_it(
    site: Site, page: "Page", cors: str
) -> None:
    visit(page, site.other_page())
    page.evaluate(VISITOR.format("ada"))
    first = Follower(page, site.url(f"/{cors}/job", n=50), credentials=True)
    first.wait_for("message", 3)
    url = site.url(f"/{cors}/job", n=50, last_event_id=first.cursor)
    for name, credentials in (("", False), ("eve", True)):
        page.evaluate(VISITOR.format(name))
        thief = Follower(page, url, credentials=credentials)
        thief.wait_for("message")
        thief.close()
        opening = thief.events()[0]
        assert (opening.type, opening.json["reason"]) == ("reset", "gone")
        assert opening.place[0] != first.events()[0].place[0]
        assert thief.numbers()[0] == 0
    assert len(site.runs()) == 3


@ACROSS
def test_an_origin_that_may_not_read_the_app_may_not_read_a_log(
    site: Site, page: "Page", cors: str
) -> None:
    visit(page, site.other_page())
    first = Follower(page, site.url(f"/{cors}/job", n=50))
    first.wait_for("message", 3)
    cursor = first.cursor
    visit(page, site.other_page("stranger.localhost"))
    thief = Follower(page, site.url(f"/{cors}/job", n=5, last_event_id=cursor))
    thief.wait_until_closed()
    assert thief.events() == []


@pytest.mark.parametrize(("cors", "opening"), [("inside", "reset"), ("outside", "start")])
def test_an_origin_that_may_read_the_app_reads_a_log_if_cors_is_outside_of_us(
    site: Site, page: "Page", cors: str, opening: str
) -> None:
    visit(page, site.other_page())
    first = Follower(page, site.url(f"/{cors}/job", n=50))
    first.wait_for("message", 3)
    cursor = first.cursor
    visit(page, site.other_page("friend.localhost"))
    second = Follower(page, site.url(f"/{cors}/job", n=50, last_event_id=cursor))
    second.wait_for("message")
    second.close()
    assert second.events()[0].type == opening
    assert (second.events("message")[0].place[0] == cursor[:22]) is (cors == "outside")


# Cancelling

CANCELS = {
    "by POST": "([url, id]) => fetch(url + '&sse_cancel', {method: 'POST', body: id})",
    "by POST with a header": (
        "([url, id]) => fetch(url + '&sse_cancel', "
        "{method: 'POST', headers: {'Last-Event-ID': id}})"
    ),
    "by DELETE": "([url, id]) => fetch(url, {method: 'DELETE', headers: {'Last-Event-ID': id}})",
}


def cancel(page: "Page", how: str, url: str, cursor: str) -> int:
    status: int = page.evaluate(
        f"(asked) => ({CANCELS[how]})(asked).then((response) => response.status)", [url, cursor]
    )
    return status


def wait_until_left(site: Site, runs: int) -> None:
    wait_until(lambda: site.record()["left"] >= runs, "the app does not stop")


@pytest.mark.parametrize(
    ("how", "places"), [*((how, []) for how in CANCELS), ("by POST", [rb"data: 2"])]
)
def test_a_page_cancels_its_job(site: Site, page: "Page", how: str, places: list[bytes]) -> None:
    visit(page, site.page())
    url = site.url("/job", n=1000)
    site.proxy.cut(*places)
    follower = Follower(page, url, closes_at=())
    follower.wait_for("message", 5)
    assert cancel(page, how, url, follower.cursor) == 204
    follower.wait_until_closed()
    assert reasons(follower) == ["cancelled"]
    assert_whole(follower.events(), len(follower.numbers()))
    assert cancel(page, how, url, follower.events("message")[0].last_event_id) == 204
    wait_until_left(site, 1)
    assert site.runs() == [""]


@ACROSS
def test_a_page_of_another_origin_cancels_its_job_without_a_preflight(
    site: Site, page: "Page", cors: str
) -> None:
    visit(page, site.other_page())
    url = site.url(f"/{cors}/job", n=1000)
    follower = Follower(page, url)
    follower.wait_for("message", 5)
    assert cancel(page, "by POST", url, follower.cursor) == 204
    follower.wait_until_closed()
    assert reasons(follower) == ["cancelled"]
    wait_until_left(site, 1)
    assert site.record()["asked"] == [["GET", 200], ["POST", 204]]


# Streams with a name


def test_a_reloaded_page_follows_its_chat_from_the_beginning(site: Site, page: "Page") -> None:
    visit(page, site.page())
    page.evaluate(VISITOR.format("ada"))
    first = Follower(page, site.url(f"/named/chats/{site.key}", n=40, pause=0.06))
    first.wait_for("message", 5)
    page.reload()
    second = Follower(page, site.url(f"/named/chats/{site.key}/live"), closes_at=())
    second.wait_for("message", 5)
    site.proxy.cut(rb"\ndata: \d", rb"data: 39", rb"event: compl")
    second.wait_until_closed()
    assert_whole(second.events(), 40)
    assert reasons(second) == ["finished"]
    assert site.runs() == [""]


def test_a_chat_without_an_answer_stops_its_followers(site: Site, page: "Page") -> None:
    visit(page, site.page())
    page.evaluate(VISITOR.format("ada"))
    follower = Follower(page, site.url(f"/named/chats/{site.key}/live"))
    follower.wait_until_closed()
    assert follower.events() == []
    assert site.record()["asked"] == [["GET", 204]]


def test_another_visitor_cannot_follow_a_chat(site: Site, page: "Page") -> None:
    visit(page, site.page())
    page.evaluate(VISITOR.format("ada"))
    first = Follower(page, site.url(f"/named/chats/{site.key}", n=40))
    first.wait_for("message", 3)
    page.evaluate(VISITOR.format("eve"))
    thief = Follower(page, site.url(f"/named/chats/{site.key}/live"))
    thief.wait_until_closed()
    assert thief.events() == []
    first.wait_until_closed()
    assert_whole(first.events(), 40)
