"""A page that is reloaded ends the stream that it has left; see also `tests/unit/stream`."""

from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser.eventsource_page import Follower, visit
from tests.e2e.browser.site import SERVERS, Site
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOADS = 20


def wait_until_left(site: Site, count: int) -> None:
    """Wait until a number of runs of the app have ended."""
    wait_until(lambda: site.record()["left"] == count, lambda: f"{site.record()}, not {count}", 20)


@pytest.mark.parametrize("site", SERVERS, indirect=True)
@pytest.mark.parametrize("closes", [False, True], ids=["reload", "close and open"])
def test_of_twenty_loads_of_a_page_one_stream_lingers(
    site: Site, page: "Page", *, closes: bool
) -> None:
    visit(page, site.page())
    page.evaluate("document.cookie = 'visitor=ada'")
    for _ in range(LOADS):
        follower = Follower(page, site.url("/inside/job", n=10_000))
        follower.wait_for("message")
        if closes:
            follower.close()
        else:
            visit(page, site.page())
    assert len(site.runs()) == LOADS
    wait_until_left(site, LOADS - 1)
    Follower(page, site.url("/inside/job", n=10_000)).wait_for("message")
    wait_until_left(site, LOADS)
