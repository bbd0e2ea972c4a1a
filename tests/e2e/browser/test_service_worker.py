"""A page whose requests a service worker responds to. Chromium sends no event id with them.

By default the middleware ends no connection for its client to resume, so that an answer arrives
once.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser.client_page import Followed
from tests.e2e.browser.eventsource_page import CLOSED, Follower, visit
from tests.e2e.browser.site import Site, assert_resumed, assert_whole, reasons

if TYPE_CHECKING:
    from playwright.sync_api import Page

REGISTER = """async (script) => {
  await navigator.serviceWorker.register(script);
  await navigator.serviceWorker.ready;
}"""
UNREGISTER = """async () => {
  for (const each of await navigator.serviceWorker.getRegistrations()) await each.unregister();
}"""


def visit_with_worker(page: "Page", address: str, script: str = "worker.js") -> None:
    """Load a page that a service worker controls."""
    head, _, name = address.rpartition("/")
    for _ in range(2):  # a worker controls the pages that are loaded after its start
        visit(page, f"{head}/worked/{name}")
        page.evaluate(REGISTER, script)
    assert page.evaluate("navigator.serviceWorker.controller !== null")


@pytest.fixture(autouse=True)
def _no_worker(page: "Page") -> Iterator[None]:
    yield
    page.evaluate(UNREGISTER)


def test_an_answer_arrives_once_by_default(site: Site, page: "Page") -> None:
    visit_with_worker(page, site.page())
    follower = Follower(page, site.url("/job"))
    follower.wait_until_closed()
    assert_whole(follower.events(), 20)
    assert site.runs() == [""]


def test_the_cap_ends_an_answer_by_default_and_does_not_start_it_over(
    capped: Site, page: "Page"
) -> None:
    visit_with_worker(page, capped.page())
    follower = Follower(page, capped.url("/job", n=1000))
    follower.wait_until_closed()
    assert reasons(follower) == ["duration_cap"]
    assert follower.numbers() == list(range(len(follower.numbers())))
    assert capped.runs() == [""]


def test_with_rotation_each_connection_is_a_new_stream(capped: Site, page: "Page") -> None:
    visit_with_worker(page, capped.page())
    follower = Follower(page, capped.url("/live"))
    follower.wait_for("start", 3)
    follower.close()
    assert not any(event.json["resumed"] for event in follower.events("start"))
    assert follower.events("reset") == []  # this would follow an id
    assert len(capped.runs()) >= 3


def test_a_connection_that_is_cut_is_not_opened_again(site: Site, page: "Page") -> None:
    visit_with_worker(page, site.page())
    site.proxy.cut(rb"data: 5")
    follower = Follower(page, site.url("/job"), closes_at=())
    follower.wait_until_closed()
    page.wait_for_timeout(400)
    assert (follower.state, follower.opened) == (CLOSED, 1)
    assert follower.numbers() == list(range(len(follower.numbers())))


def test_a_worker_that_leaves_streams_to_the_browser_prevents_no_resume(
    site: Site, page: "Page"
) -> None:
    visit_with_worker(page, site.page(), "worker.js?skips")
    site.proxy.cut(rb"data: 5", rb"data: 15")
    follower = Follower(page, site.url("/job"))
    follower.wait_until_closed()
    assert_whole(follower.events(), 20)
    assert_resumed(follower)
    assert site.runs() == [""]


def test_the_browser_client_resumes_although_a_worker_responds(site: Site, page: "Page") -> None:
    visit_with_worker(page, site.client())
    site.proxy.cut(rb"data: 5\n")
    followed = Followed(page, site.url("/job", held=1, pause=0.05))
    followed.wait_for_end()
    assert followed.numbers == list(range(20))
    assert [start["resumed"] for start in followed.record["starts"]] == [False, True]
    assert site.runs() == [""]
