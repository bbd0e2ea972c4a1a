"""An `EventSource` of a real browser that reads a compressed stream and is cut in the middle."""

from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser.eventsource_page import Follower, visit
from tests.e2e.browser.site import Site, assert_resumed, assert_whole, reasons

if TYPE_CHECKING:
    from playwright.sync_api import Page, Response

FOUR_CHUNKS = rb"(?s:(?:[0-9a-f]+\r\n.+?\r\n){4})"
PLACES = {"gzip": FOUR_CHUNKS, "br": FOUR_CHUNKS, "zstd": rb"\n\n"}  # zstd leaves line feeds as is


@pytest.mark.parametrize("compressing", PLACES, indirect=True)
def test_the_events_of_a_compressed_stream_arrive_once_and_in_order(
    compressing: Site, page: "Page", request: pytest.FixtureRequest
) -> None:
    coding = request.node.callspec.params["compressing"]
    codings: list[str | None] = []

    def note(response: "Response") -> None:
        if "/job" in response.url:
            codings.append(response.headers.get("content-encoding"))

    page.on("response", note)
    visit(page, compressing.page())
    compressing.proxy.cut(PLACES[coding], PLACES[coding])
    follower = Follower(page, compressing.url("/job", n=25, pause=0.1))
    follower.wait_until_closed()
    assert_whole(follower.events(), 25)
    assert_resumed(follower)
    assert reasons(follower) == ["finished"]
    assert compressing.runs() == [""]
    assert codings == [coding] * 3
